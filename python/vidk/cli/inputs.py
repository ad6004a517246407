"""What a run starts from: the device, the model, the prompt, the decoder and the first frames."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vidk.cache_kinds import QUANTISED_OPS, Plain
from vidk.cli.plan import default_dtype, parameter_count, pixel_frames, whole_blocks
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
DEFAULT_PROMPT = "a red circle moves to the right"
MODEL_OPS = (*Plain.ops, "cross_attention")


def model_ops(kind: str) -> tuple[str, ...]:
    """Return the ops of a forward whose cache is of a kind."""
    return MODEL_OPS if kind == Plain.name else (*QUANTISED_OPS, "cross_attention")


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
        return cls(name, config, args.model, count, dtype)

    @property
    def weights(self) -> str:
        """Where the weights come from."""
        return self.path or "random weights, seed 0"

    def load(self, device: torch.device) -> CausalWan:
        """Read or make the weights."""
        if self.path:
            return load_model(
                self.path, dtype=self.dtype, config=self.config, device=device, progress=True
            )
        return seeded_model(self.config, dtype=self.dtype, device=device, progress=True)


def load_prompt(
    args: argparse.Namespace, config: WanConfig, device: torch.device
) -> tuple[PromptEmbeds, str]:
    """Return the embeddings of the prompt, and where they come from."""
    text = DEFAULT_PROMPT if args.prompt is None else args.prompt
    if args.prompt_embeds:
        with option("--prompt-embeds"):
            embeds = load_prompt_embeds(args.prompt_embeds, config.text_len, config.text_dim)
        return embeds, str(args.prompt_embeds)
    if args.text_encoder:
        with option("--text-encoder"):
            encoder = UMT5Encoder(args.text_encoder, config.text_len, device=device)
            embeds = encoder.encode(text)
        if embeds.embeds.size(2) != config.text_dim:
            raise OptionError(
                f"--text-encoder: got embeddings of {embeds.embeds.size(2)} channels, expected "
                f"the {config.text_dim} of the model"
            )
        return embeds, f'"{text}" by {args.text_encoder}'
    embeds = seeded_embeds(text, config.text_len, config.text_dim)
    return embeds, f'"{text}" as seeded placeholder embeddings'


def load_decoder(args: argparse.Namespace, config: WanConfig, device: torch.device) -> Decoder:
    """Return the VAE that the command line names, or the preview."""
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

    def __init__(self, args: argparse.Namespace) -> None:
        self._path: str = args.first_frames
        self._block: int = args.block
        self._single_first: bool = args.independent_first_frame
        self._latents: Tensor | None = None
        if self._path.lower().endswith(".safetensors"):
            with option("--first-frames"):
                self._latents, _ = read_latents(self._path)
        elif not args.vae:
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
            count = self._whole((len(frames) - 1) // 4 + 1)
            return decoder.encode(fit_frames(frames[-pixel_frames(count) :], size)[None])

    def _whole(self, latents: int) -> int:
        count = whole_blocks(latents, self._block, self._single_first)
        if not count:
            raise OptionError(
                f"--first-frames: got {pixel_frames(latents)} frames, expected at least "
                f"{pixel_frames(self._block)}, a block (or --independent-first-frame)"
            )
        return count
