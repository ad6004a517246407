"""The table of errors: how to break a valid call, and the sentence that it must raise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from vidk.ops.registry import OPS

from .error_checks import (
    Arguments,
    Change,
    Row,
    activation,
    block_fits,
    cache,
    cast,
    every_second,
    int_vector,
    like,
    placed,
    put,
    put_new,
    rope_tables,
    shape,
    shorter,
    typed_like,
    valid,
)
from .helpers import ints, seeded, tables


def huge_grids(op: str) -> Iterator[Row]:
    """Grids past 64 bits: a space table without pairs may have any number of rows for nothing."""
    for height, width in ((2**32, 2**32), (2**62, 1), (1, 2**62), (2**40, 2**40)):
        yield Row(
            op,
            "height",
            lambda _, h=height, w=width: (
                valid(op, head_dim=2)
                | {"space_freqs": torch.zeros(2**62, 0, 2), "height": h, "width": w}
            ),
            f"a grid of {height} x {width}",
            "one whose token indices fit in 64 bits",
            kind="data",
        )


def slots(op: str) -> Iterator[Row]:
    arg, hint = "frame_slot", "the cache has 24 rows, 6 a frame"
    for frame, slot in ((0, -1), (1, -1), (0, 4), (1, 4), (0, 2**31 - 1), (1, -(2**31))):
        values = [0, 0]
        values[frame], values[1 - frame] = slot, 1
        yield Row(
            op,
            arg,
            lambda _, v=values: {arg: ints(*v)},
            f"slot {slot} for frame {frame}",
            "a slot whose 6 rows lie in the cache",
            hint,
            kind="data",
        )
    yield Row(
        op,
        arg,
        lambda args: {name: args[name][:, :23] for name in ("k_cache", "v_cache")},
        "slot 3 for frame 0",
        "a slot whose 6 rows lie in the cache",
        hint.replace("24", "23"),
        kind="data",
    )
    yield Row(
        op,
        arg,
        lambda _: {arg: ints(2, 2)},
        "slot 2 for frames 0 and 1",
        "distinct slots",
        kind="data",
    )


def positions(op: str) -> Iterator[Row]:
    for frame, position in ((0, -1), (1, -1), (0, 64), (1, 64), (1, 2**31 - 1), (0, -(2**31))):
        values = [5, 5]
        values[frame] = position
        yield Row(
            op,
            "frame_pos",
            lambda _, v=values: {"frame_pos": ints(*v)},
            f"position {position} for frame {frame}",
            "a row of time_freqs, which has 64 rows",
            kind="data",
        )


def rows_of(cache: Tensor, begin: int, like: Tensor) -> Tensor:
    """Return the cache's rows from `begin` on as a block."""
    return cache[:, begin : begin + 12]


def run_of(cache: Tensor, begin: int, like: Tensor) -> Tensor:
    """Return the cache's memory from that of row `begin` on as a contiguous tensor."""
    at = begin * cache.stride(1)
    return cache.view(-1)[at : at + like.numel()].view(like.shape)


def memory(op: str, inputs: str, part: Callable[..., Tensor] = rows_of) -> Iterator[Row]:
    """Caches whose elements share memory, with themselves or with another argument."""
    shared = (
        lambda x: x[:1].expand(x.shape),
        lambda x: x[:, :1].expand(x.shape),
        lambda x: x[:, :, :1].expand(x.shape),
        lambda x: x.as_strided(x.shape, (288, 12, 12, 1)),
    )
    got, hint = "a view whose elements share memory", "call .contiguous()"
    expected = "memory of its own for each element"
    for arg in ("k_cache", "v_cache"):
        for change in shared:
            yield Row(op, arg, put(arg, change), got, expected, hint, kind="data")
    aliases: list[tuple[str, str, Change]] = [
        ("v_cache", "k_cache", lambda args: {"v_cache": args["k_cache"]}),
        ("v_cache", "k_cache", lambda args: overlapping_caches()),
    ]
    for cache_arg in ("k_cache", "v_cache"):
        for x in inputs:
            for begin in (0, 12):
                change = lambda a, c=cache_arg, x=x, n=begin: {x: part(a[c], n, a[x])}  # noqa: E731
                aliases.append((cache_arg, x, change))
    for arg, other, change in aliases:
        yield Row(
            op,
            arg,
            change,
            f"memory that overlaps {other}",
            "separate memory",
            f"call .clone() on {other}",
            kind="data",
        )


