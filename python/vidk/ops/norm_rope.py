"""`vidk::qk_norm_rope_kv_write`: RMSNorm, RoPE and cache write in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from vidk.ops import _check
from vidk.ops._library import define

SCHEMA = (
    "qk_norm_rope_kv_write(Tensor q, Tensor k, Tensor v, Tensor q_weight, Tensor k_weight, "
    "float eps, Tensor frame_pos, Tensor frame_slot, Tensor time_freqs, Tensor space_freqs, "
    "SymInt height, SymInt width, Tensor(a!) k_cache, Tensor(b!) v_cache) -> Tensor"
)


def _fake(
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
    op = "qk_norm_rope_kv_write"
    _check.activation(op, "q", q)
    _check.like(op, "k", k, "q", q)
    _check.like(op, "v", v, "q", q)
    _check.norm_weight(op, "q_weight", q_weight, "q", q)
    _check.norm_weight(op, "k_weight", k_weight, "q", q)
    _check.check(eps >= 0, op, "eps", f"{eps}", "a value of at least 0")
    _check.int_vector(op, "frame_pos", frame_pos, "q", q)
    _check.int_vector(op, "frame_slot", frame_slot, "q", q)
    _check.rope_tables(op, "q", q, time_freqs, space_freqs, height, width)
    _check.cache(op, "k_cache", k_cache, "k", k)
    _check.like(op, "v_cache", v_cache, "k_cache", k_cache)
    _check.block_fits(op, "q", q, "frame_pos", frame_pos, height * width)
    _check.block_fits(op, "q", q, "frame_slot", frame_slot, height * width)
    return q.new_empty(q.shape)


define(SCHEMA, _fake)


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
    """Normalise and rotate a block's q and k; write k and v to their cache slots; return q.

    RMSNorm runs over all heads of a token (`H * D` channels): statistics in float32, the result
    rounded to the dtype of q, then multiplied by the weight and rounded again, as the original
    model does. Rotation and cache rows are those of `rope_3d` and `kv_cache_write`.

    Parameters
    ----------
    q, k, v : `[B, S, H, D]` float32, bfloat16 or float16, any strides with contiguous D; D even;
        `S <= F * height * width`.
    q_weight, k_weight : `[H * D]`, contiguous, the dtype of q.
    eps : added to the mean square.
    frame_pos, frame_slot : `[F]` int32, table row and cache slot of each frame; slots distinct.
    time_freqs, space_freqs : float32 tables, see `rope_3d`.
    height, width : tokens in a column and in a row of one latent frame.
    k_cache, v_cache : `[B, S_cap, H, D]`, the dtype of q, contiguous D. Mutated.

    Returns
    -------
    `[B, S, H, D]`, contiguous: q normalised and rotated.

    Raises
    ------
    RuntimeError
        As `rope_3d` and `kv_cache_write`; nothing has been written then.

    Source: Self-Forcing `CausalWanSelfAttention.forward`, steps 1 and 4.
    """
    return torch.ops.vidk.qk_norm_rope_kv_write(
        q,
        k,
        v,
        q_weight,
        k_weight,
        eps,
        frame_pos,
        frame_slot,
        time_freqs,
        space_freqs,
        height,
        width,
        k_cache,
        v_cache,
    )
