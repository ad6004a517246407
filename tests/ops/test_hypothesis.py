"""Properties: every op agrees with its reference on calls that nobody thought of."""

from __future__ import annotations

import os
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from vidk import reference
from vidk.ops.fp4_quantize import depth_unit
from vidk.reference import fp4
from vidk.reference.norm_rope import rms_norm
from vidk.rope import freq_table

from .helpers import (
    CACHES,
    DTYPES,
    READ_LAYOUTS,
    assert_close,
    assert_same_bits,
    assert_same_memory,
    ints,
    normal,
    pair_scale,
    random_bits,
    twins,
    ulp,
)
from .test_attention import assert_attended, lse_tolerance
from .test_cross_attention import padded
from .test_fp4_attention import check as check_fp4_attention
from .test_fp4_attention import quantized
from .test_fp4_kv import Block as Fp4KvBlock
from .test_fp4_kv import check as check_fp4_kv

# Not derandomised at a desk, so that every run looks at new cases.
properties = settings(max_examples=100, deadline=None, derandomize="CI" in os.environ)

seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(DTYPES)
layouts = st.sampled_from(sorted(READ_LAYOUTS))
cache_layouts = st.sampled_from(sorted(CACHES))
batches, heads = st.integers(0, 3), st.integers(0, 4)
grids = st.tuples(st.integers(1, 5), st.integers(1, 5))
bands = st.tuples(st.integers(0, 9), st.integers(0, 9))  # pairs of time, of each space band


def table(rows: int, pairs: int) -> Tensor:
    return freq_table(torch.arange(rows), pairs)


@st.composite
def slots(draw: Any, frames: int, capacity: int) -> Tensor:
    """Distinct slots in any order."""
    return ints(*draw(st.permutations(range(capacity)))[:frames])


def assert_rotated(got: Tensor, expected: Tensor, scale: Tensor) -> None:
    """Assert one unit in the last place, and float32 rounding of the terms, for each element."""
    assert got.dtype == expected.dtype and got.shape == expected.shape and got.is_contiguous()
    allowed = ulp(expected, got.dtype) + 4 * 2.0**-24 * scale
    assert ((got.double() - expected.double()).abs() <= allowed).all()


@properties
@given(st.data())
def test_rope_3d(data: Any) -> None:
    seed, dtype, layout = data.draw(seeds), data.draw(dtypes), data.draw(layouts)
    b, h, (height, width) = data.draw(batches), data.draw(heads), data.draw(grids)
    time_pairs, space_pairs = data.draw(bands)
    frames, hw = data.draw(st.integers(0, 4)), height * width
    tokens = data.draw(st.integers(0, frames * hw + 3))
    rows = data.draw(st.integers(1, 40))
    pos = ints(*data.draw(st.lists(st.integers(0, rows - 1), min_size=frames, max_size=frames)))
    extra = data.draw(st.integers(0, 3))
    freqs = table(rows, time_pairs), table(max(height, width) + extra, space_pairs)
    options = {
        "token_offset": data.draw(st.integers(0, frames * hw + 2)),
        "slice_tokens": data.draw(st.none() | st.integers(1, hw)),
    }
    dim = 2 * (time_pairs + 2 * space_pairs)
    x = READ_LAYOUTS[layout](normal(dtype, seed), b, tokens, h, dim)
    args = (x, pos, *freqs, height, width)
    got = torch.ops.vidk.rope_3d(*args, **options)
    assert_rotated(got, reference.rope_3d(*args, **options), pair_scale(x))


@properties
@given(st.data())
def test_kv_cache_write(data: Any) -> None:
    seed, dtype = data.draw(seeds), data.draw(dtypes)
    b, h, dim = data.draw(batches), data.draw(heads), data.draw(st.integers(0, 37))
    frame_tokens, capacity = data.draw(st.integers(1, 6)), data.draw(st.integers(0, 6))
    frames = data.draw(st.integers(0, capacity))
    tokens = data.draw(st.integers(0, frames * frame_tokens))
    make = random_bits(dtype, seed)
    k, v = (READ_LAYOUTS[data.draw(layouts)](make, b, tokens, h, dim) for _ in range(2))
    caches = CACHES[data.draw(cache_layouts)](make, b, capacity * frame_tokens, h, dim)
    expected, inputs = twins(*caches), twins(k, v)
    where = data.draw(slots(frames, capacity)), frame_tokens
    torch.ops.vidk.kv_cache_write(k, v, *caches, *where)
    reference.kv_cache_write(*inputs, *expected, *where)
    assert_same_memory(list(caches), expected)


