"""Attention on quantised q and a cache of quantised keys, in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

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


def fp4_attention_public(
    q_codes: Tensor,
    q_scales: Tensor,
    k_codes: Tensor,
    k_scales: Tensor,
    v_cache: Tensor,
    end: int,
    frame_tokens: int,
    q: Tensor,
    k_mean: Tensor,
) -> Tensor:
    """Decode q and the keys, and attend through the library's attention.

    The term of the means is that of further columns, q itself against the mean of each key; values
    get as many of zeros, which the library wants.
    """
    slots = k_codes.size(2) // frame_tokens
    token = torch.arange(end, device=q.device)
    tile = token // frame_tokens * fp4.tiles_of(frame_tokens) + token % frame_tokens // fp4.TILE
    q_rows = fp4.decode_rows(q_codes, fp4.unswizzled(q_scales, q.size(1))).to(q.dtype)
    k_rows = fp4.decode_rows(k_codes, fp4.unswizzled(k_scales, frame_tokens, slots)).to(q.dtype)
    queries = torch.cat([q_rows, q.transpose(1, 2)], -1)
    keys = torch.cat([k_rows[:, :, :end], k_mean.to(q.dtype)[:, :, tile]], -1)
    v = v_cache[:, :end].transpose(1, 2).to(q.dtype)
    values = F.pad(v, (0, keys.size(-1) - v.size(-1)))
    scale = 1 / math.sqrt(v.size(-1))
    out = F.scaled_dot_product_attention(queries, keys, values, scale=scale)
    return out[..., : v.size(-1)].transpose(1, 2).contiguous()
