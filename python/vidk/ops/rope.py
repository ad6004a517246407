"""`vidk::rope_3d`: local 3-D rotary embedding with a global frame index."""

from __future__ import annotations

import torch
from torch import Tensor

from vidk.ops import _check
from vidk.ops._library import define

SCHEMA = (
    "rope_3d(Tensor x, Tensor frame_pos, Tensor time_freqs, Tensor space_freqs, "
    "SymInt height, SymInt width, *, SymInt token_offset=0, SymInt? slice_tokens=None) -> Tensor"
)


def _fake(
    x: Tensor,
    frame_pos: Tensor,
    time_freqs: Tensor,
    space_freqs: Tensor,
    height: int,
    width: int,
    *,
    token_offset: int = 0,
    slice_tokens: int | None = None,
) -> Tensor:
    op = "rope_3d"
    _check.activation(op, "x", x)
    _check.int_vector(op, "frame_pos", frame_pos, "x", x)
    _check.rope_tables(op, "x", x, time_freqs, space_freqs, height, width)
    _check.shard(op, height, width, token_offset, slice_tokens)
    return x.new_empty(x.shape)


define(SCHEMA, _fake)


def rope_3d(
    x: Tensor,
    frame_pos: Tensor,
    time_freqs: Tensor,
    space_freqs: Tensor,
    height: int,
    width: int,
    *,
    token_offset: int = 0,
    slice_tokens: int | None = None,
) -> Tensor:
    """Rotate the tokens of one block, or of one rank's shard of it.

    Token `j` of `x` is token `g = (j // c) * h * w + token_offset + j % c` of the block, with
    `c = slice_tokens` (default `h * w`, so that `g = token_offset + j`). It lies in frame
    `g // (h * w)`, row `g % (h * w) // w`, column `g % w`, and is rotated by the angles of
    `frame_pos[frame]`, row and column. Tokens past the last frame (padding) pass unchanged.

    Parameters
    ----------
    x : `[B, S, H, D]` float32, bfloat16 or float16, any strides with contiguous D; D even.
        Pairs are interleaved: `(x[2i], x[2i + 1])`.
    frame_pos : `[F]` int32, row of `time_freqs` for each frame of the block.
    time_freqs : `[positions, n_t, 2]` float32, (cos, sin) of the time band's pairs.
    space_freqs : `[positions, n_s, 2]` float32, the same for the row and the column band;
        `n_t + 2 * n_s = D / 2`.
    height, width : tokens in a column and in a row of one latent frame.
    token_offset : contiguous shards: index in the block of the first token of `x`; spatial slices:
        index in each frame of the first token of the slice.
    slice_tokens : tokens of each frame that `x` holds, for spatial slices of every frame.

    Returns
    -------
    `[B, S, H, D]`, contiguous, the dtype of `x`; float32 arithmetic, one rounding.

    Raises
    ------
    RuntimeError
        If a shape, dtype, stride or device does not fit, or (CPU) a position is past the table.

    Source: Wan 2.1 `rope_apply`; Self-Forcing `causal_rope_apply`; arXiv 2603.06664.
    """
    return torch.ops.vidk.rope_3d(
        x,
        frame_pos,
        time_freqs,
        space_freqs,
        height,
        width,
        token_offset=token_offset,
        slice_tokens=slice_tokens,
    )
