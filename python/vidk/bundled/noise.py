"""The noise that the bundled model starts from: its mean says where a latent cell lies.

RoPE tells tokens apart only by their distance. In a block of pure noise without any context that
leaves a token no way to know its own place, and a model this small spends most of its training
on finding one. Flow matching may start from any distribution: here from unit noise around a fixed
pattern, which fades with the noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vidk.bundled.scenes import GRID
from vidk.rollout.noise import SeededNoise

BLOCK = 3
_CHANNELS = 16
_STRENGTH = 1.5


def pattern() -> Tensor:
    """Return the mean of the noise, `[BLOCK, C, GRID, GRID]`: waves along x, y and the frames."""
    place = (torch.arange(GRID, dtype=torch.float64) + 0.5) * (2 * math.pi / GRID)
    time = torch.arange(BLOCK, dtype=torch.float64) * (2 * math.pi / BLOCK)
    out = torch.zeros(BLOCK, _CHANNELS, GRID, GRID, dtype=torch.float64)
    channel = 0
    for wave in (1, 2, 3):
        for function in (torch.cos, torch.sin):
            out[:, channel] = function(wave * place)[None, None, :]
            out[:, channel + 1] = function(wave * place)[None, :, None]
            channel += 2
    for function in (torch.cos, torch.sin):
        for _ in range(2):
            out[:, channel] = function(time)[:, None, None]
            channel += 1
    return (out * _STRENGTH).float()


class PlacedNoise(SeededNoise):
    """Seeded noise around the pattern, for blocks of `BLOCK` frames of `GRID` x `GRID` cells."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._pattern = pattern()

    def __call__(self, start_frame: int, step: int, shape: Sequence[int]) -> Tensor:
        """See `vidk.rollout.noise.Noise`."""
        return super().__call__(start_frame, step, shape) + self._pattern[: shape[1]]
