"""Confidence intervals, and how far two videos are from each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
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


def ssim(a: Tensor, b: Tensor) -> float:
    """Return the mean SSIM of uint8 frames `[n, H, W, 3]`: gaussian window of 11, sigma 1.5.

    Source: Wang et al. 2004, on each colour channel.
    """
    place = torch.arange(11, dtype=torch.float32) - 5
    line = torch.exp(-place.square() / (2 * 1.5**2))
    line = line / line.sum()
    x, y = (t.permute(0, 3, 1, 2).flatten(0, 1).unsqueeze(1).float() for t in (a, b))

    def blur(t: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(t, line.view(1, 1, 1, 11)), line.view(1, 1, 11, 1))

    mx, my = blur(x), blur(y)
    vx, vy = blur(x * x) - mx * mx, blur(y * y) - my * my
    cov = blur(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    score = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return float(score.mean())
