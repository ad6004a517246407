"""The latent codec of the bundled model: a fixed linear encoder and a small trained decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidk.bundled.scenes import CELL, SIZE
from vidk.vae import VAEError

CHANNELS = 16
_WIDTH, _FINE = 64, 32


def patches(frames: Tensor) -> Tensor:
    """Cut `[N, H, W, c]` into `[N, H / CELL, W / CELL, CELL * CELL * c]`."""
    x = frames.unflatten(2, (-1, CELL)).unflatten(1, (-1, CELL))
    return x.permute(0, 1, 3, 2, 4, 5).flatten(3)


class PixelDecoder(nn.Module):
    """Latents `[N, CHANNELS, h, w]` to colours `[N, 3, h * CELL, w * CELL]`, 0 to 1.

    Convolutions wrap around the edges, as the world of the model does. It draws sharper edges than
    the transpose of the linear encoder, which rings, and mends small errors of the latents.
    """

    def __init__(self) -> None:
        super().__init__()
        conv = {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}
        self.enter = nn.Conv2d(CHANNELS, _WIDTH, **conv)  # type: ignore[arg-type]
        self.middle = nn.ModuleList(nn.Conv2d(_WIDTH, _WIDTH, **conv) for _ in range(2))  # type: ignore[arg-type]
        self.widen = nn.Conv2d(_WIDTH, _FINE * 16, 1)
        self.refine = nn.Conv2d(_FINE, _FINE, **conv)  # type: ignore[arg-type]
        self.leave = nn.Conv2d(_FINE, 3 * (CELL // 4) ** 2, **conv)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.enter(x)
        for layer in self.middle:
            x = x + layer(F.gelu(x))
        x = F.pixel_shuffle(self.widen(F.gelu(x)), 4)
        x = x + self.refine(F.gelu(x))
        return F.pixel_shuffle(self.leave(F.gelu(x)), CELL // 4)


class BundledCodec:
    """The codec of the bundled model, in the place of the Wan VAE: one latent frame a frame.

    Parameters
    ----------
    state : tensors `encoder.weight` `[CHANNELS, CELL * CELL * 3]`, `encoder.mean`
        `[CELL * CELL * 3]`, and those of `PixelDecoder` under `decoder.`.
    device : where it computes, in float32.
    """

    def __init__(self, state: dict[str, Tensor], device: torch.device | str = "cpu") -> None:
        self.description = "the bundled model's codec (linear encoder, convolutional decoder)"
        self.channels, self.scale, self.frames_per_latent = CHANNELS, CELL, 1
        self._weight = state["encoder.weight"].to(device, torch.float32)
        self._mean = state["encoder.mean"].to(device, torch.float32)
        prefix = "decoder."
        own = {k[len(prefix) :]: v.float() for k, v in state.items() if k.startswith(prefix)}
        self._decoder = PixelDecoder()
        self._decoder.load_state_dict(own)
        self._decoder.to(device).eval()

    @torch.no_grad()
    def decode(self, latents: Tensor, first: bool) -> Tensor:
        """Turn latents `[B, F, C, h, w]` into uint8 `[B, F, h * CELL, w * CELL, 3]`.

        Frames do not depend on each other, so `first` changes nothing. Raises VAEError.
        """
        got = list(latents.shape)
        if latents.dim() != 5 or got[2] != CHANNELS or latents.numel() == 0:
            raise VAEError(
                f"BundledCodec: latents: got shape {got}, expected [B, F, {CHANNELS}, h, w]"
            )
        x = latents.flatten(0, 1).to(self._weight.device, torch.float32)
        # A frame at a time: the bits must not depend on how the video is cut into blocks.
        pixels = torch.cat([self._decoder(frame) for frame in x.split(1)])
        levels = (pixels.nan_to_num(0.5) * 255).round_().clamp_(0, 255).to(torch.uint8)
        return levels.permute(0, 2, 3, 1).unflatten(0, (got[0], got[1]))

    def encode(self, frames: Tensor) -> Tensor:
        """Turn uint8 `[B, n, H, W, 3]` into latents `[B, n, C, H / CELL, W / CELL]`."""
        got = list(frames.shape)
        if frames.dim() != 5 or got[4] != 3 or frames.dtype != torch.uint8 or 0 in got:
            raise VAEError(
                f"BundledCodec: frames: got shape {got} and dtype {frames.dtype}, expected uint8 "
                "[B, n, H, W, 3]"
            )
        if got[2] % CELL or got[3] % CELL:
            raise VAEError(
                f"BundledCodec: frames: got {got[2]} x {got[3]} (H x W), expected multiples of "
                f"{CELL}, such as {SIZE} x {SIZE}"
            )
        x = patches(frames.to(self._weight.device).flatten(0, 1).float() / 255)
        latents = torch.einsum("nhwk,ck->nchw", x - self._mean, self._weight)
        return latents.unflatten(0, (got[0], got[1]))
