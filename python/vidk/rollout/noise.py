"""Where a rollout's noise comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Noise(Protocol):
    """Return gaussian noise for a step of a block; step 0 is the block's starting noise."""

    def __call__(self, start_frame: int, step: int, shape: Sequence[int]) -> Tensor:
        """Return a tensor of `shape`, float32 on the CPU, for the block at `start_frame`."""
        ...


class SeededNoise:
    """Noise that depends on the seed, the block's first frame and the step, and on nothing else.

    Streaming, stopping, snapshots and other devices therefore leave a video as it is.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, start_frame: int, step: int, shape: Sequence[int]) -> Tensor:
        """See `Noise`."""
        key = f"{self.seed}/{start_frame}/{step}".encode()
        word = int.from_bytes(hashlib.sha256(key).digest()[:8], "little", signed=True)
        generator = torch.Generator().manual_seed(word)
        return torch.randn(tuple(shape), generator=generator)
