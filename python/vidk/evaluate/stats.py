"""Confidence intervals, and how far two videos are from each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_Z = 1.96


def share(hits: Sequence[bool]) -> dict[str, Any]:
    """Return the share of hits with its 95 % Wilson interval."""
    n = len(hits)
    p = sum(hits) / n
    middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return {"share": p, "low": max(0.0, middle - half), "high": min(1.0, middle + half), "n": n}


def mean(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean with its 95 % interval (normal approximation)."""
    x = torch.tensor(values, dtype=torch.float64)
    half = _Z * float(x.std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    centre = float(x.mean())
    return {"mean": centre, "low": centre - half, "high": centre + half, "n": len(values)}


def psnr(a: Tensor, b: Tensor) -> float:
    """Return the PSNR in dB of uint8 tensors of one shape; 99 where they are equal."""
    error = float((a.double() - b.double()).square().mean())
    return min(99.0, 10 * math.log10(255**2 / error)) if error else 99.0


def _gaussian(n: int) -> Tensor:
    """Return the matrix `[n - 10, n]` that blurs n values by a gaussian of 11, sigma 1.5."""
    place = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-place.square() / (2 * 1.5**2))
    matrix = torch.zeros(n - 10, n, dtype=torch.float64)
    for row in range(n - 10):
        matrix[row, row : row + 11] = line / line.sum()
    return matrix


def ssim(a: Tensor, b: Tensor) -> list[float]:
    """Return the SSIM of each pair of uint8 frames `[n, H, W, 3]`, mean of the colour channels.

    Gaussian window of 11, sigma 1.5, whole windows only. Source: Wang et al. 2004.
    """
    down, right = _gaussian(a.size(1)), _gaussian(a.size(2)).T
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    scores = []
    for frames in zip(a, b, strict=True):
        x, y = (frame.permute(2, 0, 1).double() for frame in frames)
        mx, my, xx, yy, xy = (down @ t @ right for t in (x, y, x * x, y * y, x * y))
        vx, vy, cov = xx - mx * mx, yy - my * my, xy - mx * my
        score = (2 * mx * my + c1) * (2 * cov + c2)
        score = score / ((mx * mx + my * my + c1) * (vx + vy + c2))
        scores.append(float(score.mean()))
    return scores
