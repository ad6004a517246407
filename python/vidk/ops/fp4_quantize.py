"""`vidk.fp4_quantize`: q and k of one's own, for `fp4_attention`; torch ops around a native one."""

from __future__ import annotations

import torch
from torch import Tensor

from vidk.ops import _check
from vidk.reference import nvfp4
from vidk.reference.fp4 import RECIPES, TILE, Recipe, key_means

ROLES = ("q", "k")


def depth_unit(recipe: str) -> int:
    """Return what the head dim must be a multiple of: a tile of scales has four columns."""
    return 4 * (32 if RECIPES[recipe].scale == "mxfp8" else nvfp4.BLOCK)


def depth(head_dim: int, recipe: str) -> int:
    """Return the columns of a quantised row: the head dim and the carried rounding errors."""
    return head_dim + 2 * RECIPES[recipe].cross


def row_bytes(head_dim: int, recipe: str) -> int:
    """Return the bytes of a row's codes."""
    return depth(head_dim, recipe) // (1 if RECIPES[recipe].scale == "mxfp8" else 2)


def scale_columns(head_dim: int, recipe: str) -> int:
    """Return the scales of a row."""
    return depth(head_dim, recipe) // (depth_unit(recipe) // 4)


def _check_arguments(
    x: Tensor, role: str, recipe: str, frame_tokens: int | None, perm: Tensor | None
) -> None:
    op = "fp4_quantize"
    _check.check(role in ROLES, op, "role", f"'{role}'", "'q' or 'k'")
    known = ", ".join(f"'{name}'" for name in RECIPES)
    _check.check(recipe in RECIPES, op, "recipe", f"'{recipe}'", f"one of {known}")
    _check.activation(op, "x", x)
    unit = depth_unit(recipe)
    _check.check(x.size(3) % unit == 0, op, "x", f"D = {x.size(3)}", f"a multiple of {unit}")
    if frame_tokens is not None:
        _check.check(
            role == "k" and frame_tokens >= 1,
            op,
            "frame_tokens",
            f"{frame_tokens} for role '{role}'",
            "at least 1, and only for k",
            "q is one slot",
        )
        _check.check(
            x.size(1) % frame_tokens == 0,
            op,
            "x",
            f"{x.size(1)} tokens",
            f"whole frames of {frame_tokens}",
        )
    if perm is not None:
        _check.check(
            perm.dim() == 2 and perm.size(0) == x.size(2) and perm.size(1) == x.size(3),
            op,
            "perm",
            f"shape {_check.shape_of(perm)}",
            f"shape [H, D] = [{x.size(2)}, {x.size(3)}]",
        )


def _native(x: Tensor, scale: str) -> tuple[Tensor, Tensor]:
    """Quantise `[B, H, F, R, D]`; the op takes four dimensions."""
    codes, scales = torch.ops.vidk.nvfp4_quantize(x.flatten(2, 3).contiguous(), recipe=scale)
    return codes.unflatten(2, x.shape[2:4]), scales.unflatten(2, x.shape[2:4])


def _nvfp4(x: Tensor, role: str, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Quantise rows as `vidk.reference.fp4.encode_rows` does; scales in uint8."""
    codes, scales = _native(x, recipe.scale)
    columns = [(codes, scales)]
    n = recipe.cross
    if n:
        top = codes[..., : n // 2], scales[..., : n // nvfp4.BLOCK]
        low = _native(x[..., :n] - nvfp4.nvfp4_dequantize(*top), recipe.scale)
        columns += (top, low) if role == "q" else (low, top)
    return (
        torch.cat([c for c, _ in columns], -1),
        torch.cat([s.view(torch.uint8) for _, s in columns], -1),
    )


def fp4_quantize(
    x: Tensor,
    *,
    role: str,
    recipe: str = "default",
    frame_tokens: int | None = None,
    perm: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Quantise q, or the keys of whole frames, for `fp4_attention`.

    For q and k that do not come from `qk_norm_rope_nvfp4_kv_write`, which is faster. Not an op of
    its own: `nvfp4_quantize` and torch ops, which `torch.compile` takes without a break.

    Parameters
    ----------
    x : `[B, S, H, D]` float32, bfloat16 or float16, any strides with contiguous D; D a multiple of
        64, of 128 for `"mxfp8"`.
    role : `"q"` or `"k"`.
    recipe : `"plain"`, `"default"`, `"accurate"`, `"accurate256"` or `"mxfp8"`; the same for q
        and k.
    frame_tokens : k only: rows of a frame slot, of which S is a multiple; default S. Each slot
        begins a tile of scales of its own, so that it can be replaced alone.
    perm : `[H, D]` int32, the order of the channels of each head, those with the largest
        magnitudes first; the same for q and k. Of use to the accurate recipes, which carry the
        rounding errors of the first 32 or 64.

    Returns
    -------
    codes : `[B, H, S, bytes]` uint8; bytes are 64 at D = 128, 96 for `"accurate"`, 128 for
        `"accurate256"` and `"mxfp8"`.
    scales : `[B, H, tiles, columns / 4, 32, 4, 4]` float8_e4m3fn, or float8_e8m0fnu for
        `"mxfp8"`: tiles of 128 rows, swizzled, padded with zeros.
    mean : k of recipes with a mean: `[B, H, tiles, D]` bfloat16, taken off the keys; else None.

    Raises
    ------
    RuntimeError
        If a shape, dtype or stride does not fit, or role or recipe is unknown.
    """
    _check_arguments(x, role, recipe, frame_tokens, perm)
    rows = x.size(1) if frame_tokens is None else frame_tokens
    chosen = RECIPES[recipe]
    x = x.unflatten(1, (-1, rows)).permute(0, 3, 1, 2, 4).float()
    mean = None
    if role == "k" and chosen.mean:
        mean = key_means(x)
        # By its bits: a compiler drops a rounding to bfloat16 that `.float()` would follow.
        rounded = (mean.view(torch.int16).int() << 16).view(torch.float32)
        x = x - rounded.repeat_interleave(TILE, -2)[..., :rows, :]
    if perm is not None:
        x = x.gather(-1, perm.long()[:, None, None].expand(x.shape))
    if chosen.scale == "mxfp8":
        codes, scales = nvfp4.mxfp8_codes(x)
        codes = codes.view(torch.uint8)
    else:
        codes, scales = _nvfp4(x, role, chosen)
    tiles = nvfp4.swizzle_scales(scales).flatten(2, 3).contiguous()
    return (
        codes.flatten(2, 3).contiguous(),
        _as_scales(tiles, chosen),
        None if mean is None else mean.flatten(2, 3),
    )


def _as_scales(tiles: Tensor, recipe: Recipe) -> Tensor:
    if recipe.scale != "mxfp8":
        return tiles.view(torch.float8_e4m3fn)
    # Not a view: Inductor has none of this type on CPUs, but it hands conversions to the library.
    return nvfp4.e8m0_value(tiles.flatten()).to(torch.float8_e8m0fnu).view(tiles.shape)
