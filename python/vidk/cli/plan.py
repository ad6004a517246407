"""What a run of `vidk generate` will do, worked out before anything large is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from vidk.bundled.scenes import SIZE
from vidk.cache_kinds import Kind, Sizes, key_row_bytes
from vidk.cli.system import bytes_text, free_memory
from vidk.cli.values import OptionError
from vidk.models.config import WanConfig
from vidk.models.seeded import meta_model

# The bundled model with its trained weights.
BUNDLED = "bundled, trained"
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


@dataclass(frozen=True)
class Defaults:
    """What holds where the command line does not say: sizes in pixels, the rest as its options.

    What the model was trained for, or what takes seconds on two cores.
    """

    size: tuple[int, int] = (480, 832)
    frames: int = 81
    window: int = 21
    sink: int = 0
    steps: int = 4
    shift: float = 5.0
    sampler: str = "renoise"


_DEFAULTS = {
    # With random weights. With its own ones the model is trained for the rest.
    "bundled": Defaults((160, 288), 45),
    BUNDLED: Defaults((SIZE, SIZE), 60, window=12, sink=3, steps=8, shift=3.0, sampler="euler"),
    "tiny": Defaults((64, 96), 45),
    "wan-5b": Defaults((704, 1280)),
}


def defaults(config_name: str) -> Defaults:
    """Return the defaults for a config."""
    return _DEFAULTS.get(config_name, Defaults())


def default_dtype(parameters: int) -> torch.dtype:
    """Return the dtype for a model of a size."""
    return torch.float32 if parameters < _SMALL else torch.bfloat16


def pixel_frames(latent_frames: int, ratio: int) -> int:
    """Return the pixel frames that the first latent frames of a video stand for.

    `ratio` is the decoder's `frames_per_latent`.
    """
    return 1 + ratio * (latent_frames - 1) if latent_frames else 0


def latent_frames(frames: int, ratio: int) -> int:
    """Return the latent frames that hold so many pixel frames."""
    return 1 + math.ceil((frames - 1) / ratio)


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
    ratio: int,
    block: int,
    window: int | None,
    sink: int,
    single_first: bool,
    given: int = 0,
    usual_window: int = Defaults.window,
) -> Plan:
    """Work out the sizes of a run; raise OptionError where they do not fit together.

    Parameters
    ----------
    size, frames : what the file shall have, in pixels and pixel frames.
    scale, ratio : pixels of a latent cell and, after a video's first, frames of a latent frame.
    block, window, sink : in latent frames.
    single_first : the video's first block has one latent frame.
    given : latent frames that are given, a whole number of blocks.
    usual_window : of what holds where `window` is None, as far as sink and video allow.
    """
    held = pixel_frames(given, ratio)
    if given and frames <= held:
        raise OptionError(
            f"--frames: got {frames}, expected more than the {held} frames that "
            "--first-frames gives, since it counts them too"
        )
    wanted = latent_frames(frames, ratio) - given
    blocks = [1] if single_first and not given else []
    blocks += [block] * math.ceil((wanted - sum(blocks)) / block)
    total = given + sum(blocks)
    least = sink + block
    if window is not None and window < least:
        raise OptionError(
            f"--window: got {window}, expected at least {least}, the {sink} of --sink and the "
            f"{block} of --block"
        )
    slots = max(min(usual_window if window is None else window, total), least)
    height, width = size[0] // scale, size[1] // scale
    return Plan(size, (height, width), frames, given, tuple(blocks), slots, sink)


@dataclass(frozen=True)
class CacheSize:
    """Bytes of the whole KV cache, and of a cached key of one head."""

    bytes: int
    key_row_bytes: float


def stored(
    config: WanConfig, plan: Plan, dtype: torch.dtype, kind: Kind, ranks: int = 1
) -> CacheSize:
    """Return what the KV cache of a run takes, on a rank where several share the heads."""
    _, ph, pw = config.patch_size
    sizes = Sizes(
        layers=config.num_layers,
        batch=1,
        heads=config.num_heads // ranks,
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
