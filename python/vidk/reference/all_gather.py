"""AllGather + RoPE in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vidk.reference.rope import rope_3d, rope_3d_public


def all_gather_rope(
    x: Tensor,
    frame_pos: Tensor,
    time_freqs: Tensor,
    space_freqs: Tensor,
    height: int,
    width: int,
    out: Tensor,
    rank: int,
    group_name: str,
    *,
    slice_tokens: int | None = None,
    peers: Tensor | None = None,
) -> None:
    """See `vidk.ops.all_gather_rope`; `peers` changes nothing in what is computed."""
    run = x.size(1) if slice_tokens is None else slice_tokens
    tables = (frame_pos, time_freqs, space_freqs, height, width)
    rotated = rope_3d(x, *tables, token_offset=rank * run, slice_tokens=slice_tokens)
    _gather(rotated, out, group_name)


def all_gather_rope_public(
    x: Tensor,
    freqs: Tensor,
    start_frame: int,
    grid: tuple[int, int, int],
    ranks: int,
    group_name: str,
) -> Tensor:
    """Return the rotated block as public code does it: gather, then complex128 RoPE of all of it.

    `x` holds whole frames, `grid` is that of the block.
    """
    whole = x.new_empty((ranks, *x.shape))
    _gather(x, whole, group_name)
    return rope_3d_public(whole.transpose(0, 1).flatten(1, 2), freqs, start_frame, grid)


def _gather(x: Tensor, out: Tensor, group_name: Any) -> None:
    if out.size(0) == 1:
        out.copy_(x[None])
        return
    from torch._C._distributed_c10d import _resolve_process_group

    group = _resolve_process_group(group_name)
    torch.distributed.all_gather_into_tensor(out.flatten(0, 1), x.contiguous(), group)
