"""Argument checks shared by the fakes; `csrc/common/check.h` says the same in the same words.

Every message is one sentence: `vidk::op: argument: got X, expected Y (hint)`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def message(op: str, arg: str, got: str, expected: str, hint: str = "") -> str:
    """Return the one sentence that every check of vidk raises."""
    tail = f" ({hint})" if hint else ""
    return f"vidk::{op}: {arg}: got {got}, expected {expected}{tail}"


def check(cond: bool, op: str, arg: str, got: str, expected: str, hint: str = "") -> None:
    """Raise RuntimeError with `message(...)` unless `cond` holds; safe on symbolic sizes."""
    torch._check(cond, lambda: message(op, arg, got, expected, hint))


def shape_of(x: Tensor) -> str:
    """Return the shape as `[1, 2, 3]`."""
    return "[" + ", ".join(str(n) for n in x.shape) + "]"


def dtype_of(x: Tensor) -> str:
    """Return the dtype's name without `torch.`."""
    return str(x.dtype).removeprefix("torch.")


def same_shape(a: Tensor, b: Tensor) -> bool:
    """Compare shapes without Python's `==` on symbolic tuples."""
    return a.dim() == b.dim() and all(m == n for m, n in zip(a.shape, b.shape, strict=True))


def floating(op: str, arg: str, x: Tensor) -> None:
    """Check a tensor's type: one of those that kernels are compiled for."""
    check(x.dtype in FLOATS, op, arg, f"dtype {dtype_of(x)}", "dtype float32, bfloat16 or float16")


def activation(op: str, arg: str, x: Tensor) -> None:
    """Check a `[B, S, H, D]` tensor of a float type with contiguous D."""
    check(x.dim() == 4, op, arg, f"shape {shape_of(x)}", "4 dimensions [B, S, H, D]")
    floating(op, arg, x)
    unit_stride(op, arg, x)


def unit_stride(op: str, arg: str, x: Tensor) -> None:
    """Check that the last of four dimensions is contiguous."""
    check(
        x.size(3) <= 1 or x.stride(3) == 1,
        op,
        arg,
        f"stride {x.stride(3)} in the last dimension",
        "stride 1",
        "call .contiguous()",
    )


def shaped(op: str, arg: str, x: Tensor, sizes: Sequence[int], what: str) -> None:
    """Check a shape of which every size is known; `what` names them."""
    check(
        x.dim() == len(sizes) and all(m == n for m, n in zip(x.shape, sizes, strict=True)),
        op,
        arg,
        f"shape {shape_of(x)}",
        f"{what} = [{', '.join(str(n) for n in sizes)}]",
    )


def dense(op: str, arg: str, x: Tensor) -> None:
    """Check that a tensor has no strides of its own."""
    check(x.is_contiguous(), op, arg, "a strided tensor", "a contiguous one", "call .contiguous()")


def like(op: str, arg: str, x: Tensor, ref_arg: str, ref: Tensor) -> None:
    """Check an activation with the shape, dtype and device of another."""
    activation(op, arg, x)
    shaped_like(op, arg, x, ref_arg, ref)
    typed_like(op, arg, x, ref_arg, ref)


def shaped_like(op: str, arg: str, x: Tensor, ref_arg: str, ref: Tensor) -> None:
    """Check the shape of a tensor against another's."""
    check(
        same_shape(x, ref),
        op,
        arg,
        f"shape {shape_of(x)}",
        f"the shape {shape_of(ref)} of {ref_arg}",
    )


def typed_like(op: str, arg: str, x: Tensor, ref_arg: str, ref: Tensor) -> None:
    """Check the dtype and the device of a tensor against another's."""
    check(
        x.dtype == ref.dtype,
        op,
        arg,
        f"dtype {dtype_of(x)}",
        f"the dtype {dtype_of(ref)} of {ref_arg}",
    )
    on_device(op, arg, x, ref_arg, ref)


def on_device(op: str, arg: str, x: Tensor, ref_arg: str, ref: Tensor) -> None:
    """Check that two tensors are on one device."""
    check(
        x.device == ref.device,
        op,
        arg,
        f"a tensor on {x.device}",
        f"the device {ref.device} of {ref_arg}",
    )


def cache(op: str, arg: str, c: Tensor, ref_arg: str, ref: Tensor) -> None:
    """Check a `[B, S_cap, H, D]` cache against the block or query that uses it."""
    activation(op, arg, c)
    check(
        c.size(0) == ref.size(0) and c.size(2) == ref.size(2) and c.size(3) == ref.size(3),
        op,
        arg,
        f"shape {shape_of(c)}",
        f"[B, S_cap, H, D] with the B, H and D of {ref_arg} {shape_of(ref)}",
    )
    typed_like(op, arg, c, ref_arg, ref)


