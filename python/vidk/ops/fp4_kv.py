"""`vidk::qk_norm_rope_nvfp4_kv_write`: RMSNorm, RoPE and the FP4 cache write in one op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vidk.ops import _check
from vidk.ops._library import define
from vidk.ops.fp4_quantize import depth_unit, row_bytes, scale_columns
from vidk.reference.fp4 import RECIPES, tiles_of

SCHEMA = (
    "qk_norm_rope_nvfp4_kv_write(Tensor q, Tensor k, Tensor v, Tensor q_weight, Tensor k_weight, "
    "float eps, Tensor frame_pos, Tensor frame_slot, Tensor time_freqs, Tensor space_freqs, "
    "SymInt height, SymInt width, Tensor(a!) k_codes, Tensor(b!) k_scales, Tensor(c!)? k_mean, "
    'Tensor(d!) v_cache, *, str recipe="default", Tensor? perm=None) -> (Tensor, Tensor, Tensor)'
)
OP = "qk_norm_rope_nvfp4_kv_write"


def _check_dense(
    arg: str,
    x: Tensor,
    sizes: Sequence[int],
    layout: str,
    dtype: torch.dtype,
    expected: str,
    q: Tensor,
) -> None:
    """Check a contiguous tensor of one dtype and shape."""
    _check.shaped(OP, arg, x, sizes, layout)
    _check.check(x.dtype == dtype, OP, arg, f"dtype {_check.dtype_of(x)}", f"dtype {expected}")
    _check.dense(OP, arg, x)
    _check.on_device(OP, arg, x, "q", q)


def _check_recipe(q: Tensor, recipe: str, frame_tokens: int) -> None:
    known = "'plain', 'default', 'accurate', 'accurate256' or 'mxfp8'"
    _check.check(recipe in RECIPES, OP, "recipe", f"'{recipe}'", known)
    unit, dim = depth_unit(recipe), q.size(3)
    expected = f"a multiple of {unit} for the recipe '{recipe}'"
    _check.check(dim >= 1 and dim % unit == 0, OP, "q", f"D = {dim}", expected)
    tokens = q.size(1)
    expected = f"whole frames of {frame_tokens}"
    _check.check(tokens % frame_tokens == 0, OP, "q", f"{tokens} tokens", expected)


def _check_values(v_cache: Tensor, q: Tensor, frame_tokens: int) -> None:
    got = f"shape {_check.shape_of(v_cache)}"
    _check.check(v_cache.dim() == 4, OP, "v_cache", got, "4 dimensions [B, S_cap, H, D]")
    _check.check(
        v_cache.dtype in (q.dtype, torch.float8_e4m3fn),
        OP,
        "v_cache",
        f"dtype {_check.dtype_of(v_cache)}",
        f"the dtype {_check.dtype_of(q)} of q, or float8_e4m3fn",
    )
    b, capacity, h, dim = v_cache.shape
    _check.check(
        b == q.size(0) and h == q.size(2) and dim == q.size(3),
        OP,
        "v_cache",
        got,
        f"[B, S_cap, H, D] with the B, H and D of q {_check.shape_of(q)}",
    )
    expected = f"whole slots of {frame_tokens}"
    _check.check(capacity % frame_tokens == 0, OP, "v_cache", f"{capacity} rows", expected)
    _check.unit_stride(OP, "v_cache", v_cache)
    _check.on_device(OP, "v_cache", v_cache, "q", q)


def _check_keys(
    k_codes: Tensor,
    k_scales: Tensor,
    k_mean: Tensor | None,
    capacity: int,
    q: Tensor,
    frame_tokens: int,
    recipe: str,
) -> None:
    b, _, h, dim = q.shape
    tiles = capacity // frame_tokens * tiles_of(frame_tokens)
    size: tuple[int, ...] = (b, h, capacity, row_bytes(dim, recipe))
    _check_dense("k_codes", k_codes, size, "[B, H, S_cap, bytes]", torch.uint8, "uint8", q)
    for_recipe = f" for the recipe '{recipe}'"
    dtype = scale_dtype(recipe)
    size = (b, h, tiles, scale_columns(dim, recipe) // 4, 32, 4, 4)
    layout = "[B, H, tiles of 128 rows, scales / 4, 32, 4, 4]"
    expected = str(dtype).removeprefix("torch.") + for_recipe
    _check_dense("k_scales", k_scales, size, layout, dtype, expected, q)
    if RECIPES[recipe].mean:
        _check.check(k_mean is not None, OP, "k_mean", "None", "a tensor" + for_recipe)
    else:
        _check.check(k_mean is None, OP, "k_mean", "a tensor", "None" + for_recipe)
    if k_mean is not None:
        layout = "[B, H, tiles of 128 rows, D]"
        size = (b, h, tiles, dim)
        _check_dense("k_mean", k_mean, size, layout, torch.bfloat16, "bfloat16", q)


def scale_dtype(recipe: str) -> torch.dtype:
    """Return the type of a recipe's scales."""
    return torch.float8_e8m0fnu if RECIPES[recipe].scale == "mxfp8" else torch.float8_e4m3fn


