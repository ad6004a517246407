"""`vidk::fp4_attention`: attention on quantised q and a cache of quantised keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vidk.ops import _check
from vidk.ops._library import define

SCHEMA = (
    "fp4_attention(Tensor q_codes, Tensor q_scales, Tensor k_codes, Tensor k_scales, "
    "Tensor v_cache, Tensor kv_len, SymInt frame_tokens, *, Tensor? q=None, Tensor? k_mean=None, "
    "float? scale=None) -> (Tensor, Tensor)"
)
TILE = 128  # rows that share a block of swizzled scales


def tiles_of(rows: int) -> int:
    """Return the tiles of scales that the rows of one slot take."""
    return -(-rows // TILE)


def _codes(op: str, arg: str, x: Tensor) -> None:
    _check.check(
        x.dim() == 4, op, arg, f"shape {_check.shape_of(x)}", "4 dimensions [B, H, S, bytes]"
    )
    _check.check(x.dtype == torch.uint8, op, arg, f"dtype {_check.dtype_of(x)}", "dtype uint8")
    _check.dense(op, arg, x)


def _scales(op: str, arg: str, x: Tensor, codes: Tensor, tiles: int, columns: int) -> None:
    size = (codes.size(0), codes.size(1), tiles, columns // 4, 32, 4, 4)
    _check.shaped(op, arg, x, size, "[B, H, tiles of 128 rows, scales / 4, 32, 4, 4]")
    _check.dense(op, arg, x)


def _values(op: str, v: Tensor, k_codes: Tensor, mxfp8: bool) -> None:
    arg = "v_cache"
    _check.check(v.dim() == 4, op, arg, f"shape {_check.shape_of(v)}", "4 dimensions [B, S, H, D]")
    if v.dtype != torch.float8_e4m3fn:
        _check.check(
            v.dtype in _check.FLOATS,
            op,
            arg,
            f"dtype {_check.dtype_of(v)}",
            "dtype float32, bfloat16, float16 or float8_e4m3fn",
        )
    _check.unit_stride(op, arg, v)
    b, h, capacity, row = k_codes.shape
    _check.check(
        v.size(0) == b and v.size(1) == capacity and v.size(2) == h,
        op,
        arg,
        f"shape {_check.shape_of(v)}",
        f"[B, S_cap, H, D] with the B, H and S_cap of k_codes {_check.shape_of(k_codes)}",
    )
    dim = v.size(3)
    if mxfp8:
        _check.check(dim == row, op, arg, f"D = {dim}", f"D = {row}, a byte of k_codes each")
    else:
        extra = 2 * row - dim
        _check.check(
            extra >= 0 and extra <= 2 * dim and extra % 32 == 0,
            op,
            arg,
            f"D = {dim}",
            f"a D of which codes of depth {2 * row} carry D + 2 T, T a multiple of 16 up to D",
        )
    _check.on_device(op, arg, v, "q_codes", k_codes)


def _means(op: str, q: Tensor, k_mean: Tensor, v: Tensor, q_codes: Tensor, tiles: int) -> None:
    b, h, s, _ = q_codes.shape
    dim = v.size(3)
    _check.activation(op, "q", q)
    _check.shaped(op, "q", q, (b, s, h, dim), "[B, S, H, D]")
    if v.dtype == torch.float8_e4m3fn:
        _check.on_device(op, "q", q, "v_cache", v)
    else:
        _check.typed_like(op, "q", q, "v_cache", v)
    arg, dtype = "k_mean", k_mean.dtype
    _check.shaped(op, arg, k_mean, (b, h, tiles, dim), "[B, H, tiles of 128 rows, D]")
    _check.check(
        dtype == torch.bfloat16, op, arg, f"dtype {_check.dtype_of(k_mean)}", "dtype bfloat16"
    )
    _check.dense(op, arg, k_mean)
    _check.on_device(op, arg, k_mean, "q_codes", q_codes)


def _fake(
    q_codes: Tensor,
    q_scales: Tensor,
    k_codes: Tensor,
    k_scales: Tensor,
    v_cache: Tensor,
    kv_len: Tensor,
    frame_tokens: int,
    *,
    q: Tensor | None = None,
    k_mean: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    op = "fp4_attention"
    _codes(op, "q_codes", q_codes)
    b, h, s, row = q_codes.shape
    _check.check(
        q_scales.dtype in (torch.float8_e4m3fn, torch.float8_e8m0fnu),
        op,
        "q_scales",
        f"dtype {_check.dtype_of(q_scales)}",
        "dtype float8_e4m3fn (NVFP4) or float8_e8m0fnu (MXFP8)",
    )
    mxfp8 = q_scales.dtype == torch.float8_e8m0fnu
    block = 32 if mxfp8 else 8  # bytes of codes to a scale, of which four lie together
    _check.check(
        row > 0 and row % (4 * block) == 0,
        op,
        "q_codes",
        f"{row} bytes a row",
        f"a positive multiple of {4 * block} for scales of {_check.dtype_of(q_scales)}",
    )
    _scales(op, "q_scales", q_scales, q_codes, tiles_of(s), row // block)
    _check.on_device(op, "q_scales", q_scales, "q_codes", q_codes)
    _codes(op, "k_codes", k_codes)
    _check.check(
        k_codes.size(0) == b and k_codes.size(1) == h and k_codes.size(3) == row,
        op,
        "k_codes",
        f"shape {_check.shape_of(k_codes)}",
        f"[B, H, S_cap, bytes] with the B, H and bytes of q_codes {_check.shape_of(q_codes)}",
    )
    _check.on_device(op, "k_codes", k_codes, "q_codes", q_codes)
    _check.check(
        frame_tokens >= 1, op, "frame_tokens", f"{frame_tokens}", "at least 1 token a frame"
    )
    capacity = k_codes.size(2)
    _check.check(
        capacity % frame_tokens == 0,
        op,
        "k_codes",
        f"{capacity} rows",
        f"whole frames of {frame_tokens} rows",
    )
    tiles = capacity // frame_tokens * tiles_of(frame_tokens)
    _check.typed_like(op, "k_scales", k_scales, "q_scales", q_scales)
    _scales(op, "k_scales", k_scales, k_codes, tiles, row // block)
    _values(op, v_cache, k_codes, mxfp8)
    _check.int_vector(op, "kv_len", kv_len, "q_codes", q_codes)
    _check.check(kv_len.size(0) == 1, op, "kv_len", f"{kv_len.size(0)} elements", "1 element")
    given, hint = "a tensor, as k_mean is given", "q times the mean of its keys is added to logits"
    _check.check(q is not None or k_mean is None, op, "q", "None", given, hint)
    _check.check(k_mean is not None or q is None, op, "q", "a tensor", "None, as k_mean is None")
    if q is not None and k_mean is not None:
        _means(op, q, k_mean, v_cache, q_codes, tiles)
    if scale is not None:
        valid = scale > 0 and scale < math.inf
        _check.check(valid, op, "scale", f"{scale}", "a positive number")
    dtype = q.dtype if q is not None else v_cache.dtype
    dtype = torch.bfloat16 if dtype == torch.float8_e4m3fn else dtype
    return (
        v_cache.new_empty((b, s, h, v_cache.size(3)), dtype=dtype),
        v_cache.new_empty((b, h, s), dtype=torch.float32),
    )


define(SCHEMA, _fake)


def fp4_attention(
    q_codes: Tensor,
    q_scales: Tensor,
    k_codes: Tensor,
    k_scales: Tensor,
    v_cache: Tensor,
    kv_len: Tensor,
    frame_tokens: int,
    *,
    q: Tensor | None = None,
    k_mean: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend to the first `kv_len` cached tokens, whose keys are quantised, without a mask.

    `vidk.fp4_quantize` and `vidk.qk_norm_rope_nvfp4_kv_write` make codes, scales and means. Scales
    of E4M3 say that codes are NVFP4 (E2M1, two a byte, a scale for 16), scales of E8M0 that they
    are MXFP8 (E4M3, a scale for 32). A row of codes has D elements, or D + 2 T where the rounding
    errors of T channels are carried: the logit is the dot product of all of them. Products of codes
    and scales are exact in every kernel; sums are float32.

    Every frame slot of the cache begins a tile of 128 rows of scales; the rows that its last tile
    lacks have scales that are not used. With `k_mean` the codes are of keys less the mean of their
    tile, and `q . mean` is added to each logit, in float32: the result is that of whole keys.

    Parameters
    ----------
    q_codes : `[B, H, S, bytes]` uint8, contiguous.
    q_scales : `[B, H, ceil(S / 128), scales / 4, 32, 4, 4]` float8_e4m3fn or float8_e8m0fnu,
        contiguous: tiles of 128 rows by 4 scales, of which row r has `[r % 32, r // 32]`.
    k_codes : `[B, H, S_cap, bytes]` uint8, contiguous; `S_cap` is slots times `frame_tokens`.
    k_scales : `[B, H, slots * ceil(frame_tokens / 128), scales / 4, 32, 4, 4]`, contiguous, the
        dtype of q_scales.
    v_cache : `[B, S_cap, H, D]` float32, bfloat16, float16 or float8_e4m3fn (without a scale), any
        strides with contiguous D.
    kv_len : `[1]` int32 on the device of q_codes: how many cached tokens are valid, 0 to `S_cap`.
    frame_tokens : tokens of a slot.
    q : `[B, S, H, D]`, any strides with contiguous D, the dtype of v_cache unless that is
        float8: q before it was quantised. Given together with k_mean.
    k_mean : `[B, H, slots * ceil(frame_tokens / 128), D]` bfloat16, contiguous.
    scale : positive factor of the logits; default `1 / sqrt(D)`.
    return_lse : also return the log-sum-exp of the scaled logits.

    Returns
    -------
    `[B, S, H, D]`, contiguous, the dtype of q or else of v_cache (bfloat16 where that is float8);
    zeros where `kv_len` is 0. With `return_lse` also `[B, H, S]` float32, natural logarithm, -inf
    where `kv_len` is 0.

    Raises
    ------
    RuntimeError
        If a shape, dtype, stride or device does not fit; on CPU, if `kv_len` is out of range; on
        CUDA, if D is not 128, q or v_cache is float32 or float16, or rows are not aligned to 16
        bytes.

    Source: NVIDIA PTX ISA, block-scaled `mma`; arXiv 2205.14135 for flash attention; arXiv
    2505.11594 for smoothing keys.
    """
    out, lse = torch.ops.vidk.fp4_attention(
        q_codes, q_scales, k_codes, k_scales, v_cache, kv_len, frame_tokens,
        q=q, k_mean=k_mean, scale=scale,
    )  # fmt: skip
    return (out, lse) if return_lse else out
