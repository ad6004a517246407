"""Rows of the table of errors for the checks of `vidk.ops._check`, which the ops share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vidk.ops.registry import OPS, BlockShape

from .helpers import seeded

# Two frames of 2 x 3 tokens: blocks are [2, 12, 2, 12], caches [2, 24, 2, 12], text [2, 9, 2, 12].
SHAPE = BlockShape(2, 2, 3, 2, 12, cache_frames=4, kv_frames=3, batch=2, text_len=9, text_tokens=4)

Arguments = dict[str, Any]
Change = Callable[[Arguments], Arguments]


def valid(op: str, **sizes: int) -> Arguments:
    """Return the arguments of a valid float32 call by name; every slot and length is in range."""
    args, kwargs = OPS[op].sample(replace(SHAPE, **sizes), torch.float32, "cpu", seeded(op))
    names = [a.name for a in getattr(torch.ops.vidk, op).default._schema.arguments]
    return dict(zip(names, args, strict=False)) | kwargs


@dataclass(frozen=True)
class Row:
    """A check: `change(valid arguments)` are the arguments to replace, the rest is the message.

    `kind` is "meta" for what shapes, dtypes and strides show, which the fake kernel must refuse
    too; "device" for tensors on two devices; "data" for what only memory and values show.
    """

    op: str
    arg: str
    change: Change
    got: str
    expected: str
    hint: str = ""
    kind: str = "meta"

    def broken(self) -> Arguments:
        args = valid(self.op)
        return args | self.change(args)

    def sentence(self, home: str = "cpu", odd: str = "meta") -> str:
        """Return the message; `odd` is the device of the one tensor that is elsewhere."""
        tail = f" ({self.hint})" if self.hint else ""
        text = f"vidk::{self.op}: {self.arg}: got {self.got}, expected {self.expected}{tail}"
        return text.replace("{home}", home).replace("{odd}", odd)


def shape(x: Tensor) -> str:
    return str(list(x.shape))


def put(arg: str, change: Callable[[Any], Any]) -> Change:
    return lambda args: {arg: change(args[arg])}


def put_new(arg: str, value: Any) -> Change:
    return lambda _: {arg: value}


def cast(dtype: str) -> Callable[[Tensor], Tensor]:
    return lambda x: x.to(getattr(torch, dtype))


def every_second(x: Tensor) -> Tensor:
    """Return the same values with stride 2 in the last dimension."""
    return torch.stack([x, x], dim=-1).flatten(-2)[..., ::2]


def activation(op: str, arg: str) -> Iterator[Row]:
    x = valid(op)[arg]
    for change, got in (
        (lambda x: x[0], shape(x[0])),
        (lambda x: x[None], shape(x[None])),
        (lambda x: x.new_zeros(()), "[]"),
    ):
        yield Row(op, arg, put(arg, change), f"shape {got}", "4 dimensions [B, S, H, D]")
    for dtype in ("float64", "int32", "complex64", "bool", "float8_e4m3fn"):
        yield Row(
            op,
            arg,
            put(arg, cast(dtype)),
            f"dtype {dtype}",
            "dtype float32, bfloat16 or float16",
        )
    for change, stride in ((every_second, 2), (lambda x: x[..., :1].expand(x.shape), 0)):
        yield Row(
            op,
            arg,
            put(arg, change),
            f"stride {stride} in the last dimension",
            "stride 1",
            "call .contiguous()",
        )


def shorter(dim: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x.narrow(dim, 1, x.size(dim) - 1)


def placed(op: str, arg: str, ref: str) -> Iterator[Row]:
    change = put(arg, lambda x: x.to("meta"))
    yield Row(op, arg, change, "a tensor on {odd}", f"the device {{home}} of {ref}", kind="device")


def typed_like(op: str, arg: str, ref: str) -> Iterator[Row]:
    yield Row(op, arg, put(arg, Tensor.half), "dtype float16", f"the dtype float32 of {ref}")
    yield from placed(op, arg, ref)


def like(op: str, arg: str, ref: str) -> Iterator[Row]:
    yield from activation(op, arg)
    x = valid(op)
    for dim in range(4):
        change = shorter(dim)
        yield Row(
            op,
            arg,
            put(arg, change),
            f"shape {shape(change(x[arg]))}",
            f"the shape {shape(x[ref])} of {ref}",
        )
    yield from typed_like(op, arg, ref)


def cache(op: str, arg: str, ref: str) -> Iterator[Row]:
    yield from activation(op, arg)
    x = valid(op)
    for dim in (0, 2, 3):
        change = shorter(dim)
        yield Row(
            op,
            arg,
            put(arg, change),
            f"shape {shape(change(x[arg]))}",
            f"[B, S_cap, H, D] with the B, H and D of {ref} {shape(x[ref])}",
        )
    yield from typed_like(op, arg, ref)


def int_vector(op: str, arg: str, ref: str) -> Iterator[Row]:
    n = len(valid(op)[arg])
    yield Row(op, arg, put(arg, lambda x: x[None]), f"shape [1, {n}]", "1 dimension")
    yield Row(op, arg, put(arg, lambda x: x[0]), "shape []", "1 dimension")
    for dtype in ("int64", "float32", "uint8"):
        change = put(arg, cast(dtype))
        yield Row(op, arg, change, f"dtype {dtype}", "dtype int32")
    for change, stride in ((lambda x: x.repeat(4)[::2], 2), (lambda x: x[:1].expand(2), 0)):
        yield Row(op, arg, put(arg, change), f"stride {stride}", "stride 1", "call .contiguous()")
    yield from placed(op, arg, ref)


def freq_table(op: str, arg: str, ref: str) -> Iterator[Row]:
    expected, hint = "shape [positions, pairs, 2]", "see vidk.rope.freq_table"
    for change in (lambda x: x[0], lambda x: x.repeat(1, 1, 2)[..., :3]):
        got = f"shape {shape(change(valid(op)[arg]))}"
        yield Row(op, arg, put(arg, change), got, expected, hint)
    for dtype in ("float64", "bfloat16"):
        change = put(arg, cast(dtype))
        yield Row(op, arg, change, f"dtype {dtype}", "dtype float32")
    change = put(arg, every_second)
    yield Row(op, arg, change, "a strided table", "a contiguous one", "call .contiguous()")
    yield from placed(op, arg, ref)


def rope_tables(op: str, x: str) -> Iterator[Row]:
    yield from freq_table(op, "time_freqs", x)
    yield from freq_table(op, "space_freqs", x)
    args = valid(op)
    time, space = args["time_freqs"].size(1), args["space_freqs"].size(1)
    expected = f"D / 2 pairs in all for D = {args[x].size(3)}"
    for arg, *pairs in (
        ("time_freqs", 1, space),
        ("time_freqs", time + 3, space),
        ("space_freqs", time, 1),
    ):
        new = pairs[arg == "space_freqs"]
        change = put(arg, lambda x, n=new: x.repeat(1, 3, 1)[:, :n].contiguous())
        got = f"{pairs[0]} time pairs and 2 x {pairs[1]} space pairs"
        yield Row(op, "time_freqs", change, got, expected)
    for value in (0, -1, -(2**40)):
        for arg in ("height", "width"):
            change = put(arg, lambda _, n=value: n)
            yield Row(op, arg, change, f"{value}", f"a {arg} of at least 1 token")
    for height, width in ((4, 3), (2, 4), (2**40, 3)):
        yield Row(
            op,
            "space_freqs",
            lambda _, h=height, w=width: {"height": h, "width": w},
            "3 rows",
            f"at least max(height, width) rows for height {height} and width {width}",
        )


def block_fits(op: str, arg: str, x: str) -> Iterator[Row]:
    for frames in (0, 1):
        yield Row(
            op,
            arg,
            put(arg, lambda v, n=frames: v[:n]),
            f"{frames} frames of 6 tokens",
            f"enough frames for the 12 tokens of {x}",
        )
