"""Attention on quantised q and a cache of quantised keys, in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vidk.reference import fp4


def fp4_attention(
    q_codes: Tensor,
    q_scales: Tensor,
    k_codes: Tensor,
    k_scales: Tensor,
    v_cache: Tensor,
    kv_len: Tensor,
    frame_tokens: int,
    *,
    q: Tensor | None = None,
    k_mean: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """See `vidk.ops.fp4_attention`; float64 arithmetic, one rounding."""
    n = int(kv_len)
    b, h, s, _ = q_codes.shape
    scale = 1 / math.sqrt(v_cache.size(3)) if scale is None else scale
    dtype = v_cache.dtype if q is None else q.dtype
    dtype = torch.bfloat16 if dtype == torch.float8_e4m3fn else dtype
    if n == 0:
        lse = torch.full((b, h, s), -math.inf, device=q_codes.device)
        return v_cache.new_zeros((b, s, h, v_cache.size(3)), dtype=dtype), lse
    slots = k_codes.size(2) // frame_tokens
    q_rows = fp4.decode_rows(q_codes, fp4.unswizzled(q_scales, s)).double()
    k_rows = fp4.decode_rows(k_codes, fp4.unswizzled(k_scales, frame_tokens, slots)).double()
    logits = q_rows @ k_rows[:, :, :n].transpose(-1, -2)
    if k_mean is not None and q is not None:
        token = torch.arange(n, device=q.device)
        tile = token // frame_tokens * fp4.tiles_of(frame_tokens) + token % frame_tokens // fp4.TILE
        shift = torch.einsum("bshd,bhtd->bhst", q.double(), k_mean.double())
        logits = logits + shift[..., tile]
    logits = logits * scale
    out = torch.einsum("bhst,bthd->bshd", logits.softmax(-1), v_cache[:, :n].double())
    return out.to(dtype).contiguous(), logits.logsumexp(-1).float()
