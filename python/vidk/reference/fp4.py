"""FP4 attention and its key cache in plain PyTorch: the layout, the recipes, the arithmetic.

A row of q or k becomes codes and block scales (see `nvfp4`); keys are cached so. Codes lie row by
row, `[B, H, S, bytes]`. Scales lie in tiles of 128 rows, swizzled as block-scaled tensor-core
instructions read them, and every frame slot of the cache begins a tile of its own: nothing that
rows share straddles two slots, so a slot can be overwritten while its neighbours stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vidk.reference import nvfp4

TILE = 128  # rows of q or k that share a block of scales; keys of a tile share a mean
SAMPLES = 16  # rows of a tile that its mean is taken over


@dataclass(frozen=True)
class Recipe:
    """How rows are quantised.

    - `scale`: the choice of NVFP4 scales, see `nvfp4.block_scales`; or "mxfp8".
    - `cross`: leading channels whose rounding errors are carried too, as further columns: the dot
      product of `[q, q_hi, q_lo]` and `[k, k_lo, k_hi]` has the first two terms of the error.
    - `mean`: a mean is taken off the keys of each tile, and q times the mean is added to logits.
    """

    scale: str
    cross: int = 0
    mean: bool = False


RECIPES = {
    "plain": Recipe("plain"),
    "default": Recipe("4/6", mean=True),
    "accurate": Recipe("4/6", cross=32, mean=True),
    "accurate256": Recipe("4/6", cross=64, mean=True),
    "mxfp8": Recipe("mxfp8"),
}


def tiles_of(rows: int) -> int:
    """Return the tiles that rows of one slot take."""
    return -(-rows // TILE)


def encode_rows(
    x: Tensor, role: str, recipe: Recipe, perm: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Quantise rows `[..., D]` float32 to codes `[..., bytes]` uint8 and scales `[..., columns]`.

    `perm`, int `[..., D]` that broadcasts, names the channel that comes 1st, 2nd, ...: those with
    the largest magnitudes should lead where the recipe carries their errors.
    """
    if perm is not None:
        x = x.gather(-1, perm.long().expand(x.shape))
    if recipe.scale == "mxfp8":
        code, scales = nvfp4.mxfp8_quantize(x)
        return code.view(torch.uint8), scales
    code, scales = nvfp4.quantize(x, recipe.scale)
    n = recipe.cross
    if n:
        top, top_scales = code[..., :n], scales[..., : n // nvfp4.BLOCK]
        low, low_scales = nvfp4.quantize(
            x[..., :n] - nvfp4.dequantize(top, top_scales), recipe.scale
        )
        extra = [(top, top_scales), (low, low_scales)]
        if role == "k":
            extra.reverse()
        code = torch.cat([code, *(c for c, _ in extra)], -1)
        parts = [s.view(torch.uint8) for s in (scales, *(s for _, s in extra))]
        scales = torch.cat(parts, -1).view(scales.dtype)
    return nvfp4.pack(code), scales


def decode_rows(codes: Tensor, scales: Tensor) -> Tensor:
    """Return the float32 values `[..., depth]` of `encode_rows`."""
    if scales.dtype == torch.float8_e8m0fnu:
        return nvfp4.mxfp8_dequantize(codes.view(torch.float8_e4m3fn), scales)
    return nvfp4.nvfp4_dequantize(codes, scales)


def key_means(x: Tensor) -> Tensor:
    """Return the mean of each tile of keys `[..., R, D]` float32, `[..., tiles, D]` bfloat16.

    It is taken over 16 rows, evenly spaced in what the tile has. Any vector would do, because
    attention adds q times the very same vector back; this one costs next to nothing to get.
    """
    rows = x.size(-2)
    whole = rows - rows % TILE
    samples = [x[..., :whole, :].unflatten(-2, (-1, TILE))[..., :: TILE // SAMPLES, :]]
    if whole < rows:
        # One by one: a list of rows would have to be copied to the device, which waits for it.
        places = [whole + i * (rows - whole) // SAMPLES for i in range(SAMPLES)]
        samples.append(torch.stack([x.select(-2, i) for i in places], -2).unsqueeze(-3))
    means = nvfp4.tree_sum(torch.cat(samples, -3).transpose(-1, -2)) * (1 / SAMPLES)
    return means.bfloat16()


def encode_slots(
    x: Tensor, role: str, recipe: Recipe, perm: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Quantise `[B, F, R, H, D]`: codes `[B, H, F, R, bytes]`, tiles of scales, means if any."""
    x = x.permute(0, 3, 1, 2, 4).float()
    mean = None
    if role == "k" and recipe.mean:
        mean = key_means(x)
        x = x - mean.float().repeat_interleave(TILE, -2)[..., : x.size(-2), :]
    perm = None if perm is None else perm[:, None, None]
    codes, scales = encode_rows(x, role, recipe, perm)
    return codes, nvfp4.swizzle_scales(scales), mean


def fp4_quantize(
    x: Tensor,
    *,
    role: str,
    recipe: str,
    frame_tokens: int | None = None,
    perm: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Quantise q, or a whole cache of k, for `fp4_attention`: codes, scales and means (k only).

    x : `[B, S, H, D]`. For k, S is a multiple of `frame_tokens`, the rows of a slot; q is one slot.
    Returns codes `[B, H, S, bytes]` uint8; scales `[B, H, tiles, columns / 4, 32, 4, 4]`; means
    `[B, H, tiles, D]` bfloat16 or None.
    """
    rows = x.size(1) if frame_tokens is None else frame_tokens
    slots = x.unflatten(1, (-1, rows))
    codes, scales, mean = encode_slots(slots, role, RECIPES[recipe], perm)
    flat = None if mean is None else mean.flatten(2, 3)
    return codes.flatten(2, 3).contiguous(), scales.flatten(2, 3).contiguous(), flat


def unswizzled(scales: Tensor, rows: int, slots: int = 1) -> Tensor:
    """Return scales row by row, `[B, H, slots * rows, columns]`, of `[B, H, tiles, ...]`."""
    per_slot = scales.unflatten(2, (slots, -1))
    return nvfp4.unswizzle_scales(per_slot, rows, 4 * scales.size(3)).flatten(2, 3)