def _fake(
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
    _check.activation(OP, "q", q)
    _check.like(OP, "k", k, "q", q)
    _check.like(OP, "v", v, "q", q)
    _check.norm_weight(OP, "q_weight", q_weight, "q", q)
    _check.norm_weight(OP, "k_weight", k_weight, "q", q)
    _check.check(eps >= 0, OP, "eps", f"{eps}", "a value of at least 0")
    _check.int_vector(OP, "frame_pos", frame_pos, "q", q)
    _check.int_vector(OP, "frame_slot", frame_slot, "q", q)
    _check.rope_tables(OP, "q", q, time_freqs, space_freqs, height, width)
    frame_tokens = height * width
    _check_recipe(q, recipe, frame_tokens)
    _check.block_fits(OP, "q", q, "frame_pos", frame_pos, frame_tokens)
    _check.block_fits(OP, "q", q, "frame_slot", frame_slot, frame_tokens)
    _check_values(v_cache, q, frame_tokens)
    _check_keys(k_codes, k_scales, k_mean, v_cache.size(1), q, frame_tokens, recipe)
    b, tokens, h, dim = q.shape
    if perm is not None:
        _check_dense("perm", perm, (h, dim), "[H, D]", torch.int32, "int32", q)
    scales = (b, h, tiles_of(tokens), scale_columns(dim, recipe) // 4, 32, 4, 4)
    return (
        q.new_empty((b, tokens if RECIPES[recipe].mean else 0, h, dim)),
        q.new_empty((b, h, tokens, row_bytes(dim, recipe)), dtype=torch.uint8),
        q.new_empty(scales, dtype=scale_dtype(recipe)),
    )


define(SCHEMA, _fake)


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
    """Normalise, rotate and quantise a block's q and k; write k and v to their cache slots.

    q and k are what `qk_norm_rope_kv_write` makes of them, rounded to their dtype; then each row is
    quantised as `vidk.reference.fp4` defines, in float32, with the same bits on every device and
    instruction set. A slot shares no scale and no mean with another: a key is final when it is
    written, and writing a frame again changes that frame's slot and nothing else.

    Parameters
    ----------
    q, k, v : `[B, S, H, D]` float32, bfloat16 or float16, any strides with contiguous D; D a
        multiple of 64 (`"mxfp8"`: 128); S whole frames of `height * width` tokens, F at most.
        On CUDA bfloat16 with D = 128 and rows aligned to 16 bytes.
    q_weight, k_weight : `[H * D]`, contiguous, the dtype of q.
    eps : added to the mean square.
    frame_pos, frame_slot : `[F]` int32, table row and cache slot of each frame; slots distinct.
    time_freqs, space_freqs : float32 tables, see `rope_3d`.
    height, width : tokens in a column and in a row of one latent frame.
    k_codes : `[B, H, S_cap, bytes]` uint8, contiguous; S_cap whole slots of `height * width` rows;
        `(D + 2 T) / 2` bytes, with T = 32 for `"accurate"` and 64 for `"accurate256"`, else 0; D
        bytes for `"mxfp8"`. Mutated.
    k_scales : `[B, H, tiles, columns / 4, 32, 4, 4]`, contiguous: tiles of 128 rows and 4 columns,
        swizzled as block-scaled tensor-core instructions read them, `ceil(height * width / 128)` a
        slot; a column per 16 channels in float8_e4m3fn (`"mxfp8"`: per 32, float8_e8m0fnu). Rows
        past a slot's last are never written and must be zero. Mutated.
    k_mean : `[B, H, tiles, D]` bfloat16, contiguous: what has been taken off the keys of each tile;
        None for `"plain"` and `"mxfp8"`. Mutated.
    v_cache : `[B, S_cap, H, D]`, contiguous D: the dtype of q, or float8_e4m3fn, to which values
        are rounded and saturated. Mutated.
    recipe : `"plain"`, scales as published kernels choose them; `"default"`, 4/6 scales and means;
        `"accurate"` and `"accurate256"`, which also carry the rounding errors of each head's T
        leading channels; `"mxfp8"`.
    perm : `[H, D]` int32, contiguous, or None: each head's channels in the order of quantisation;
        those of the largest magnitudes should lead. The same for every block of a cache.

    Returns
    -------
    q normalised and rotated, `[B, S, H, D]`, for the correction by the means, or `[B, 0, H, D]`
    where there are none; its codes `[B, H, S, bytes]`, permuted as the keys are; and their scales
    `[B, H, ceil(S / 128), columns / 4, 32, 4, 4]`, zero past the last row.

    Raises
    ------
    RuntimeError
        As `qk_norm_rope_kv_write`, and for caches that do not fit the recipe; nothing has been
        written then.

    Source: Self-Forcing `CausalWanSelfAttention.forward`, steps 1 and 4; NVIDIA PTX ISA,
    block-scaled `mma`; arXiv 2512.02010 for 4/6.
    """
    return torch.ops.vidk.qk_norm_rope_nvfp4_kv_write(
        q,
        k,
        v,
        q_weight,
        k_weight,
        eps,
        frame_pos,
        frame_slot,
        time_freqs,
        space_freqs,
        height,
        width,
        k_codes,
        k_scales,
        k_mean,
        v_cache,
        recipe=recipe,
        perm=perm,
    )
