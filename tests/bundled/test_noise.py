"""The noise of the bundled model."""

from __future__ import annotations

import torch

from vidk.bundled.noise import BLOCK, PlacedNoise, pattern
from vidk.bundled.scenes import GRID
from vidk.rollout import SeededNoise


def test_every_token_of_a_block_has_a_mean_of_its_own():
    mean = pattern()
    assert mean.shape == (BLOCK, 16, GRID, GRID)
    cells = mean.permute(0, 2, 3, 1).reshape(-1, 16)
    distance = torch.cdist(cells, cells) + 10 * torch.eye(len(cells))
    assert distance.min() > 1


def test_it_is_seeded_noise_around_the_pattern():
    shape = (2, BLOCK, 16, GRID, GRID)
    drawn = PlacedNoise(4)(6, 1, shape)
    assert torch.allclose(drawn - SeededNoise(4)(6, 1, shape), pattern().expand(shape), atol=1e-5)
