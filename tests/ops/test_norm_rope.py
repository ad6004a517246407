"""qk_norm_rope_kv_write against the unfused sequence and the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vidk
from vidk import reference
from vidk.reference.norm_rope import rms_norm

from .helpers import (
    CACHES,
    DTYPES,
    HEAD_DIMS,
    READ_LAYOUTS,
    assert_close,
    assert_rounded,
    assert_same_bits,
    assert_same_memory,
    dtype_id,
    far_apart,
    ints,
    normal,
    pair_scale,
    random_bits,
    tables,
    twins,
)

op = torch.ops.vidk.qk_norm_rope_kv_write
HEIGHT, WIDTH, EPS = 3, 5, 1e-6
FRAME = HEIGHT * WIDTH
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)


def index(head_dim: int, pos: Tensor, slots: Tensor) -> tuple[Any, ...]:
    return (pos, slots, *tables(head_dim, HEIGHT, WIDTH), HEIGHT, WIDTH)


def weights(make: Any, channels: int) -> tuple[Tensor, Tensor]:
    """Return weights about 1, as trained ones are."""
    return tuple((make(channels).float() * 0.2 + 1).to(make(1).dtype) for _ in range(2))


def assert_nearly(got: Tensor, expected: Tensor, normed: Tensor) -> None:
    """Equal but for the last bit of the float32 statistics, whose roundings go either way.

    That bit moves a normed value by one unit of its dtype at most, once in some thousand values,
    and the rotation spreads it over the value's pair.
    """
    if got.dtype == torch.float32:
        return assert_close(got, expected, 4e-6)
    scale = pair_scale(normed)
    unit = torch.finfo(got.dtype).eps * scale / (3 * 2.0**-24)
    assert_rounded(got, expected, unit, share=0.999)


def check(q: Tensor, k: Tensor, v: Tensor, w: tuple[Tensor, Tensor], idx: Any, caches: Any) -> None:
    """Run the op, and plain RMSNorm, `rope_3d` and `kv_cache_write` one after the other."""
    frame_pos, frame_slot, time, space, height, width = idx
    expected_caches = twins(*caches)
    inputs = twins(q, k, v)
    got = op(q, k, v, *w, EPS, *idx, *caches)
    assert got.is_contiguous() and got.shape == q.shape
    assert_same_memory([q, k, v], inputs, "inputs")
    normed = [rms_norm(x.flatten(2), y, EPS).view(x.shape) for x, y in zip((q, k), w, strict=True)]
    rope = (frame_pos, time, space, height, width)
    q_expected, k_expected = (vidk.rope_3d(x, *rope) for x in normed)
    assert_nearly(got, q_expected, normed[0])
    rows = reference.kv_cache.cache_rows(q.size(1), frame_slot, height * width)
    k_got = caches[0][:, rows].contiguous()
    assert_nearly(k_got, k_expected, normed[1])
    # v is copied, and all memory but k's rows is as the unfused writes leave it.
    vidk.kv_cache_write(k_got, v, *expected_caches, frame_slot, height * width)
    assert_same_memory(list(caches), expected_caches, "caches")


@every_dtype
@pytest.mark.parametrize("layout", READ_LAYOUTS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_unfused_sequence(head_dim: int, layout: str, dtype: torch.dtype) -> None:
    make = normal(dtype, layout, head_dim)
    q, k, v = (READ_LAYOUTS[layout](make, 2, 2 * FRAME + 7, 3, head_dim) for _ in range(3))
    caches = CACHES["two_tensors"](random_bits(dtype, layout), 2, 5 * FRAME, 3, head_dim)
    idx = index(head_dim, ints(7, 63, 0), ints(4, 1, 2))
    check(q, k, v, weights(make, 3 * head_dim), idx, caches)


@every_dtype
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("head_dim", [6, 48, 128])
def test_layouts_of_the_caches(head_dim: int, cache: str, dtype: torch.dtype) -> None:
    make = normal(dtype, cache, head_dim)
    q, k, v = make(2, 2 * FRAME, 3, 3, head_dim).unbind(2)
    caches = CACHES[cache](random_bits(dtype, cache), 2, 4 * FRAME, 3, head_dim)
    idx = index(head_dim, ints(2, 9), ints(3, 0))
    check(q, k, v, weights(make, 3 * head_dim), idx, caches)


@every_dtype
def test_large_block_on_all_threads(dtype: torch.dtype) -> None:
    """The channels of the 1.3B model, on enough tokens for every thread; the share is strict."""
    make = normal(dtype)
    height, width = 15, 26
    q, k, v = make(1, height * width + 100, 3, 12, 128).unbind(2)
    caches = CACHES["layer_of_stack"](make, 1, 2 * height * width, 12, 128)
    idx = (ints(7, 3), ints(1, 0), *tables(128, height, width), height, width)
    w = weights(make, 12 * 128)
    again = twins(*caches)
    check(q, k, v, w, idx, caches)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = op(q, k, v, *w, EPS, *idx, *again)
    finally:
        torch.set_num_threads(threads)
    assert_same_bits(alone, op(q, k, v, *w, EPS, *idx, *caches))
    assert_same_memory(again, list(caches))


def test_float64_oracle() -> None:
    """Float32 stays within rounding of the norm and rotation done in float64."""
    make = normal(torch.float32)
    q, k, v = (make(1, FRAME, 12, 128) for _ in range(3))
    w = weights(make, 12 * 128)
    time, space = tables(128, HEIGHT, WIDTH)
    caches = CACHES["two_tensors"](make, 1, FRAME, 12, 128)
    got = op(q, k, v, *w, EPS, *index(128, ints(5), ints(0)), *caches)
    for x, y, out in ((q, w[0], got), (k, w[1], caches[0])):
        wide = x.double().flatten(2)
        normed = wide / (wide.square().mean(-1, keepdim=True) + EPS).sqrt() * y.double()
        expected = reference.rope_3d(normed.view(x.shape), ints(5), time, space, HEIGHT, WIDTH)
        assert_close(out, expected.float(), 3e-6)


@pytest.mark.parametrize("eps", [0.0, 1e-5, 1.0, 1e30])
def test_eps(eps: float) -> None:
    make = normal(torch.float32, eps)
    q, k, v = (make(1, FRAME, 2, 32) * 1e-3 for _ in range(3))
    w = weights(make, 64)
    idx = index(32, ints(5), ints(0))
    caches = CACHES["two_tensors"](make, 1, FRAME, 2, 32)
    expected_caches = twins(*caches)
    got = op(q, k, v, *w, eps, *idx, *caches)
    expected = reference.qk_norm_rope_kv_write(q, k, v, *w, eps, *idx, *expected_caches)
    assert_close(got, expected, 4e-6)
    assert_close(caches[0], expected_caches[0], 4e-6)


@every_dtype
def test_squares_that_overflow(dtype: torch.dtype) -> None:
    """A token of the largest numbers: its mean square is infinite where float32 has no room."""
    make = normal(dtype)
    big = torch.finfo(dtype).max
    q = make(1, FRAME, 2, 32)
    q[0, 3] = big
    w, idx = weights(make, 64), index(32, ints(5), ints(0))
    caches = CACHES["two_tensors"](make, 1, FRAME, 2, 32)
    expected_caches = twins(*caches)
    got = op(q, q, q, *w, EPS, *idx, *caches)
    expected = reference.qk_norm_rope_kv_write(q, q, q, *w, EPS, *idx, *expected_caches)
    assert_nearly(got, expected, torch.full_like(q, 5))
    assert_nearly(caches[0], expected_caches[0], torch.full_like(q, 5))
    assert got[0, 3].any() == (dtype == torch.float16)


def test_entries_of_unused_frames_are_not_read() -> None:
    make = normal(torch.float32)
    q = make(1, FRAME, 2, 32)
    w = weights(make, 64)
    caches = CACHES["two_tensors"](make, 1, FRAME, 2, 32)
    expected_caches = twins(*caches)
    got = op(q, q, q, *w, EPS, *index(32, ints(5, -1, 99), ints(0, 0, -3)), *caches)
    expected = op(q, q, q, *w, EPS, *index(32, ints(5), ints(0)), *expected_caches)
    assert_same_bits(got, expected)
    assert_same_memory(list(caches), expected_caches)


@every_dtype
def test_zero_token_stays_zero(dtype: torch.dtype) -> None:
    make = normal(dtype)
    q = torch.zeros(1, FRAME, 2, 32, dtype=dtype)
    caches = CACHES["two_tensors"](random_bits(dtype), 1, FRAME, 2, 32)
    got = op(q, q, q, *weights(make, 64), EPS, *index(32, ints(5), ints(0)), *caches)
    for x in (got, *caches):
        assert not x.any()


@every_dtype
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("tensor", ["q", "k", "v"])
def test_special_value_stays_in_its_token(tensor: str, value: float, dtype: torch.dtype) -> None:
    make = normal(dtype, tensor)
    qkv = {name: make(2, FRAME, 2, 32) for name in "qkv"}
    w = weights(make, 64)
    idx = index(32, ints(5), ints(1))
    caches = CACHES["k_beside_v_in_token"](make, 2, 2 * FRAME, 2, 32)
    clean_caches = twins(*caches)
    clean = op(*qkv.values(), *w, EPS, *idx, *clean_caches)
    qkv[tensor] = qkv[tensor].clone()
    qkv[tensor][1, 8, 1, 6] = value
    expected_caches = twins(*caches)
    expected = reference.qk_norm_rope_kv_write(*qkv.values(), *w, EPS, *idx, *expected_caches)
    got = op(*qkv.values(), *w, EPS, *idx, *caches)
    outputs = {"q": (got, clean, expected)}
    outputs |= {
        name: (caches[i], clean_caches[i], expected_caches[i]) for i, name in enumerate("kv")
    }
    for name, (dirty, unharmed, oracle) in outputs.items():
        assert torch.equal(dirty.isfinite(), oracle.isfinite()), name
        if name == tensor:
            at = (1, 8 + (0 if name == "q" else FRAME))
            assert not dirty[at].isfinite().all(), name
            dirty = dirty.clone()
            dirty[at] = unharmed[at]
        assert_same_bits(dirty, unharmed, f"{name} of another token")


@pytest.mark.parametrize(
    "size", [(0, 15, 2, 6), (2, 0, 2, 6), (2, 15, 0, 6), (2, 15, 2, 0)], ids=["B", "S", "H", "D"]
)
def test_empty(size: tuple[int, int, int, int]) -> None:
    make = normal(torch.float32)
    batch, _, heads, dim = size
    q = make(*size)
    w = (make(heads * dim), make(heads * dim))
    caches = CACHES["two_tensors"](make, batch, 2 * FRAME, heads, dim)
    before = twins(*caches)
    got = op(q, q, q, *w, EPS, *index(dim, ints(5), ints(1)), *caches)
    assert got.shape == size and got.is_contiguous()
    assert_same_memory(list(caches), before)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_offsets_past_2_31_elements(dim: int) -> None:
    make = normal(torch.bfloat16, dim)
    w = weights(make, 64)
    idx = (ints(7), ints(0), *tables(32, 1, 3), 1, 3)
    q, k, v = (make(2, 3, 2, 32) for _ in range(3))
    caches = [make(2, 3, 2, 32) for _ in range(2)]
    far = [far_apart(c, dim) for c in caches]
    got = op(far_apart(q, dim), k, v, *w, EPS, *idx, *far)
    assert_same_bits(got, op(q, k, v, *w, EPS, *idx, *caches))
    for a, b in zip(far, caches, strict=True):
        assert_same_bits(a, b)
