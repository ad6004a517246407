"""3-D RoPE in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def token_angles(
    tokens: int,
    frame_pos: Tensor,
    time_freqs: Tensor,
    space_freqs: Tensor,
    height: int,
    width: int,
    token_offset: int,
    slice_tokens: int | None,
) -> Tensor:
    """Return the (cos, sin) of each token, `[S, D / 2, 2]`; identity for padding tokens."""
    frame_tokens = height * width
    c = frame_tokens if slice_tokens is None else slice_tokens
    j = torch.arange(tokens, device=frame_pos.device)
    g = j // c * frame_tokens + token_offset + j % c
    real = g < frame_pos.size(0) * frame_tokens
    g = torch.where(real, g, 0)
    if frame_pos.size(0) == 0:
        pairs = time_freqs.size(1) + 2 * space_freqs.size(1)
        freqs = time_freqs.new_zeros((tokens, pairs, 2))
    else:
        in_frame = g % frame_tokens
        freqs = torch.cat(
            [
                time_freqs[frame_pos.long()[g // frame_tokens]],
                space_freqs[in_frame // width],
                space_freqs[in_frame % width],
            ],
            dim=1,
        )
    identity = freqs.new_tensor([1.0, 0.0])
    return torch.where(real[:, None, None], freqs, identity)


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
    """See `vidk.ops.rope_3d`; float64 arithmetic, one rounding.

    Tables may also be float64, which gives the oracle for the float32 tables themselves.
    """
    cos, sin = (
        token_angles(
            x.size(1), frame_pos, time_freqs, space_freqs, height, width, token_offset, slice_tokens
        )
        .double()[:, None]
        .unbind(-1)
    )
    even, odd = x.double().unflatten(-1, (-1, 2)).unbind(-1)
    pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return pairs.flatten(-2).to(x.dtype)


def rope_3d_public(
    x: Tensor, freqs: Tensor, start_frame: int, grid: tuple[int, int, int]
) -> Tensor:
    """Rotate as the public causal Wan code does: complex128 products, sample by sample.

    Parameters
    ----------
    x : `[B, S, H, D]`.
    freqs : `[positions, D / 2]` complex128, the three bands side by side.
    start_frame : frame index of the block's first frame.
    grid : frames, height, width of the block.
    """
    frames, height, width = grid
    pairs = x.size(-1) // 2
    space = pairs // 3
    time_band, row_band, column_band = freqs.split([pairs - 2 * space, space, space], dim=1)
    shape = (frames, height, width, -1)
    tokens = frames * height * width
    out = []
    for sample in x:
        z = torch.view_as_complex(sample[:tokens].to(torch.float64).unflatten(-1, (-1, 2)))
        angles = torch.cat(
            [
                time_band[start_frame : start_frame + frames, None, None].expand(shape),
                row_band[None, :height, None].expand(shape),
                column_band[None, None, :width].expand(shape),
            ],
            dim=-1,
        ).reshape(tokens, 1, -1)
        rotated = torch.view_as_real(z * angles).flatten(-2)
        out.append(torch.cat([rotated, sample[tokens:]]))
    return torch.stack(out).type_as(x)
