"""What a run starts from: the device, the model, the prompt, the decoder and the first frames."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vidk.bundled import WordEncoder, bundled_codec, bundled_model
from vidk.cache_kinds import FP8, NVFP4, Plain
from vidk.cli.plan import BUNDLED, default_dtype, parameter_count, pixel_frames, whole_blocks
from vidk.cli.script import read_script
from vidk.cli.stream import Change
from vidk.cli.system import kernel
from vidk.cli.values import OptionError, option
from vidk.media import fit_frames, read_latents, read_video
from vidk.models.checkpoint import load_model, open_checkpoint
from vidk.models.config import CONFIGS, WanConfig, load_config
from vidk.models.seeded import seeded_model
from vidk.models.wan import CausalWan
from vidk.text import PromptEmbeds, UMT5Encoder, load_prompt_embeds, seeded_embeds
from vidk.vae import Decoder, PreviewDecoder, WanVAEDecoder

DEFAULT_CONFIG = "bundled"
DEFAULT_PROMPT = "a red circle moving right"
MODEL_OPS = (*Plain.ops, "cross_attention")


def model_ops(kind: str, ranks: int = 1) -> tuple[str, ...]:
    """Return the ops of a forward whose cache is of a kind, by its name."""
    cache = next(k for k in (Plain, NVFP4, FP8) if k.name == kind)
    own = ("qk_norm_rope_pack", *cache.rank_ops) if ranks > 1 else cache.ops
    return (*own, "cross_attention")


def pick_device(
    name: str | None, ops: Sequence[str] = MODEL_OPS
) -> tuple[torch.device, str | None]:
    """Return the device of a run of some ops, and what the user should know about the choice."""
    gpu = torch.cuda.is_available()
    missing = [op for op in ops if kernel(op, "cuda") is None] if gpu else []
    if name is None:
        if gpu and not missing:
            return torch.device("cuda"), None
        note = f"the GPU is not used, since this build has no CUDA kernel for {', '.join(missing)}"
        return torch.device("cpu"), note if gpu else None
    expected = "cpu, cuda or cuda:N"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise OptionError(f"--device: got {name}, expected {expected}") from None
    if device.type not in ("cpu", "cuda"):
        raise OptionError(f"--device: got {name}, expected {expected}")
    if device.type == "cuda":
        count = torch.cuda.device_count() if gpu else 0
        if (device.index or 0) >= count:
            raise OptionError(f"--device: got {name}, expected one of the {count} GPUs here")
        if missing:
            lacking = ", ".join(missing)
            raise OptionError(
                f"--device: got {name}, expected cpu, since this build has no CUDA kernel for "
                f"{lacking}"
            )
    return device, None


@dataclass(frozen=True)
class ModelSource:
    """Which model to run: its sizes are known, its weights are not read yet."""

    name: str
    config: WanConfig
    path: str | None
    parameters: int
    dtype: torch.dtype
    # Whether the weights are those that come with the package.
    bundled: bool

    @classmethod
    def of(cls, args: argparse.Namespace) -> ModelSource:
        """Find the model that the command line asks for."""
        with option("--config"):
            config = load_config(args.config) if args.config else None
        name = args.config or DEFAULT_CONFIG
        if args.model:
            if args.random_weights:
                raise OptionError("--random-weights: got --model too, expected one of them")
            with open_checkpoint(args.model, config=config) as checkpoint:
                config = checkpoint.config
            name = args.config or Path(args.model).name
        elif config is None:
            config = CONFIGS[DEFAULT_CONFIG]
        elif name != DEFAULT_CONFIG and not args.random_weights:
            raise OptionError(f"--config: got {name} alone, expected --model or --random-weights")
        count = parameter_count(config)
        dtype = getattr(torch, args.dtype) if args.dtype else default_dtype(count)
        bundled = config is CONFIGS[DEFAULT_CONFIG] and not (args.model or args.random_weights)
        return cls(name, config, args.model, count, dtype, bundled)

    @property
    def kind(self) -> str:
        """Name of the defaults that hold for the model."""
        return BUNDLED if self.bundled else self.name

    @property
    def weights(self) -> str:
        """Where the weights come from."""
        if self.bundled:
            return "weights of the package"
        return self.path or "random weights, seed 0"

    def load(self, device: torch.device) -> CausalWan:
        """Read or make the weights."""
        if self.bundled:
            return bundled_model(dtype=self.dtype, device=device)
        if self.path:
            return load_model(
                self.path, dtype=self.dtype, config=self.config, device=device, progress=True
            )
        return seeded_model(self.config, dtype=self.dtype, device=device, progress=True)


def load_prompts(
    args: argparse.Namespace, source: ModelSource, device: torch.device
) -> tuple[PromptEmbeds, str, list[Change]]:
    """Return the embeddings of the first prompt, where they come from, and later prompts."""
    config = source.config
    if args.prompt_embeds:
        with option("--prompt-embeds"):
            embeds = load_prompt_embeds(args.prompt_embeds, config.text_len, config.text_dim)
        return embeds, str(args.prompt_embeds), []
    name, script = "--prompt", [(0.0, DEFAULT_PROMPT if args.prompt is None else args.prompt)]
    if args.prompt_script:
        name = "--prompt-script"
        with option(name):
            script = read_script(args.prompt_script)
    texts = [text for _, text in script]
    if args.text_encoder:
        with option("--text-encoder"):
            encoder = UMT5Encoder(args.text_encoder, config.text_len, device=device)
            each = [encoder.encode(text) for text in texts]
        if each[0].embeds.size(2) != config.text_dim:
            raise OptionError(
                f"--text-encoder: got embeddings of {each[0].embeds.size(2)} channels, expected "
                f"the {config.text_dim} of the model"
            )
        how = f"by {args.text_encoder}"
    elif source.bundled:
        words = WordEncoder(config.text_len, config.text_dim)
        with option(name):
            each = [words.encode(text) for text in texts]
        how = "by the bundled vocabulary"
    else:
        each = [seeded_embeds(text, config.text_len, config.text_dim) for text in texts]
        how = "as seeded placeholder embeddings"
    changes = [
        Change(math.ceil(seconds * args.fps), prompt.to(device, source.dtype))
        for (seconds, _), prompt in zip(script[1:], each[1:], strict=True)
    ]
    later = f" and {len(changes)} more of {args.prompt_script}" if changes else ""
    return each[0], f'"{texts[0]}"{later} {how}', changes


def load_decoder(args: argparse.Namespace, source: ModelSource, device: torch.device) -> Decoder:
    """Return the VAE that the command line names, the bundled model's codec, or the preview."""
    config = source.config
    if source.bundled and not args.vae:
        return bundled_codec(device)
    if not args.vae:
        with option("--model" if args.model else "--config"):
            return PreviewDecoder(config.out_channels)
    with option("--vae"):
        vae = WanVAEDecoder(args.vae, device=device)
    if vae.channels != config.out_channels:
        raise OptionError(
            f"--vae: got one of {vae.channels} channels, expected the {config.out_channels} of "
            "the model"
        )
    return vae


