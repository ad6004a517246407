"""What a run of `vidk generate` will do, worked out before anything large is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from vidk.cache_kinds import Kind, Sizes, key_row_bytes
from vidk.cli.system import bytes_text, free_memory
from vidk.cli.values import OptionError
from vidk.models.config import WanConfig
from vidk.models.seeded import meta_model
from vidk.vae import FRAMES_PER_LATENT

# Pixels (height, width) and pixel frames, where the command line does not say: what the model was
# trained for, or what takes seconds on two cores.
_SIZES = {"bundled": (160, 288), "tiny": (64, 96), "wan-5b": (704, 1280)}
_FRAMES = {"bundled": 45, "tiny": 45}
_WINDOW = 21
# Below this many parameters float32 is the default: it costs little and every CPU computes it.
_SMALL = 5e8


@dataclass(frozen=True)
class Plan:
    """Sizes of a run.

    Attributes
    ----------
    size, latent : height and width in pixels and in latent cells.
    frames : pixel frames of the file, those of the first frames included.
    given : latent frames that are given, a whole number of blocks.
    blocks : latent frames of each block that is generated.
    slots, sink : latent frames of the cache, and how many of them stay for ever.
    """

    size: tuple[int, int]
    latent: tuple[int, int]
    frames: int
    given: int
    blocks: tuple[int, ...]
    slots: int
    sink: int


def default_size(config_name: str) -> tuple[int, int]:
    """Return height and width in pixels for a config."""
    return _SIZES.get(config_name, (480, 832))


def default_frames(config_name: str) -> int:
    """Return the number of pixel frames for a config."""
    return _FRAMES.get(config_name, 81)


def default_dtype(parameters: int) -> torch.dtype:
    """Return the dtype for a model of a size."""
    return torch.float32 if parameters < _SMALL else torch.bfloat16


def pixel_frames(latent_frames: int) -> int:
    """Return the pixel frames that the first latent frames of a video stand for."""
    return 1 + FRAMES_PER_LATENT * (latent_frames - 1)


def latent_frames(frames: int) -> int:
    """Return the latent frames that hold so many pixel frames."""
    return 1 + math.ceil((frames - 1) / FRAMES_PER_LATENT)


def whole_blocks(latents: int, block: int, single_first: bool) -> int:
    """Return the most latent frames, up to `latents`, that the first blocks of a video fill."""
    first = int(single_first and latents > 0)
    return first + (latents - first) // block * block


def check_size(size: tuple[int, int], scale: int, patch: tuple[int, int, int]) -> None:
    """Raise OptionError unless a size in pixels is whole tokens of `scale * patch` pixels."""
    units = [scale * cells for cells in patch[1:]]
    if any(pixels % unit or pixels < unit for pixels, unit in zip(size, units, strict=True)):
        fit = [max(1, round(n / unit)) * unit for n, unit in zip(size, units, strict=True)]
        got, unit, such = ("x".join(map(str, pair)) for pair in (size, units, fit))
        raise OptionError(f"--size: got {got}, expected multiples of {unit}, such as {such}")


def make_plan(
    *,
    size: tuple[int, int],
    frames: int,
    scale: int,
    block: int,
    window: int | None,
    sink: int,
    single_first: bool,
    given: int = 0,
) -> Plan:
    """Work out the sizes of a run; raise OptionError where they do not fit together.

    Parameters
    ----------
    size, frames : what the file shall have, in pixels and pixel frames.
    scale : pixels of a latent cell.
    block, window, sink : in latent frames.
    single_first : the video's first block has one latent frame.
    given : latent frames that are given, a whole number of blocks.
    """
    if given and frames <= pixel_frames(given):
        raise OptionError(
            f"--frames: got {frames}, expected more than the {pixel_frames(given)} frames that "
            "--first-frames gives, since it counts them too"
        )
    wanted = latent_frames(frames) - given
    blocks = [1] if single_first and not given else []
    blocks += [block] * math.ceil((wanted - sum(blocks)) / block)
    total = given + sum(blocks)
    least = sink + block
    if window is not None and window < least:
        raise OptionError(
            f"--window: got {window}, expected at least {least}, the {sink} of --sink and the "
            f"{block} of --block"
        )
    slots = max(min(_WINDOW if window is None else window, total), least)
    height, width = size[0] // scale, size[1] // scale
    return Plan(size, (height, width), frames, given, tuple(blocks), slots, sink)


@dataclass(frozen=True)
class CacheSize:
    """Bytes of the whole KV cache, and of a cached key of one head."""

    bytes: int
    key_row_bytes: float


def stored(config: WanConfig, plan: Plan, dtype: torch.dtype, kind: Kind) -> CacheSize:
    """Return what the KV cache of a run takes."""
    _, ph, pw = config.patch_size
    sizes = Sizes(
        layers=config.num_layers,
        batch=1,
        heads=config.num_heads,
        head_dim=config.head_dim,
        frames=plan.slots,
        frame_tokens=(plan.latent[0] // ph) * (plan.latent[1] // pw),
        dtype=dtype,
    )
    tensors = kind.stored(sizes)
    return CacheSize(sum(s.bytes for s in tensors.values()), key_row_bytes(tensors, sizes))


def parameter_count(config: WanConfig) -> int:
    """Return the number of parameters of a model."""
    return sum(p.numel() for p in meta_model(config).parameters())


def check_memory(
    cache: CacheSize, dtype: torch.dtype, device: torch.device, parameters: int
) -> None:
    """Raise MemoryError if weights and cache cannot fit: Linux would kill the process instead."""
    weights = parameters * dtype.itemsize
    free = free_memory(device)
    if free is not None and weights + cache.bytes > free:
        raise MemoryError(
            f"the weights need {bytes_text(weights)} and the cache {bytes_text(cache.bytes)}, "
            f"{bytes_text(free)} are free on {device}"
        )