@properties
@given(st.data())
def test_qk_norm_rope_kv_write(data: Any) -> None:
    seed, dtype = data.draw(seeds), data.draw(dtypes)
    b, h, (height, width) = data.draw(batches), data.draw(heads), data.draw(grids)
    time_pairs, space_pairs = data.draw(bands)
    capacity, hw = data.draw(st.integers(0, 4)), height * width
    frames = data.draw(st.integers(0, capacity))
    tokens = data.draw(st.integers(0, frames * hw))
    dim = 2 * (time_pairs + 2 * space_pairs)
    make = normal(dtype, seed)
    qkv = [READ_LAYOUTS[data.draw(layouts)](make, b, tokens, h, dim) for _ in range(3)]
    weights = (make(h * dim), make(h * dim))
    eps = data.draw(st.sampled_from([1e-6, 1e-5, 1e-2]))
    pos = ints(*data.draw(st.lists(st.integers(0, 31), min_size=frames, max_size=frames)))
    where = data.draw(slots(frames, capacity))
    freqs = table(32, time_pairs), table(max(height, width), space_pairs)
    index = (pos, where, *freqs, height, width)
    caches = CACHES[data.draw(cache_layouts)](make, b, capacity * hw, h, dim)
    expected_caches = twins(*caches)
    args = (*qkv, *weights, eps, *index)
    got = torch.ops.vidk.qk_norm_rope_kv_write(*args, *caches)
    expected = reference.qk_norm_rope_kv_write(*args, *expected_caches)

    # A normed value may round the other way, by one unit, and once more under its weight.
    tolerance = 3 * torch.finfo(dtype).eps
    rows = reference.kv_cache.cache_rows(tokens, where, hw)
    results = ((got, expected), (caches[0][:, rows], expected_caches[0][:, rows]))
    for x, w, (mine, oracle) in zip(qkv, weights, results, strict=False):
        scale = pair_scale(rms_norm(x.flatten(2), w, eps).view(x.shape)) if x.numel() else x
        assert ((mine.double() - oracle.double()).abs() <= tolerance * scale + 1e-7).all()
    assert_same_bits(caches[1], expected_caches[1], "v")
    expected_caches[0][:, rows] = caches[0][:, rows]
    assert_same_memory(list(caches), expected_caches, "rows that nobody named")


@properties
@given(st.data())
def test_qk_norm_rope_nvfp4_kv_write(data: Any) -> None:
    """To the bit: the op without FP4, then the reference's quantiser."""
    height, width = data.draw(st.sampled_from([(1, 1), (2, 3), (5, 1), (9, 15), (16, 8)]))
    capacity = data.draw(st.integers(1, 4))
    frames = data.draw(st.integers(1, min(capacity, 2)))
    positions = data.draw(st.lists(st.integers(0, 63), min_size=frames, max_size=frames))
    recipe = data.draw(st.sampled_from(sorted(fp4.RECIPES)))
    check_fp4_kv(
        Fp4KvBlock(
            recipe,
            data.draw(dtypes),
            heads=data.draw(st.integers(1, 3)),
            dim=depth_unit(recipe) * data.draw(st.integers(1, 2)),
            batch=data.draw(st.integers(1, 2)),
            height=height,
            width=width,
            slots=tuple(data.draw(slots(frames, capacity)).tolist()),
            positions=tuple(positions),
            capacity=capacity,
            fp8=data.draw(st.booleans()),
            sorted=data.draw(st.booleans()),
            layout=data.draw(layouts),
        )
    )


