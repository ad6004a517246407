"""qk_norm_rope_nvfp4_kv_write in plain PyTorch; `vidk.reference.fp4` has layout and arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

from vidk.reference import nvfp4
from vidk.reference.fp4 import RECIPES, TILE, encode_slots, fp4_quantize, key_means, tiles_of
from vidk.reference.norm_rope import rms_norm
from vidk.reference.rope import rope_3d, rope_3d_public


def qk_norm_rope_nvfp4_kv_write(
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
    k_codes: Tensor,
    k_scales: Tensor,
    k_mean: Tensor | None,
    v_cache: Tensor,
    *,
    recipe: str = "default",
    perm: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `vidk.ops.qk_norm_rope_nvfp4_kv_write`."""
    tables = (frame_pos, time_freqs, space_freqs, height, width)
    q, k = (
        rope_3d(rms_norm(x.flatten(2), w, eps).view(x.shape), *tables)
        for x, w in ((q, q_weight), (k, k_weight))
    )
    rows = height * width
    frames = q.size(1) // rows
    codes, scales, mean = encode_slots(k.unflatten(1, (-1, rows)), "k", RECIPES[recipe], perm)
    if v_cache.dtype == torch.float8_e4m3fn:
        v = nvfp4.e4m3_encode(v.float())
    slots = frame_slot[:frames].tolist()
    for i, slot in enumerate(slots):
        tokens = slice(slot * rows, (slot + 1) * rows)
        tiles = slice(slot * tiles_of(rows), (slot + 1) * tiles_of(rows))
        k_codes[:, :, tokens] = codes[:, :, i]
        k_scales.view(torch.uint8)[:, :, tiles] = scales.view(torch.uint8)[:, :, i]
        if mean is not None and k_mean is not None:
            k_mean[:, :, tiles] = mean[:, :, i]
        v_cache.view(v.dtype)[:, tokens] = v[:, i * rows : (i + 1) * rows]
    q_codes, q_scales, _ = fp4_quantize(q, role="q", recipe=recipe, perm=perm)
    return q if RECIPES[recipe].mean else q[:, :0], q_codes, q_scales


def qk_norm_rope_nvfp4_kv_write_public(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    freqs: Tensor,
    start_frame: int,
    grid: tuple[int, int, int],
    k_codes: Tensor,
    k_scales: Tensor,
    k_mean: Tensor,
    v_cache: Tensor,
    row: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The default recipe by library ops: norm, complex128 RoPE, quantisation, slice copies."""
    q, k = (
        rope_3d_public(rms_norm(x.flatten(2), w, eps).view(x.shape), freqs, start_frame, grid)
        for x, w in ((q, q_weight), (k, k_weight))
    )
    rows = grid[1] * grid[2]
    slots = k.unflatten(1, (-1, rows)).permute(0, 3, 1, 2, 4).float()
    mean = key_means(slots)
    slots = slots - mean.float().repeat_interleave(TILE, -2)[..., :rows, :]
    codes, scales = nvfp4.nvfp4_quantize_public(slots)
    q_codes, q_scales = nvfp4.nvfp4_quantize_public(q.transpose(1, 2))
    tokens = slice(row, row + k.size(1))
    first = row // rows * tiles_of(rows)
    tiles = slice(first, first + mean.size(2) * mean.size(3))
    k_codes[:, :, tokens] = codes.flatten(2, 3)
    k_scales[:, :, tiles] = nvfp4.swizzle_scales(scales).flatten(2, 3)
    k_mean[:, :, tiles] = mean.flatten(2, 3)
    v_cache[:, tokens] = v
    return q, q_codes, nvfp4.swizzle_scales(q_scales)