def overlapping_caches() -> Arguments:
    """Return two caches that share their last and first row of one batch row."""
    base = torch.randn(2, 47, 2, 12, generator=seeded("overlap"))
    return {"k_cache": base[:, :24], "v_cache": base[:, 23:]}


def lengths(op: str, arg: str, rows: int, of: str, batch: int) -> Iterator[Row]:
    for value in (-1, rows + 1, 2**31 - 1, -(2**31)):
        for row in range(batch):
            values = [0] * batch
            values[row] = value
            yield Row(
                op,
                arg,
                lambda _, v=values: {arg: ints(*v)},
                f"{value}",
                f"a length from 0 to the {rows} rows of {of}",
                kind="data",
            )


def weight(op: str, arg: str, ref: str) -> Iterator[Row]:
    w = valid(op)[arg]
    for change in (lambda w: w[:-1], lambda w: w.view(2, -1), lambda w: w[: len(w) // 2]):
        got, expected = f"shape {shape(change(w))}", f"shape [H * D] = [{len(w)}]"
        yield Row(op, arg, put(arg, change), got, expected)
    change = put(arg, every_second)
    yield Row(op, arg, change, "a strided weight", "a contiguous one", "call .contiguous()")
    yield from typed_like(op, arg, ref)


def epsilon(op: str) -> Iterator[Row]:
    for value, text in (
        (-1.0, "-1.0"),
        (-1e-6, "-1e-06"),
        (-1.5e20, "-1.5e+20"),
        (float("nan"), "nan"),
        (-float("inf"), "-inf"),
    ):
        yield Row(op, "eps", put_new("eps", value), text, "a value of at least 0")


def shard(op: str) -> Iterator[Row]:
    for value in (-1, -(2**62)):
        change = put_new("token_offset", value)
        yield Row(op, "token_offset", change, f"{value}", "a token index of at least 0")
    for value in (0, -3, 7):
        change = put_new("slice_tokens", value)
        yield Row(op, "slice_tokens", change, f"{value}", "between 1 and height * width = 6")


def rope_rows() -> Iterator[Row]:
    op = "rope_3d"
    yield from activation(op, "x")
    yield from int_vector(op, "frame_pos", "x")
    yield from rope_tables(op, "x")
    yield from huge_grids(op)
    yield Row(
        op,
        "time_freqs",
        put("x", lambda x: x[..., :11]),
        "2 time pairs and 2 x 2 space pairs",
        "D / 2 pairs in all for D = 11",
    )
    yield from shard(op)
    yield from positions(op)


def kv_cache_rows() -> Iterator[Row]:
    op = "kv_cache_write"
    yield from activation(op, "k")
    yield from like(op, "v", "k")
    yield from cache(op, "k_cache", "k")
    yield from like(op, "v_cache", "k_cache")
    yield from int_vector(op, "frame_slot", "k")
    for value in (0, -6):
        change = put_new("frame_tokens", value)
        yield Row(op, "frame_tokens", change, f"{value}", "at least 1 token a frame")
    yield from block_fits(op, "frame_slot", "k")
    yield from memory(op, "kv")
    yield from slots(op)


def norm_rope_rows() -> Iterator[Row]:
    op = "qk_norm_rope_kv_write"
    yield from activation(op, "q")
    yield from like(op, "k", "q")
    yield from like(op, "v", "q")
    yield from weight(op, "q_weight", "q")
    yield from weight(op, "k_weight", "q")
    yield from epsilon(op)
    yield from int_vector(op, "frame_pos", "q")
    yield from int_vector(op, "frame_slot", "q")
    yield from rope_tables(op, "q")
    yield from huge_grids(op)
    yield from cache(op, "k_cache", "k")
    yield from like(op, "v_cache", "k_cache")
    yield from block_fits(op, "frame_pos", "q")
    yield from block_fits(op, "frame_slot", "q")
    yield from memory(op, "qkv")
    yield from positions(op)
    yield from slots(op)


def pack_rows() -> Iterator[Row]:
    op = "qk_norm_rope_pack"
    yield from activation(op, "q")
    yield from like(op, "k", "q")
    yield from like(op, "v", "q")
    # Whichever comes first is what the others are like.
    without = {"q": None, "q_weight": None}
    for row in (*activation(op, "k"), *like(op, "v", "k")):
        yield replace(row, change=lambda args, r=row: without | r.change(args))
    for row in activation(op, "v"):
        change = lambda args, r=row: without | {"k": None, "k_weight": None} | r.change(args)  # noqa: E731
        yield replace(row, change=change)
    nothing = dict.fromkeys(("q", "k", "v", "q_weight", "k_weight"))
    yield Row(op, "q", lambda _: nothing, "None", "at least one of q, k and v")
    for arg, of in (("q_weight", "q"), ("k_weight", "k")):
        yield Row(op, arg, put_new(arg, None), "None", f"a weight, as {of} is given")
        yield Row(op, arg, put_new(of, None), "a tensor", f"None, as {of} is not given")
        yield from weight(op, arg, of)
    yield from epsilon(op)
    yield from int_vector(op, "frame_pos", "q")
    yield from rope_tables(op, "q")
    yield from huge_grids(op)
    yield from shard(op)
    for ranks in (0, -1, -2, 3, 4, 2**40):
        yield Row(
            op,
            "ranks",
            put_new("ranks", ranks),
            f"{ranks}",
            "a number of ranks that divides the 2 heads of q",
            "exchange among fewer ranks, or gather k and v",
        )
    for row in positions(op):
        # The block has a frame for each frame of each rank.
        widen = lambda args, r=row: {"frame_pos": r.change(args)["frame_pos"].repeat(2)}  # noqa: E731
        yield replace(row, change=widen)


def unpack_rows() -> Iterator[Row]:
    op = "unpack_kv_write"
    size = "[2, 2, 6, 2, 12]"
    for arg in ("k", "v"):
        expected = "5 dimensions [P, B, S_r, H / P, D]"
        for change, got in ((lambda x: x[0], "[2, 6, 2, 12]"), (lambda x: x[0, 0, 0, 0, 0], "[]")):
            yield Row(op, arg, put(arg, change), f"shape {got}", expected)
        for dtype in ("float64", "int32", "bool"):
            expected = "dtype float32, bfloat16 or float16"
            yield Row(op, arg, put(arg, cast(dtype)), f"dtype {dtype}", expected)
        for change in (every_second, lambda x: x.transpose(0, 1), lambda x: x[:1].expand(x.shape)):
            got, expected = "a strided buffer", "a contiguous one"
            yield Row(op, arg, put(arg, change), got, expected, "call .contiguous()")
    for dim in range(5):
        change = lambda x, d=dim: x.narrow(d, 1, x.size(d) - 1).contiguous()  # noqa: E731
        got = f"shape {shape(change(valid(op)['v']))}"
        yield Row(op, "v", put("v", change), got, f"the shape {size} of k")
    yield from typed_like(op, "v", "k")
    yield from activation(op, "k_cache")
    for dim in (0, 2, 3):
        change = shorter(dim)
        expected = f"[B, S_cap, H / P, D] with the B, H / P and D of k {size}"
        got = f"shape {shape(change(valid(op)['k_cache']))}"
        yield Row(op, "k_cache", put("k_cache", change), got, expected)
    yield from typed_like(op, "k_cache", "k")
    yield from like(op, "v_cache", "k_cache")
    yield from int_vector(op, "frame_slot", "k")
    for value in (0, -6):
        change = put_new("frame_tokens", value)
        yield Row(op, "frame_tokens", change, f"{value}", "at least 1 token a frame")
    for value in (-1, 13, 2**40):
        expected = "from 0 to the tokens of 2 frames of 6"
        yield Row(op, "tokens", put_new("tokens", value), f"{value}", expected)
    for ranks in (0, 1):
        yield Row(
            op,
            "tokens",
            lambda args, r=ranks: {name: args[name][:r] for name in "kv"},
            "12",
            f"at most the {6 * ranks} that {ranks} ranks hold",
        )
    for value in (0, -3, 2, 7):
        yield Row(
            op,
            "slice_tokens",
            put_new("slice_tokens", value),
            f"{value}",
            "from frame_tokens / P, rounded up, to frame_tokens for 2 ranks and frames of 6",
        )
    for value in (4, 5, 6):
        yield Row(
            op,
            "k",
            put_new("slice_tokens", value),
            "6 tokens a rank",
            f"a slice of {value} tokens of each of 2 frames",
        )
    yield from memory(op, "kv", run_of)
    yield from slots(op)


def all_gather_rows() -> Iterator[Row]:
    op = "all_gather_rope"
    yield from activation(op, "x")
    yield from int_vector(op, "frame_pos", "x")
    yield from rope_tables(op, "x")
    yield from huge_grids(op)
    size = shape(valid(op)["x"])
    expected = f"[P, B, S_r, H, D] with the B, S_r, H and D of x {size}"
    for change in (
        lambda x: x[0],
        lambda x: x[None],
        *(lambda x, d=dim: x.narrow(d, 1, x.size(d) - 1).contiguous() for dim in range(1, 5)),
    ):
        got = f"shape {shape(change(valid(op)['out']))}"
        yield Row(op, "out", put("out", change), got, expected)
    yield from typed_like(op, "out", "x")
    for change in (every_second, lambda x: x[:, :1].expand(x.shape)):
        got, expected = "a strided tensor", "a contiguous one"
        yield Row(op, "out", put("out", change), got, expected, "call .contiguous()")
    for rank in (-1, 1, 2**40):
        yield Row(op, "rank", put_new("rank", rank), f"{rank}", "one of the 1 ranks of out")
    yield Row(op, "rank", put("out", lambda x: x[:0]), "0", "one of the 0 ranks of out")
    for value in (0, -3, 7):
        change = put_new("slice_tokens", value)
        yield Row(op, "slice_tokens", change, f"{value}", "between 1 and height * width = 6")
    for name in ("", "nowhere"):
        yield Row(
            op,
            "group_name",
            lambda args, n=name: {"group_name": n, "out": args["out"].repeat(2, 1, 1, 1, 1)},
            f"'{name}', none",
            "a process group in which this is rank 0 of 2",
        )
    yield Row(
        op,
        "peers",
        lambda args: {
            "peers": torch.zeros(131, dtype=torch.int64),
            "out": args["out"].repeat(65, 1, 1, 1, 1),
        },
        "65 ranks",
        "at most 64 that store into each other's memory",
        "leave peers out",
    )
    for table, got in ((torch.zeros(2), "[2]"), (torch.zeros(1, 3), "[1, 3]")):
        change = put_new("peers", table.long())
        yield Row(op, "peers", change, f"shape {got}", "[2 * P + 1] = [3]")
    for dtype in ("int32", "float32"):
        change = put_new("peers", torch.zeros(3, dtype=getattr(torch, dtype)))
        yield Row(op, "peers", change, f"dtype {dtype}", "dtype int64")
    table = torch.zeros(6, dtype=torch.int64)
    got, expected = "a strided tensor", "a contiguous one"
    yield Row(op, "peers", put_new("peers", table[::2]), got, expected, "call .contiguous()")
    change = put_new("peers", table[:3].to("meta"))
    yield Row(op, "peers", change, "a tensor on {odd}", "the device {home} of x", kind="device")
    yield Row(op, "peers", put_new("peers", table[:3]), "a tensor", "None on the CPU", kind="data")
    for arg in ("x", "frame_pos", "time_freqs", "space_freqs", "peers"):
        yield Row(
            op,
            "out",
            lambda args, a=arg: {a: inside(args["out"], args[a] if a in args else table[:3])},
            f"memory that overlaps {arg}",
            "separate memory",
            f"call .clone() on {arg}",
            kind="data",
        )
    yield from positions(op)


def inside(memory: Tensor, x: Tensor) -> Tensor:
    """Return a tensor like x, with its values, in the memory of another."""
    place = memory.view(-1).view(torch.uint8)[: x.numel() * x.itemsize]
    return place.view(x.dtype).view(x.shape).copy_(x)


def attention_rows() -> Iterator[Row]:
    op = "attention"
    yield from activation(op, "q")
    yield from cache(op, "k_cache", "q")
    yield from like(op, "v_cache", "k_cache")
    yield from int_vector(op, "kv_len", "q")
    for n in (0, 2):
        change = put("kv_len", lambda x, n=n: x.repeat(n))
        yield Row(op, "kv_len", change, f"{n} elements", "1 element")
    yield from lengths(op, "kv_len", 24, "k_cache", 1)


def cross_attention_rows() -> Iterator[Row]:
    op = "cross_attention"
    yield from activation(op, "q")
    yield from cache(op, "k", "q")
    yield from like(op, "v", "k")
    yield from int_vector(op, "context_lens", "q")
    for n in (0, 1, 3):
        change = put("context_lens", lambda x, n=n: x.repeat(2)[:n])
        expected = "one length for each batch row"
        yield Row(op, "context_lens", change, f"{n} elements", expected)
    for pad in ("none", "", "Mask"):
        yield Row(op, "pad", put_new("pad", pad), f"'{pad}'", "'trained' or 'mask'")
    yield from lengths(op, "context_lens", 9, "k", 2)


def nvfp4_rows() -> Iterator[Row]:
    op = "nvfp4_quantize"
    yield from activation(op, "x")
    for dim in (1, 8, 15):
        change = put("x", lambda x, n=dim: x[..., :n])
        yield Row(op, "x", change, f"D = {dim}", "a multiple of 16")
    for recipe in ("default", "", "Plain", "46"):
        expected = "'plain', '4/6' or 'search'"
        yield Row(op, "recipe", put_new("recipe", recipe), f"'{recipe}'", expected)


def fp4_codes(op: str, arg: str) -> Iterator[Row]:
    x = valid(op)[arg]
    for change in (lambda x: x[0], lambda x: x[None], lambda x: x[0, 0, 0, 0]):
        got, expected = f"shape {shape(change(x))}", "4 dimensions [B, H, S, bytes]"
        yield Row(op, arg, put(arg, change), got, expected)
    for dtype in ("int8", "float32", "bool"):
        yield Row(op, arg, put(arg, cast(dtype)), f"dtype {dtype}", "dtype uint8")
    yield from strided(op, arg)


def strided(op: str, arg: str) -> Iterator[Row]:
    for change in (lambda x: x.transpose(0, 1), lambda x: x[:1].expand(x.shape), every_second):
        got, expected = "a strided tensor", "a contiguous one"
        yield Row(op, arg, put(arg, change), got, expected, "call .contiguous()")


def sized(op: str, arg: str, what: str, ranks: bool = True) -> Iterator[Row]:
    x = valid(op)[arg]
    changes = [
        lambda x, d=dim: x.narrow(d, 0, x.size(d) - 1).contiguous() for dim in range(x.dim())
    ]
    if ranks:
        changes += [lambda x: x[0], lambda x: x[None]]
    for change in changes:
        yield Row(op, arg, put(arg, change), f"shape {shape(change(x))}", f"{what} = {shape(x)}")


def fp4_attention_rows() -> Iterator[Row]:
    op = "fp4_attention"
    yield from fp4_codes(op, "q_codes")
    for dtype in ("uint8", "float32", "float8_e5m2"):
        expected = "dtype float8_e4m3fn (NVFP4) or float8_e8m0fnu (MXFP8)"
        yield Row(op, "q_scales", put("q_scales", cast(dtype)), f"dtype {dtype}", expected)
    for n in (0, 16, 31):
        change = put("q_codes", lambda x, n=n: x[..., :n].contiguous())
        expected = "a positive multiple of 32 for scales of float8_e4m3fn"
        yield Row(op, "q_codes", change, f"{n} bytes a row", expected)
    change = put("q_scales", lambda x: x.view(torch.float8_e8m0fnu))
    expected = "a positive multiple of 128 for scales of float8_e8m0fnu"
    yield Row(op, "q_codes", change, "64 bytes a row", expected)
    for arg in ("q_scales", "k_scales"):
        yield from sized(op, arg, "[B, H, tiles of 128 rows, scales / 4, 32, 4, 4]")
        yield from strided(op, arg)
    yield from placed(op, "q_scales", "q_codes")
    yield from fp4_codes(op, "k_codes")
    x = valid(op)
    for dim in (0, 1, 3):
        change = lambda x, d=dim: shorter(d)(x).contiguous()  # noqa: E731
        got = f"shape {shape(change(x['k_codes']))}"
        q_shape = shape(x["q_codes"])
        expected = f"[B, H, S_cap, bytes] with the B, H and bytes of q_codes {q_shape}"
        yield Row(op, "k_codes", put("k_codes", change), got, expected)
    yield from placed(op, "k_codes", "q_codes")
    for value in (0, -6):
        change = put_new("frame_tokens", value)
        yield Row(op, "frame_tokens", change, f"{value}", "at least 1 token a frame")
    for value in (5, 7, 25, 2**40):
        expected = f"whole frames of {value} rows"
        yield Row(op, "k_codes", put_new("frame_tokens", value), "24 rows", expected)
    dtype = "dtype float8_e8m0fnu"
    change = put("k_scales", lambda x: x.view(torch.float8_e8m0fnu))
    yield Row(op, "k_scales", change, dtype, "the dtype float8_e4m3fn of q_scales")
    yield from placed(op, "k_scales", "q_scales")
    yield from fp4_value_rows(op)
    yield from int_vector(op, "kv_len", "q_codes")
    for n in (0, 2):
        change = put("kv_len", lambda x, n=n: x.repeat(n))
        yield Row(op, "kv_len", change, f"{n} elements", "1 element")
    yield from fp4_mean_rows(op)
    for value, text in ((0.0, "0.0"), (-0.5, "-0.5"), (float("nan"), "nan"), (float("inf"), "inf")):
        yield Row(op, "scale", put_new("scale", value), text, "a positive number")
    yield from lengths(op, "kv_len", 24, "k_codes", 1)


def fp4_value_rows(op: str) -> Iterator[Row]:
    arg, args = "v_cache", valid("fp4_attention")
    for change in (lambda x: x[0], lambda x: x[None], lambda x: x.new_zeros(())):
        got = f"shape {shape(change(args[arg]))}"
        yield Row(op, arg, put(arg, change), got, "4 dimensions [B, S, H, D]")
    for dtype in ("float64", "int32", "uint8", "float8_e5m2"):
        expected = "dtype float32, bfloat16, float16 or float8_e4m3fn"
        yield Row(op, arg, put(arg, cast(dtype)), f"dtype {dtype}", expected)
    for change, stride in ((every_second, 2), (lambda x: x[..., :1].expand(x.shape), 0)):
        got = f"stride {stride} in the last dimension"
        yield Row(op, arg, put(arg, change), got, "stride 1", "call .contiguous()")
    for dim in range(3):
        got = f"shape {shape(shorter(dim)(args[arg]))}"
        k_shape = shape(args["k_codes"])
        expected = f"[B, S_cap, H, D] with the B, H and S_cap of k_codes {k_shape}"
        yield Row(op, arg, put(arg, shorter(dim)), got, expected)
    for n in (0, 16, 31, 48, 63):
        expected = "a D of which codes of depth 128 carry D + 2 T, T a multiple of 16 up to D"
        yield Row(op, arg, put(arg, lambda x, n=n: x[..., :n]), f"D = {n}", expected)

    def mxfp8(args: Arguments) -> Arguments:
        wide = {name: args[name].repeat(1, 1, 1, 4) for name in ("q_codes", "k_codes")}
        return wide | {
            name: args[name].view(torch.float8_e8m0fnu) for name in ("q_scales", "k_scales")
        }

    yield Row(op, arg, mxfp8, "D = 128", "D = 256, a byte of k_codes each")
    yield from placed(op, arg, "q_codes")


def fp4_mean_rows(op: str) -> Iterator[Row]:
    expected, hint = (
        "a tensor, as k_mean is given",
        "q times the mean of its keys is added to logits",
    )
    yield Row(op, "q", put_new("q", None), "None", expected, hint)
    yield Row(op, "q", put_new("k_mean", None), "a tensor", "None, as k_mean is None")
    yield from activation(op, "q")
    yield from sized(op, "q", "[B, S, H, D]", ranks=False)
    yield from typed_like(op, "q", "v_cache")
    yield from sized(op, "k_mean", "[B, H, tiles of 128 rows, D]")
    for dtype in ("float32", "float16"):
        yield Row(op, "k_mean", put("k_mean", cast(dtype)), f"dtype {dtype}", "dtype bfloat16")
    yield from strided(op, "k_mean")
    yield from placed(op, "k_mean", "q_codes")


ORDER = torch.arange(128, dtype=torch.int32).flip(0).repeat(2, 1)  # [H, D], a valid `perm`


def fp4_kv_rows() -> Iterator[Row]:
    op = "qk_norm_rope_nvfp4_kv_write"
    yield from activation(op, "q")
    yield from like(op, "k", "q")
    yield from like(op, "v", "q")
    yield from weight(op, "q_weight", "q")
    yield from weight(op, "k_weight", "q")
    yield from epsilon(op)
    yield from int_vector(op, "frame_pos", "q")
    yield from int_vector(op, "frame_slot", "q")
    yield from rope_tables(op, "q")
    for row in huge_grids(op):
        yield replace(row, change=lambda args, r=row: r.change(args) | no_frames(args))
    for recipe in ("4/6", "", "Default"):
        expected = "'plain', 'default', 'accurate', 'accurate256' or 'mxfp8'"
        yield Row(op, "recipe", put_new("recipe", recipe), f"'{recipe}'", expected)
    yield Row(op, "q", narrow, "D = 32", "a multiple of 64 for the recipe 'default'")
    for tokens in (1, 5, 11):
        change = lambda args, n=tokens: {name: args[name][:, :n] for name in "qkv"}  # noqa: E731
        yield Row(op, "q", change, f"{tokens} tokens", "whole frames of 6")
    yield from block_fits(op, "frame_pos", "q")
    yield from block_fits(op, "frame_slot", "q")
    yield from fp4_kv_value_rows(op)
    yield from fp4_kv_key_rows(op)
    with_order = lambda change: lambda _: {"perm": change(ORDER)}  # noqa: E731
    for change in (lambda x: x[0], lambda x: x[:1], lambda x: x[:, 1:].contiguous()):
        expected = "[H, D] = [2, 128]"
        yield Row(op, "perm", with_order(change), f"shape {shape(change(ORDER))}", expected)
    yield Row(op, "perm", with_order(Tensor.long), "dtype int64", "dtype int32")
    got, expected = "a strided tensor", "a contiguous one"
    yield Row(op, "perm", with_order(every_second), got, expected, "call .contiguous()")
    got, expected = "a tensor on {odd}", "the device {home} of q"
    yield Row(op, "perm", with_order(lambda x: x.to("meta")), got, expected, kind="device")
    yield from fp4_kv_memory(op)
    yield from positions(op)
    yield from (row for row in slots(op) if "24 rows" in row.hint or not row.hint)
    for head, place, channel in ((0, 0, -1), (1, 3, 128), (1, 127, 2**31 - 1)):
        wrong = ORDER.clone()
        wrong[head, place] = channel
        got = f"channel {channel} in place {place} of head {head}"
        expected = "a channel from 0 to 127"
        yield Row(op, "perm", put_new("perm", wrong), got, expected, kind="data")


def no_frames(args: Arguments) -> Arguments:
    """Return a block and caches of no frames, whole at any size, and tables without space."""
    tokens = {name: args[name][:, :0] for name in ("q", "k", "v", "v_cache")}
    keys = {name: args[name][:, :, :0] for name in ("k_codes", "k_scales", "k_mean")}
    return tokens | keys | {"time_freqs": torch.zeros(64, 64, 2)}


def narrow(args: Arguments) -> Arguments:
    """Return q, k, v, weights and tables of D = 32."""
    time, space = tables(32, 2, 3)
    heads = {name: args[name][..., :32] for name in "qkv"}
    weights = {name: args[name][:64] for name in ("q_weight", "k_weight")}
    return heads | weights | {"time_freqs": time, "space_freqs": space}


def fp4_kv_value_rows(op: str) -> Iterator[Row]:
    arg, args = "v_cache", valid(op)
    for change in (lambda x: x[0], lambda x: x[None], lambda x: x.new_zeros(())):
        got = f"shape {shape(change(args[arg]))}"
        yield Row(op, arg, put(arg, change), got, "4 dimensions [B, S_cap, H, D]")
    for dtype in ("float16", "uint8", "float8_e5m2"):
        expected = "the dtype float32 of q, or float8_e4m3fn"
        yield Row(op, arg, put(arg, cast(dtype)), f"dtype {dtype}", expected)
    for dim in (0, 2, 3):
        got = f"shape {shape(shorter(dim)(args[arg]))}"
        expected = f"[B, S_cap, H, D] with the B, H and D of q {shape(args['q'])}"
        yield Row(op, arg, put(arg, shorter(dim)), got, expected)
    for rows in (1, 23):
        change = put(arg, lambda x, n=rows: x[:, :n])
        yield Row(op, arg, change, f"{rows} rows", "whole slots of 6")
    for change, stride in ((every_second, 2), (lambda x: x[..., :1].expand(x.shape), 0)):
        got = f"stride {stride} in the last dimension"
        yield Row(op, arg, put(arg, change), got, "stride 1", "call .contiguous()")
    yield from placed(op, arg, "q")


def fp4_kv_key_rows(op: str) -> Iterator[Row]:
    for arg, layout, dtype, expected in (
        ("k_codes", "[B, H, S_cap, bytes]", "int8", "uint8"),
        (
            "k_scales",
            "[B, H, tiles of 128 rows, scales / 4, 32, 4, 4]",
            "float8_e8m0fnu",
            "float8_e4m3fn for the recipe 'default'",
        ),
        ("k_mean", "[B, H, tiles of 128 rows, D]", "float16", "bfloat16"),
    ):
        yield from sized(op, arg, layout)
        yield Row(op, arg, put(arg, cast(dtype)), f"dtype {dtype}", f"dtype {expected}")
        yield from strided(op, arg)
        yield from placed(op, arg, "q")
    yield Row(op, "k_mean", put_new("k_mean", None), "None", "a tensor for the recipe 'default'")
    change = put_new("recipe", "plain")
    yield Row(op, "k_mean", change, "a tensor", "None for the recipe 'plain'")


def fp4_kv_memory(op: str) -> Iterator[Row]:
    """Every tensor that is written, and every other that it could share memory with."""
    arg = "v_cache"
    for change in (
        lambda x: x[:1].expand(x.shape),
        lambda x: x[:, :1].expand(x.shape),
        lambda x: x[:, :, :1].expand(x.shape),
    ):
        got, expected = "a view whose elements share memory", "memory of its own for each element"
        yield Row(op, arg, put(arg, change), got, expected, "call .contiguous()", kind="data")
    written = [*OPS[op].mutates]
    read = [*("q", "k", "v", "q_weight", "k_weight", "frame_pos", "frame_slot")]
    read += ["time_freqs", "space_freqs", "perm"]
    for i, arg in enumerate(written):
        for other in (*written[:i], *read):
            yield Row(
                op,
                arg,
                lambda args, pair=(arg, other): in_one_place(args | {"perm": ORDER}, pair),
                f"memory that overlaps {other}",
                "separate memory",
                f"call .clone() on {other}",
                kind="data",
            )


def in_one_place(args: Arguments, names: tuple[str, str]) -> Arguments:
    """Return tensors of the same shapes that begin at one address; the longer one has the other."""
    base = torch.zeros(max(args[name].nbytes for name in names), dtype=torch.uint8)
    return {
        name: base[: args[name].nbytes].view(args[name].dtype).view(args[name].shape)
        for name in names
    }


ROWS: list[Row] = [
    *rope_rows(),
    *kv_cache_rows(),
    *norm_rope_rows(),
    *fp4_kv_rows(),
    *pack_rows(),
    *unpack_rows(),
    *all_gather_rows(),
    *attention_rows(),
    *cross_attention_rows(),
    *fp4_attention_rows(),
    *nvfp4_rows(),
]
