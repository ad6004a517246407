"""Fit the linear encoder: half-whitened principal components of every patch of the world."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from torch import Tensor
from world import mask_table

from vidk.bundled.codec import CHANNELS
from vidk.bundled.grammar import BACKGROUNDS, COLOURS

FILE = "encoder.pt"


def fit() -> tuple[Tensor, Tensor]:
    """Return the weight `[CHANNELS, CELL * CELL * 3]` and the mean `[CELL * CELL * 3]`.

    A channel is divided by the square root of its deviation: full whitening would make noise-like
    edges as important as colours, none would leave edges to the last denoising step.
    """
    masks = mask_table().flatten(0, 4).double()
    rows = []
    for colour, ground in itertools.product(COLOURS.values(), BACKGROUNDS.values()):
        a, b = torch.tensor(colour).double(), torch.tensor(ground).double()
        rows.append((b + masks[..., None] * (a - b)).flatten(1))
    x = torch.cat(rows)
    mean = x.mean(0)
    # Eigenvectors of the covariance are unique but for their sign.
    variance, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    vectors = vectors.flip(1)[:, :CHANNELS].T
    deviation = variance.flip(0)[:CHANNELS].sqrt()
    vectors = vectors * vectors.sum(1, keepdim=True).sign()
    weight = vectors * deviation.rsqrt()[:, None]
    weight = weight * ((x - mean) @ weight.T).square().mean().rsqrt()
    return weight.float(), mean.float()


def fitted(folder: Path) -> tuple[Tensor, Tensor]:
    """Return the encoder of a training folder, which is fitted where there is none yet."""
    path = folder / FILE
    if not path.exists():
        temp = path.with_suffix(".tmp")
        torch.save(fit(), temp)
        temp.replace(path)
    weight, mean = torch.load(path)
    return weight, mean
