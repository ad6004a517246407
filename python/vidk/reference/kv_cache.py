"""KV-cache block write in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def cache_rows(tokens: int, frame_slot: Tensor, frame_tokens: int) -> Tensor:
    """Return the cache row of each token of a block, `[S]` int64."""
    i = torch.arange(tokens, device=frame_slot.device)
    return frame_slot.long()[i // frame_tokens] * frame_tokens + i % frame_tokens


def kv_cache_write(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, frame_slot: Tensor, frame_tokens: int
) -> None:
    """See `vidk.ops.kv_cache_write`."""
    rows = cache_rows(k.size(1), frame_slot, frame_tokens)
    k_cache[:, rows] = k
    v_cache[:, rows] = v


def kv_cache_write_public(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, row: int) -> None:
    """Write a block at a row as the public code does: two slice copies."""
    k_cache[:, row : row + k.size(1)] = k
    v_cache[:, row : row + v.size(1)] = v
