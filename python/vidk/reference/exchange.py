"""The two local sides of the sequence->head exchange in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from vidk.reference.kv_cache import cache_rows
from vidk.reference.norm_rope import rms_norm
from vidk.reference.rope import rope_3d, rope_3d_public


def pack(tensors: list[Tensor], ranks: int) -> Tensor:
    """Return `[P, n, B, S, H / P, D]` of n tensors `[B, S, H, D]`."""
    by_rank = torch.stack(tensors).unflatten(3, (ranks, -1))
    return by_rank.permute(3, 0, 1, 2, 4, 5).contiguous()


def qk_norm_rope_pack(
    q: Tensor | None,
    k: Tensor | None,
    v: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    frame_pos: Tensor,
    time_freqs: Tensor,
    space_freqs: Tensor,
    height: int,
    width: int,
    ranks: int,
    *,
    token_offset: int = 0,
    slice_tokens: int | None = None,
) -> Tensor:
    """See `vidk.ops.qk_norm_rope_pack`."""
    tables = (frame_pos, time_freqs, space_freqs, height, width)
    given = []
    for x, w in ((q, q_weight), (k, k_weight)):
        if x is not None and w is not None:
            normed = rms_norm(x.flatten(2), w, eps).view(x.shape)
            given.append(
                rope_3d(normed, *tables, token_offset=token_offset, slice_tokens=slice_tokens)
            )
    if v is not None:
        given.append(v)
    return pack(given, ranks)


def qk_norm_rope_pack_public(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    freqs: Tensor,
    start_frame: int,
    grid: tuple[int, int, int],
    ranks: int,
) -> Tensor:
    """The public op sequence on a rank's whole frames: norm, complex128 RoPE, stack and permute."""
    q = rms_norm(q.flatten(2), q_weight, eps).view(q.shape)
    k = rms_norm(k.flatten(2), k_weight, eps).view(k.shape)
    q = rope_3d_public(q, freqs, start_frame, grid)
    k = rope_3d_public(k, freqs, start_frame, grid)
    return pack([q, k, v], ranks)


def block_tokens(
    ranks: int, shard: int, frame_tokens: int, tokens: int, slice_tokens: int | None
) -> Tensor:
    """Return the block's token of each `[P, S_r]` token that was received; -1 for padding."""
    c = shard if slice_tokens is None else slice_tokens
    j = torch.arange(shard)
    at = torch.arange(ranks)[:, None] * c + j % max(c, 1)
    g = j // max(c, 1) * frame_tokens + at
    padding = g >= tokens
    if slice_tokens is not None:
        padding |= at >= frame_tokens
    return g.masked_fill(padding, -1)


def unpack_kv_write(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    frame_slot: Tensor,
    frame_tokens: int,
    tokens: int,
    *,
    slice_tokens: int | None = None,
) -> None:
    """See `vidk.ops.unpack_kv_write`."""
    g = block_tokens(k.size(0), k.size(2), frame_tokens, tokens, slice_tokens).to(k.device)
    rows = cache_rows(tokens, frame_slot, frame_tokens)
    for x, cache in ((k, k_cache), (v, v_cache)):
        cache[:, rows[g[g >= 0]]] = x.transpose(1, 2)[g >= 0].transpose(0, 1)


def unpack_kv_write_public(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, row: int, tokens: int
) -> None:
    """Write contiguous shards at a row as the public code does: gather the block, then copy."""
    for x, cache in ((k, k_cache), (v, v_cache)):
        block = x.transpose(0, 1).flatten(1, 2)
        cache[:, row : row + tokens] = block[:, :tokens]
