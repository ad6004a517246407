"""qk_norm_rope_nvfp4_kv_write in plain PyTorch; `vidk.reference.fp4` has layout and arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

from vidk.reference import nvfp4
from vidk.reference.fp4 import RECIPES, encode_slots, fp4_quantize, tiles_of
from vidk.reference.norm_rope import rms_norm
from vidk.reference.rope import rope_3d


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
