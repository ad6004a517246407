"""The codec of the bundled model."""

from __future__ import annotations

import pytest
import torch

from vidk.bundled import Scene, bundled_codec
from vidk.bundled.scenes import GRID, SIZE, render
from vidk.evaluate.stats import psnr
from vidk.vae import VAEError

SCENES = [Scene("red", "circle"), Scene("yellow", "triangle", "up", "gray")]


@pytest.fixture(scope="module")
def codec():
    return bundled_codec()


def test_round_trip(codec):
    frames = render(SCENES, torch.tensor([[9, 14], [0, 23]]))[None]
    latents = codec.encode(frames)
    assert latents.shape == (1, 2, 16, GRID, GRID) and latents.dtype == torch.float32
    assert 0.5 < latents.square().mean().sqrt() < 2
    back = codec.decode(latents, True)
    assert back.shape == frames.shape and back.dtype == torch.uint8
    assert psnr(back, frames) > 28


def test_frames_do_not_depend_on_how_a_video_is_cut(codec):
    latents = torch.randn(1, 4, 16, GRID, GRID, generator=torch.Generator().manual_seed(0))
    whole = codec.decode(latents, True)
    parts = [codec.decode(latents[:, :1], True), codec.decode(latents[:, 1:], False)]
    assert torch.equal(whole, torch.cat(parts, 1))


def test_latents_that_do_not_fit(codec):
    with pytest.raises(
        VAEError, match=r"latents: got shape \[1, 3, 4, 4, 4\], expected \[B, F, 16"
    ):
        codec.decode(torch.zeros(1, 3, 4, 4, 4), True)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(1, 3, 32, 32, 3), "got shape .* and dtype torch.float32, expected uint8"),
        (torch.zeros(3, 32, 32, 3, dtype=torch.uint8), r"got shape \[3, 32, 32, 3\]"),
        (
            torch.zeros(1, 3, 40, 32, 3, dtype=torch.uint8),
            f"got 40 x 32 .*, expected multiples of 16, such as {SIZE} x {SIZE}",
        ),
    ],
)
def test_frames_that_do_not_fit(codec, frames, message):
    with pytest.raises(VAEError, match=message):
        codec.encode(frames)