class FirstFrames:
    """The clean latents that a video begins with, from latents, a picture or a video."""

    def __init__(self, args: argparse.Namespace, decoder: Decoder) -> None:
        self._ratio = decoder.frames_per_latent
        self._path: str = args.first_frames
        self._block: int = args.block
        self._single_first: bool = args.independent_first_frame
        self._latents: Tensor | None = None
        if self._path.lower().endswith(".safetensors"):
            with option("--first-frames"):
                self._latents, _ = read_latents(self._path)
        elif isinstance(decoder, PreviewDecoder):
            raise OptionError(
                f"--first-frames: got {self._path} without a VAE, expected --vae to encode it, or "
                "latents in .safetensors"
            )

    def pixel_size(self, scale: int) -> tuple[int, int] | None:
        """Return the height and width in pixels of latents; anything else takes any size."""
        if self._latents is None:
            return None
        return self._latents.size(3) * scale, self._latents.size(4) * scale

    def load(self, decoder: Decoder, config: WanConfig, size: tuple[int, int]) -> Tensor:
        """Return the latents `[1, F, C, h, w]` for a video of a size; F fills whole blocks."""
        if self._latents is None:
            return self._encode(decoder, size)
        expected = [1, config.in_channels, size[0] // decoder.scale, size[1] // decoder.scale]
        shape = list(self._latents.shape)
        if [shape[0], *shape[2:]] != expected:
            _, c, h, w = expected
            raise OptionError(
                f"--first-frames: got latents {shape}, expected [1, F, {c}, {h}, {w}] for a "
                f"video of {size[0]}x{size[1]}"
            )
        count = self._whole(shape[1])
        if count != shape[1]:
            raise OptionError(
                f"--first-frames: got {shape[1]} latent frames, expected whole blocks, such as "
                f"{count} (--block, --independent-first-frame)"
            )
        return self._latents

    def _encode(self, decoder: Decoder, size: tuple[int, int]) -> Tensor:
        with option("--first-frames"):
            frames = read_video(self._path)
            # The end of a longer video: what comes next continues from there.
            count = self._whole((len(frames) - 1) // self._ratio + 1)
            taken = frames[-pixel_frames(count, self._ratio) :]
            return decoder.encode(fit_frames(taken, size)[None])

    def _whole(self, latents: int) -> int:
        count = whole_blocks(latents, self._block, self._single_first)
        if not count:
            raise OptionError(
                f"--first-frames: got {pixel_frames(latents, self._ratio)} frames, expected at "
                f"least {pixel_frames(self._block, self._ratio)}, a block (or "
                "--independent-first-frame)"
            )
        return count