@st.composite
def packs(draw: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Any call of qk_norm_rope_pack."""
    seed, dtype, ranks = draw(seeds), draw(dtypes), draw(st.integers(1, 4))
    b, h, (height, width) = draw(batches), ranks * draw(st.integers(0, 3)), draw(grids)
    time_pairs, space_pairs = draw(bands)
    frames, hw = draw(st.integers(0, 4)), height * width
    tokens = draw(st.integers(0, frames * hw + 3))
    dim = 2 * (time_pairs + 2 * space_pairs)
    make = normal(dtype, seed)
    given_tensors = draw(st.sampled_from(["qkv", "q", "k", "v", "qk", "kv"]))
    qkv = [
        READ_LAYOUTS[draw(layouts)](make, b, tokens, h, dim) if name in given_tensors else None
        for name in "qkv"
    ]
    weights = [None if x is None else make(h * dim) for x in qkv[:2]]
    pos = ints(*draw(st.lists(st.integers(0, 31), min_size=frames, max_size=frames)))
    freqs = table(32, time_pairs), table(max(height, width), space_pairs)
    options = {
        "token_offset": draw(st.integers(0, frames * hw + 2)),
        "slice_tokens": draw(st.none() | st.integers(1, hw)),
    }
    eps = draw(st.sampled_from([1e-6, 1e-5, 1e-2]))
    return (*qkv, *weights, eps, pos, *freqs, height, width, ranks), options


@properties
@given(packs())
def test_qk_norm_rope_pack(call: Any) -> None:
    args, options = call
    got = torch.ops.vidk.qk_norm_rope_pack(*args, **options)
    expected = reference.qk_norm_rope_pack(*args, **options)
    assert got.shape == expected.shape and got.is_contiguous()
    q, k, _, q_weight, k_weight, eps = args[:6]
    parts = list(zip(got.unbind(1), expected.unbind(1), strict=True))
    for x, w in ((q, q_weight), (k, k_weight)):
        if x is None:
            continue
        mine, oracle = parts.pop(0)
        scale = pair_scale(rms_norm(x.flatten(2), w, eps).view(x.shape)) if x.numel() else x
        scale = reference.exchange.pack([scale], got.size(0))[:, 0]
        tolerance = 3 * torch.finfo(x.dtype).eps
        assert ((mine.double() - oracle.double()).abs() <= tolerance * scale + 1e-7).all()
    for mine, oracle in parts:
        assert_same_bits(mine, oracle, "v")


@properties
@given(st.data())
def test_unpack_kv_write(data: Any) -> None:
    seed, dtype, ranks = data.draw(seeds), data.draw(dtypes), data.draw(st.integers(1, 5))
    b, h, dim = data.draw(batches), data.draw(heads), data.draw(st.integers(0, 37))
    frame_tokens, capacity = data.draw(st.integers(1, 6)), data.draw(st.integers(0, 6))
    frames = data.draw(st.integers(0, capacity))
    tokens = data.draw(st.integers(0, frames * frame_tokens))
    extra = data.draw(st.integers(0, 2))
    options, shard = {}, -(-tokens // ranks) + extra
    if data.draw(st.booleans()):
        options["slice_tokens"] = min(-(-frame_tokens // ranks) + extra, frame_tokens)
        shard = options["slice_tokens"] * -(-tokens // frame_tokens) + extra
    make = random_bits(dtype, seed)
    k, v = (make(ranks, b, shard, h, dim) for _ in range(2))
    caches = CACHES[data.draw(cache_layouts)](make, b, capacity * frame_tokens, h, dim)
    expected, inputs = twins(*caches), twins(k, v)
    where = data.draw(slots(frames, capacity)), frame_tokens, tokens
    torch.ops.vidk.unpack_kv_write(k, v, *caches, *where, **options)
    reference.unpack_kv_write(*inputs, *expected, *where, **options)
    assert_same_memory(list(caches), expected)


@properties
@given(st.data())
def test_all_gather_rope(data: Any) -> None:
    """One rank of several: its own chunk, and nothing else."""
    seed, dtype, ranks = data.draw(seeds), data.draw(dtypes), data.draw(st.integers(1, 5))
    b, h, (height, width) = data.draw(batches), data.draw(heads), data.draw(grids)
    time_pairs, space_pairs = data.draw(bands)
    frames, hw = data.draw(st.integers(0, 4)), height * width
    slice_tokens, rank = data.draw(st.none() | st.integers(1, hw)), data.draw(st.integers(0, 4))
    rank %= ranks
    tokens = data.draw(st.integers(0, frames * hw + 3))
    pos = ints(*data.draw(st.lists(st.integers(0, 31), min_size=frames, max_size=frames)))
    freqs = table(32, time_pairs), table(max(height, width), space_pairs)
    dim = 2 * (time_pairs + 2 * space_pairs)
    x = READ_LAYOUTS[data.draw(layouts)](normal(dtype, seed), b, tokens, h, dim)
    args, run = (x, pos, *freqs, height, width), slice_tokens or tokens
    out = random_bits(dtype, seed)(ranks, *x.shape)
    expected = out.clone()
    torch.ops.vidk_local.all_gather_rope(*args, out, rank, slice_tokens, None)
    options = {"token_offset": rank * run, "slice_tokens": slice_tokens}
    assert_rotated(out[rank], reference.rope_3d(*args, **options), pair_scale(x))
    expected[rank] = out[rank]
    assert_same_bits(out, expected, "another rank's chunk")


@properties
@given(st.data())
def test_attention(data: Any) -> None:
    seed, dtype = data.draw(seeds), data.draw(dtypes)
    b, h, dim = data.draw(batches), data.draw(heads), data.draw(st.integers(1, 40))
    tokens, capacity = data.draw(st.integers(0, 40)), data.draw(st.integers(0, 40))
    valid = data.draw(st.integers(0, capacity))
    scale = data.draw(st.none() | st.floats(-1, 1))
    make = normal(dtype, seed)
    q = READ_LAYOUTS[data.draw(layouts)](make, b, tokens, h, dim)
    k, v = CACHES[data.draw(cache_layouts)](make, b, capacity, h, dim)
    k[:, valid:], v[:, valid:] = float("nan"), float("nan")
    got, lse = torch.ops.vidk.attention(q, k, v, ints(valid), scale=scale)
    expected, expected_lse = reference.attention(q, k, v, ints(valid), scale=scale)
    library = library_attention(q, k[:, :valid], v[:, :valid], scale)
    terms, _ = reference.attention(q, k, v.abs(), ints(valid), scale=scale)
    assert_attended(got, expected, library, terms)
    assert_close(lse, expected_lse, lse_tolerance(dtype))


@properties
@given(st.data())
def test_cross_attention(data: Any) -> None:
    seed, dtype, pad = (
        data.draw(seeds),
        data.draw(dtypes),
        data.draw(st.sampled_from(["trained", "mask"])),
    )
    b, h, dim = data.draw(batches), data.draw(heads), data.draw(st.integers(1, 40))
    tokens, length = data.draw(st.integers(0, 20)), data.draw(st.integers(0, 20))
    lens = data.draw(st.lists(st.integers(0, length), min_size=b, max_size=b))
    scale = data.draw(st.none() | st.floats(-1, 1))
    make = normal(dtype, seed)
    q = READ_LAYOUTS[data.draw(layouts)](make, b, tokens, h, dim)
    k, v = CACHES[data.draw(cache_layouts)](make, b, length, h, dim)
    padded(lens, k, v)
    got = torch.ops.vidk.cross_attention(q, k, v, ints(*lens), pad=pad, scale=scale)
    expected = reference.cross_attention(q, k, v, ints(*lens), pad=pad, scale=scale)
    library = torch.empty_like(expected)
    for row, n in enumerate(lens):
        end = length if pad == "trained" else n
        at = slice(row, row + 1)
        library[at] = library_attention(q[at], k[at, :end], v[at, :end], scale)
    terms = reference.cross_attention(q, k, v.abs(), ints(*lens), pad=pad, scale=scale)
    assert_attended(got, expected, library, terms)


@properties
@given(st.data())
def test_nvfp4_quantize(data: Any) -> None:
    seed, dtype, layout = data.draw(seeds), data.draw(dtypes), data.draw(layouts)
    b, h, tokens = data.draw(batches), data.draw(heads), data.draw(st.integers(0, 9))
    dim = 16 * data.draw(st.integers(0, 20))
    recipe = data.draw(st.sampled_from(["plain", "4/6", "search"]))
    scale = 2.0 ** data.draw(st.integers(-15, 13))
    x = READ_LAYOUTS[layout](lambda *size: normal(dtype, seed)(*size) * scale, b, tokens, h, dim)
    got = torch.ops.vidk.nvfp4_quantize(x, recipe=recipe)
    expected = reference.nvfp4_quantize(x, recipe=recipe)
    for mine, oracle in zip(got, expected, strict=True):
        assert mine.is_contiguous()
        assert_same_bits(mine, oracle)


@settings(properties, max_examples=40)
@given(st.data())
def test_fp4_attention(data: Any) -> None:
    seed, dtype = data.draw(seeds), data.draw(dtypes)
    recipe = data.draw(st.sampled_from(sorted(reference.fp4.RECIPES)))
    dim = 128 if recipe == "mxfp8" else data.draw(st.sampled_from([64, 128]))
    b, h = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    tokens, frame_tokens = data.draw(st.integers(1, 100)), data.draw(st.integers(1, 150))
    rows = frame_tokens * data.draw(st.integers(1, 3))
    make = normal(dtype, seed)
    q = READ_LAYOUTS[data.draw(layouts)](make, b, tokens, h, dim)
    k, v = CACHES[data.draw(cache_layouts)](make, b, rows, h, dim)
    call = quantized(q, k, v, recipe, frame_tokens, data.draw(st.booleans()))
    scale = data.draw(st.none() | st.floats(1e-3, 1))
    check_fp4_attention(call, data.draw(st.integers(1, rows)), scale)


def library_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """Return PyTorch's own attention, whose error in the same dtype is the yardstick."""
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(*heads_first, scale=scale).transpose(1, 2)
