"""`vidk::kv_cache_write`: a block of keys and values into its frame slots."""

from __future__ import annotations

import torch
from torch import Tensor

from vidk.ops import _check
from vidk.ops._library import define

SCHEMA = (
    "kv_cache_write(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, "
    "Tensor frame_slot, SymInt frame_tokens) -> ()"
)


def _fake(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, frame_slot: Tensor, frame_tokens: int
) -> None:
    op = "kv_cache_write"
    _check.activation(op, "k", k)
    _check.like(op, "v", v, "k", k)
    _check.cache(op, "k_cache", k_cache, "k", k)
    _check.like(op, "v_cache", v_cache, "k_cache", k_cache)
    _check.int_vector(op, "frame_slot", frame_slot, "k", k)
    _check.check(
        frame_tokens >= 1, op, "frame_tokens", f"{frame_tokens}", "at least 1 token a frame"
    )
    _check.block_fits(op, "k", k, "frame_slot", frame_slot, frame_tokens)


define(SCHEMA, _fake)


def kv_cache_write(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, frame_slot: Tensor, frame_tokens: int
) -> None:
    """Write a block of keys and values to the frame slots of a cache, in place.

    Token `i` of the block goes to row `frame_slot[i // n] * n + i % n` of the cache, with
    `n = frame_tokens`. The last frame may be partly filled. Rows that are not named keep their
    bits.

    Parameters
    ----------
    k, v : `[B, S, H, D]` float32, bfloat16 or float16, any strides with contiguous D;
        `S <= F * frame_tokens`.
    k_cache, v_cache : `[B, S_cap, H, D]`, the dtype of `k`, any strides with contiguous D. Mutated.
    frame_slot : `[F]` int32, slot of each frame of the block; all distinct.
    frame_tokens : tokens of one latent frame.

    Raises
    ------
    RuntimeError
        If a shape, dtype, stride or device does not fit, or (CPU) a slot is out of range or named
        twice, or the tensors overlap in memory. Nothing has been written then. On other devices a
        write out of range is skipped.

    Source: the cache update of Self-Forcing `CausalWanSelfAttention`, by slots.
    """
    torch.ops.vidk.kv_cache_write(k, v, k_cache, v_cache, frame_slot, frame_tokens)
