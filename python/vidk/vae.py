"""Latents to pixels, block by block: a preview without weights, and the Wan VAE of diffusers.

Both follow the rule of Wan: the first latent frame of a video is 1 pixel frame, each later one is
4; hence a first block of F latent frames gives 4F - 3 frames and every other one 4F.
"""

from __future__ import annotations

import inspect
import math
import os
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

FRAMES_PER_LATENT = 4


class VAEError(ValueError):
    """Latents, frames or weights that do not fit, told in one sentence."""


class Decoder(Protocol):
    """Streaming decoder; it remembers the end of the last block.

    Attributes
    ----------
    description : what it is, for the user's eyes.
    channels : C of the latents.
    scale : pixels per latent cell, in both directions.
    frames_per_latent : frames of each latent frame after a video's first, which is 1 frame.
    """

    description: str
    channels: int
    scale: int
    frames_per_latent: int

    def decode(self, latents: Tensor, first: bool) -> Tensor:
        """Turn latents `[B, F, C, h, w]` into uint8 `[B, n, h*scale, w*scale, 3]`.

        With r frames per latent n is rF - r + 1 when `first` (which forgets what came before),
        else rF.
        """
        ...

    def encode(self, frames: Tensor) -> Tensor:
        """Turn uint8 `[B, rk+1, H, W, 3]` into latents `[B, k+1, C, H/scale, W/scale]`."""
        ...


class PreviewDecoder:
    """A preview without weights; NOT the VAE: a fixed linear map of C channels to RGB.

    The columns of the map are orthonormal and drawn from `seed`; latents of unit variance fill the
    range up to 2 standard deviations. Space is upsampled bilinearly, time linearly. It shows
    layout and motion of a rollout, not its colours.

    Parameters
    ----------
    channels : C of the latents, at least 3: 16 for Wan 2.1 (8 pixels a cell), 48 for Wan 2.2 5B
        (16 pixels a cell).
    seed : of the map.
    """

    def __init__(self, channels: int = 16, seed: int = 0) -> None:
        if channels < 3:
            raise VAEError(f"PreviewDecoder: channels: got {channels}, expected at least 3")
        self.description = "preview (fixed linear map to RGB, not the VAE)"
        self.channels = channels
        self.scale = 16 if channels == 48 else 8
        self.frames_per_latent = FRAMES_PER_LATENT
        noise = torch.randn(channels, 3, generator=torch.Generator().manual_seed(seed))
        columns, upper = torch.linalg.qr(noise.double())
        # QR is unique only up to signs; a positive diagonal makes it the same in every LAPACK.
        self._map = (columns * upper.diagonal().sign()).float()
        self._last: Tensor | None = None

    def decode(self, latents: Tensor, first: bool) -> Tensor:
        """Turn latents `[B, F, C, h, w]` into a uint8 preview `[B, n, h*scale, w*scale, 3]`.

        Raises VAEError, and keeps its state, if the shape is wrong or nothing precedes the block.
        """
        state = None if first else self._last
        shape = None if state is None else (state.shape[0], *state.shape[2:])
        _check_latents("PreviewDecoder", latents, self.channels, shape, first)
        matrix = self._map.to(latents.device)
        frames = []
        # One latent frame at a time: the bits must not depend on how the video is cut into blocks.
        for latent in latents.unbind(1):
            colour = torch.einsum("bchw,cr->brhw", latent.detach().float(), matrix)
            colour = colour.nan_to_num()
            steps = FRAMES_PER_LATENT if state is not None else 1
            mixed = [
                colour if state is None else state.lerp(colour, step / steps)
                for step in range(1, steps + 1)
            ]
            wide = F.interpolate(
                torch.cat(mixed), scale_factor=self.scale, mode="bilinear", align_corners=False
            )
            pixels = _to_uint8(wide / 2).unflatten(0, (steps, -1))
            frames.append(pixels.permute(1, 0, 3, 4, 2))
            state = colour
        self._last = state
        return torch.cat(frames, dim=1)

    def encode(self, frames: Tensor) -> Tensor:
        """Raise VAEError: a preview has no encoder."""
        raise VAEError(
            "PreviewDecoder: encode: the preview has no encoder, expected a VAE "
            "(continue from latents, or give the Wan VAE)"
        )


