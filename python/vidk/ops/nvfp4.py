"""`vidk::nvfp4_quantize`: E2M1 codes with an E4M3 scale per 16 elements."""

from __future__ import annotations

import torch
from torch import Tensor

from vidk.ops import _check
from vidk.ops._library import define

SCHEMA = 'nvfp4_quantize(Tensor x, *, str recipe="4/6") -> (Tensor, Tensor)'
BLOCK = 16
RECIPES = ("plain", "4/6", "search")


def _fake(x: Tensor, *, recipe: str = "4/6") -> tuple[Tensor, Tensor]:
    op = "nvfp4_quantize"
    _check.activation(op, "x", x)
    _check.check(x.size(3) % BLOCK == 0, op, "x", f"D = {x.size(3)}", "a multiple of 16")
    _check.check(recipe in RECIPES, op, "recipe", f"'{recipe}'", "'plain', '4/6' or 'search'")
    rows = x.shape[:3]
    return (
        x.new_empty((*rows, x.size(3) // 2), dtype=torch.uint8),
        x.new_empty((*rows, x.size(3) // BLOCK), dtype=torch.float8_e4m3fn),
    )


define(SCHEMA, _fake)


def nvfp4_quantize(x: Tensor, *, recipe: str = "4/6") -> tuple[Tensor, Tensor]:
    """Quantise to NVFP4: an E2M1 code for each element, an E4M3 scale for each block of 16.

    Blocks lie along D. A block's codes are its elements divided by its scale, rounded to nearest
    even and saturated at 6; an element stands for code times scale. No scale is shared by two
    tokens, so the result of a token depends on nothing but that token. All arithmetic is float32 in
    a fixed order: every device and instruction set gives the same bits.

    A block of zeros, or one too small for the smallest scale, has scale 0. Infinite elements
    saturate. A block that holds a NaN has the scale NaN (0x7F), and codes 7.

    Parameters
    ----------
    x : `[B, S, H, D]` float32, bfloat16 or float16, any strides with contiguous D; D a multiple
        of 16.
    recipe : how a block's scale is chosen. `"plain"`: largest magnitude / 6. `"4/6"`: that, or
        largest magnitude / 4, whichever has the smaller squared error. `"search"`: the best of
        the eight consecutive E4M3 numbers that begin at largest magnitude / 7.

    Returns
    -------
    packed : `[B, S, H, D / 2]` uint8, contiguous, two codes a byte, the even element in the low
        nibble.
    scales : `[B, S, H, D / 16]` float8_e4m3fn, contiguous.

    Raises
    ------
    RuntimeError
        If the shape, dtype or strides of x do not fit, or the recipe is unknown.

    Source: NVIDIA PTX ISA, `cvt` and block-scaled `mma`; arXiv 2512.02010 for 4/6.
    """
    return torch.ops.vidk.nvfp4_quantize(x, recipe=recipe)