def int_vector(op: str, arg: str, x: Tensor, ref_arg: str, ref: Tensor) -> None:
    """Check a one-dimensional contiguous int32 tensor on the reference's device."""
    check(x.dim() == 1, op, arg, f"shape {shape_of(x)}", "1 dimension")
    check(x.dtype == torch.int32, op, arg, f"dtype {dtype_of(x)}", "dtype int32")
    check(
        x.size(0) <= 1 or x.stride(0) == 1,
        op,
        arg,
        f"stride {x.stride(0)}",
        "stride 1",
        "call .contiguous()",
    )
    on_device(op, arg, x, ref_arg, ref)


def freq_table(op: str, arg: str, x: Tensor, ref_arg: str, ref: Tensor) -> None:
    """Check a contiguous float32 `[positions, pairs, 2]` table of (cos, sin)."""
    check(
        x.dim() == 3 and x.size(2) == 2,
        op,
        arg,
        f"shape {shape_of(x)}",
        "shape [positions, pairs, 2]",
        "see vidk.rope.freq_table",
    )
    check(x.dtype == torch.float32, op, arg, f"dtype {dtype_of(x)}", "dtype float32")
    check(x.is_contiguous(), op, arg, "a strided table", "a contiguous one", "call .contiguous()")
    on_device(op, arg, x, ref_arg, ref)


def rope_tables(
    op: str, x_arg: str, x: Tensor, time_freqs: Tensor, space_freqs: Tensor, height: int, width: int
) -> None:
    """Check that the two tables fit the head dim and the token grid."""
    freq_table(op, "time_freqs", time_freqs, x_arg, x)
    freq_table(op, "space_freqs", space_freqs, x_arg, x)
    pairs = time_freqs.size(1) + 2 * space_freqs.size(1)
    check(
        2 * pairs == x.size(3),
        op,
        "time_freqs",
        f"{time_freqs.size(1)} time pairs and 2 x {space_freqs.size(1)} space pairs",
        f"D / 2 pairs in all for D = {x.size(3)}",
    )
    check(height >= 1, op, "height", f"{height}", "a height of at least 1 token")
    check(width >= 1, op, "width", f"{width}", "a width of at least 1 token")
    check(
        space_freqs.size(0) >= height and space_freqs.size(0) >= width,
        op,
        "space_freqs",
        f"{space_freqs.size(0)} rows",
        f"at least max(height, width) rows for height {height} and width {width}",
    )


def block_fits(op: str, arg: str, x: Tensor, vec_arg: str, vec: Tensor, frame_tokens: int) -> None:
    """Check that a block's tokens lie in the frames that an index vector names."""
    check(
        x.size(1) <= vec.size(0) * frame_tokens,
        op,
        vec_arg,
        f"{vec.size(0)} frames of {frame_tokens} tokens",
        f"enough frames for the {x.size(1)} tokens of {arg}",
    )


def norm_weight(op: str, arg: str, w: Tensor, x_arg: str, x: Tensor) -> None:
    """Check the contiguous `[H * D]` weight of a norm over all heads."""
    channels = x.size(2) * x.size(3)
    check(
        w.dim() == 1 and w.size(0) == channels,
        op,
        arg,
        f"shape {shape_of(w)}",
        f"shape [H * D] = [{channels}]",
    )
    check(w.is_contiguous(), op, arg, "a strided weight", "a contiguous one", "call .contiguous()")
    typed_like(op, arg, w, x_arg, x)


def shard(op: str, height: int, width: int, token_offset: int, slice_tokens: int | None) -> None:
    """Check which of a block's tokens are there."""
    check(token_offset >= 0, op, "token_offset", f"{token_offset}", "a token index of at least 0")
    frame_slice(op, height, width, slice_tokens)


def frame_slice(op: str, height: int, width: int, slice_tokens: int | None) -> None:
    """Check how many tokens of each frame are there."""
    if slice_tokens is not None:
        check(
            slice_tokens >= 1 and slice_tokens <= height * width,
            op,
            "slice_tokens",
            f"{slice_tokens}",
            f"between 1 and height * width = {height * width}",
        )


def received(op: str, arg: str, x: Tensor) -> None:
    """Check a `[P, B, S_r, H / P, D]` buffer, as a collective leaves it."""
    check(x.dim() == 5, op, arg, f"shape {shape_of(x)}", "5 dimensions [P, B, S_r, H / P, D]")
    floating(op, arg, x)
    check(x.is_contiguous(), op, arg, "a strided buffer", "a contiguous one", "call .contiguous()")