class WanVAEDecoder:
    """The Wan VAE (2.1: 16 channels, 2.2: 48) through diffusers' AutoencoderKLWan.

    Decoding is streamed by latent frame with the feature cache that the decoder module takes as an
    argument, so its memory does not grow with the video: two frames of features per causal
    convolution, and the activations of one latent frame.

    Parameters
    ----------
    path_or_id : folder of an AutoencoderKLWan, or of a pipeline with a `vae` folder, or the id of
        such a pipeline on the Hugging Face hub.
    dtype, device : where and how the VAE computes. float32 is what diffusers uses.

    Raises
    ------
    VAEError : diffusers is missing, the weights cannot be loaded, or are of another kind.
    """

    def __init__(
        self,
        path_or_id: str | os.PathLike[str],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self._setup(_load(path_or_id, dtype).to(device))

    @classmethod
    def from_model(cls, vae: Any) -> WanVAEDecoder:
        """Wrap an AutoencoderKLWan that is loaded already, such as `pipeline.vae`."""
        decoder = cls.__new__(cls)
        decoder._setup(vae)
        return decoder

    def _setup(self, vae: Any) -> None:
        names = inspect.signature(vae.decoder.forward).parameters
        if "feat_cache" not in names or "feat_idx" not in names:
            raise VAEError(
                "WanVAEDecoder: this diffusers has no feature cache in its Wan decoder, "
                "expected diffusers >= 0.33"
            )
        self._marks_first = "first_chunk" in names
        config = vae.config
        self.description = f"Wan VAE (diffusers AutoencoderKLWan, {config.z_dim} channels)"
        self.channels = int(config.z_dim)
        self.scale = int(getattr(config, "scale_factor_spatial", None) or 8)
        self.frames_per_latent = FRAMES_PER_LATENT
        self._patch = int(getattr(config, "patch_size", None) or 1)
        self._vae = vae.eval()
        weight = vae.decoder.conv_in.weight
        self._like = weight
        shape = (1, -1, 1, 1, 1)
        self._mean = torch.tensor(config.latents_mean, device=weight.device).view(shape)
        self._std = torch.tensor(config.latents_std, device=weight.device).view(shape)
        # One cache entry per causal convolution, in the order in which the decoder meets them.
        causal = type(vae.decoder.conv_in)
        self._slots = sum(isinstance(module, causal) for module in vae.decoder.modules())
        self._cache: list[Any] | None = None
        self._shape: tuple[int, ...] | None = None

    @torch.no_grad()
    def decode(self, latents: Tensor, first: bool) -> Tensor:
        """Turn normalised latents `[B, F, C, h, w]` into uint8 `[B, n, h*scale, w*scale, 3]`.

        Raises VAEError if the shape is wrong or nothing precedes the block. After an exception
        from the VAE itself (out of memory) the next block must be a first one.
        """
        shape = None if first else self._shape
        _check_latents("WanVAEDecoder", latents, self.channels, shape, first)
        cache = [None] * self._slots if first else self._cache
        self._cache = self._shape = None
        moved = latents.to(self._like.device).float().transpose(1, 2)
        z = (moved * self._std + self._mean).to(self._like.dtype)
        frames = []
        for index in range(z.shape[2]):
            start = {"first_chunk": first and index == 0} if self._marks_first else {}
            latent = self._vae.post_quant_conv(z[:, :, index : index + 1])
            pixels = self._vae.decoder(latent, feat_cache=cache, feat_idx=[0], **start)
            frames.append(_to_uint8(_unpatch(pixels, self._patch)).permute(0, 2, 3, 4, 1))
        self._cache = cache
        self._shape = (latents.shape[0], *latents.shape[3:])
        return torch.cat(frames, dim=1)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Turn uint8 `[B, 4k+1, H, W, 3]` into normalised float32 latents `[B, k+1, C, h, w]`.

        The mode of the posterior, not a sample, so that the result is reproducible.
        """
        _check_frames(frames, self.scale)
        moved = frames.to(self._like.device).permute(0, 4, 1, 2, 3)
        video = (moved.float() / 127.5 - 1).to(self._like.dtype)
        z = self._vae.encode(video).latent_dist.mode().float()
        return ((z - self._mean) / self._std).transpose(1, 2).contiguous()


def _load(path_or_id: str | os.PathLike[str], dtype: torch.dtype) -> Any:
    name = os.fspath(path_or_id)
    folder = Path(name)
    if not folder.is_dir() and (folder.exists() or len(folder.parts) != 2 or folder.is_absolute()):
        raise VAEError(f"WanVAEDecoder: {name}: is neither a folder nor an id like owner/name")
    try:
        from diffusers import AutoencoderKLWan
    except ImportError as error:
        raise VAEError(
            "WanVAEDecoder: the package diffusers is missing (pip install vidk[wan])"
        ) from error
    where = {} if (folder / "config.json").is_file() else {"subfolder": "vae"}
    try:
        return AutoencoderKLWan.from_pretrained(name, torch_dtype=dtype, **where)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise VAEError(f"WanVAEDecoder: {name}: cannot be loaded: {reason}") from error


def _check_latents(
    who: str, latents: Tensor, channels: int, shape: tuple[int, ...] | None, first: bool
) -> None:
    got = list(latents.shape)
    if latents.dim() != 5 or got[2] != channels or latents.numel() == 0:
        raise VAEError(f"{who}: latents: got shape {got}, expected [B, F, {channels}, h, w]")
    if not latents.is_floating_point():
        raise VAEError(f"{who}: latents: got dtype {latents.dtype}, expected a float type")
    if first:
        return
    if shape is None:
        raise VAEError(f"{who}: first: got False, expected True for the first block of a video")
    if (got[0], *got[3:]) != shape:
        raise VAEError(
            f"{who}: latents: got shape {got}, expected [{shape[0]}, F, {channels}, "
            f"{shape[1]}, {shape[2]}] like the block before"
        )


def _check_frames(frames: Tensor, scale: int) -> None:
    got = list(frames.shape)
    if frames.dim() != 5 or got[4] != 3 or frames.dtype != torch.uint8 or frames.numel() == 0:
        raise VAEError(
            f"WanVAEDecoder: frames: got shape {got} and dtype {frames.dtype}, "
            "expected uint8 [B, n, H, W, 3]"
        )
    if got[1] % FRAMES_PER_LATENT != 1:
        fits = got[1] - (got[1] - 1) % FRAMES_PER_LATENT
        raise VAEError(
            f"WanVAEDecoder: frames: got {got[1]} frames, expected 4k + 1 (give {fits} of them)"
        )
    if got[2] % scale or got[3] % scale:
        fit = [math.ceil(n / scale) * scale for n in got[2:4]]
        raise VAEError(
            f"WanVAEDecoder: frames: got {got[2]} x {got[3]} (H x W), expected multiples of "
            f"{scale} (such as {fit[0]} x {fit[1]})"
        )


def _unpatch(pixels: Tensor, patch: int) -> Tensor:
    # `[B, 3*p*p, n, H, W]` -> `[B, 3, n, H*p, W*p]`; the channel holds (colour, column, row).
    if patch == 1:
        return pixels
    parts = pixels.unflatten(1, (-1, patch, patch))
    return parts.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)


def _to_uint8(signed: Tensor) -> Tensor:
    # [-1, 1] -> [0, 255]; NaN has no defined integer, so it is shown as mid-grey.
    levels = signed.float().nan_to_num(0.0).mul_(127.5).add_(127.5)
    return levels.round_().clamp_(0, 255).to(torch.uint8)
