"""Muon for the matrices inside the layers, AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def orthogonal(x: Tensor, steps: int = 5) -> Tensor:
    """Return the nearest semi-orthogonal matrices of `[M, a, b]`, roughly (Newton-Schulz)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.size(1) > x.size(2)
    x = (x.mT if tall else x).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return (x.mT if tall else x).float()


def shared(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return `function(x)` with the rows of x dealt out to the ranks."""
    if not dist.is_initialized():
        return function(x)
    ranks = dist.get_world_size()
    if x.size(0) % ranks:
        return function(x)
    own = function(x.chunk(ranks)[dist.get_rank()]).contiguous()
    parts = [torch.empty_like(own) for _ in range(ranks)]
    dist.all_gather(parts, own)
    return torch.cat(parts)


class Muon:
    """Muon over matrices, those of one shape in one product; steps matched to AdamW's in rms.

    Source: Jordan 2024; the factor 0.2 sqrt(max(a, b)) is of Moonlight, Liu et al. 2025.
    """

    def __init__(self, params: Sequence[Tensor], momentum: float = 0.95) -> None:
        self.params, self.momentum = list(params), momentum
        self.moments = [torch.zeros_like(p) for p in self.params]
        self.shapes = sorted({tuple(p.shape) for p in self.params})

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor], lr: float, decay: float) -> None:
        """Apply one step."""
        for m, g in zip(self.moments, grads, strict=True):
            m.lerp_(g, 1 - self.momentum)
        for shape in self.shapes:
            which = [i for i, p in enumerate(self.params) if tuple(p.shape) == shape]
            # Nesterov.
            u = torch.stack([grads[i].lerp(self.moments[i], self.momentum) for i in which])
            u = shared(orthogonal, u) * (0.2 * max(shape) ** 0.5)
            for i, d in zip(which, u, strict=True):
                self.params[i].mul_(1 - lr * decay).sub_(d, alpha=lr)
