"""Attention over a cache prefix and over padded text, in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, kv_len: Tensor, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """See `vidk.ops.attention`; float64 arithmetic, one rounding."""
    n = int(kv_len)
    return _attend(q, k_cache[:, :n], v_cache[:, :n], scale)


def cross_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context_lens: Tensor,
    *,
    pad: str = "trained",
    scale: float | None = None,
) -> Tensor:
    """See `vidk.ops.cross_attention`: every pad key attended ("trained") or none ("mask")."""
    rows = []
    for b, n in enumerate(context_lens.tolist()):
        end = k.size(1) if pad == "trained" else n
        row = slice(b, b + 1)
        rows.append(_attend(q[row], k[row, :end], v[row, :end], scale)[0])
    return torch.cat(rows) if rows else q.new_empty(q.shape)


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    scale = 1 / math.sqrt(q.size(-1)) if scale is None else scale
    if k.size(1) == 0:
        lse = torch.full((q.size(0), q.size(2), q.size(1)), -math.inf, device=q.device)
        return q.new_zeros(q.shape), lse
    logits = torch.einsum("bshd,bthd->bhst", q.double(), k.double()) * scale
    out = torch.einsum("bhst,bthd->bshd", logits.softmax(-1), v.double())
    return out.to(q.dtype).contiguous(), logits.logsumexp(-1).float()


def attention_public(q: Tensor, k_cache: Tensor, v_cache: Tensor, start: int, end: int) -> Tensor:
    """Attend to a slice of the cache through the library's attention, as the public code does."""
    k, v = k_cache[:, start:end], v_cache[:, start:end]
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2).contiguous()


def cross_attention_public(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend to all text keys, padding included, as the public code does."""
    return attention_public(q, k, v, 0, k.size(1))
