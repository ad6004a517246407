"""RMSNorm, RoPE and cache write in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from vidk.reference.kv_cache import kv_cache_write, kv_cache_write_public
from vidk.reference.rope import rope_3d, rope_3d_public


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension; statistics in float32, rounded, then weighted."""
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)).type_as(x) * weight


def qk_norm_rope_kv_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    frame_pos: Tensor,
    frame_slot: Tensor,
    time_freqs: Tensor,
    space_freqs: Tensor,
    height: int,
    width: int,
    k_cache: Tensor,
    v_cache: Tensor,
) -> Tensor:
    """See `vidk.ops.qk_norm_rope_kv_write`."""
    tables = (frame_pos, time_freqs, space_freqs, height, width)
    rotated_q, rotated_k = (
        rope_3d(rms_norm(x.flatten(2), w, eps).view(x.shape), *tables)
        for x, w in ((q, q_weight), (k, k_weight))
    )
    kv_cache_write(rotated_k, v, k_cache, v_cache, frame_slot, height * width)
    return rotated_q


def qk_norm_rope_kv_write_public(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    freqs: Tensor,
    start_frame: int,
    grid: tuple[int, int, int],
    k_cache: Tensor,
    v_cache: Tensor,
    row: int,
) -> Tensor:
    """The public op sequence: norm, complex128 RoPE and slice copies, one after the other."""
    q = rms_norm(q.flatten(2), q_weight, eps).view(q.shape)
    k = rms_norm(k.flatten(2), k_weight, eps).view(k.shape)
    q = rope_3d_public(q, freqs, start_frame, grid)
    k = rope_3d_public(k, freqs, start_frame, grid)
    kv_cache_write_public(k, v, k_cache, v_cache, row)
    return q
