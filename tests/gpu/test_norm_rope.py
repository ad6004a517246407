"""qk_norm_rope_kv_write against the CPU kernel and the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vidk
from tests.ops.helpers import (
    CACHES,
    DTYPES,
    HEAD_DIMS,
    READ_LAYOUTS,
    assert_close,
    assert_rounded,
    assert_same_memory,
    dtype_id,
    ints,
    normal,
    pair_scale,
    random_bits,
    twins,
)
from tests.ops.test_norm_rope import EPS, FRAME, index, weights
from vidk import reference
from vidk.reference.norm_rope import rms_norm

from .helpers import MODEL, move, sample

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
op = torch.ops.vidk.qk_norm_rope_kv_write


def assert_nearly(got: Tensor, expected: Tensor, normed: Tensor) -> None:
    """Equal but for the last bit of the statistics, whose sums have another order here.

    That bit moves few normed values, by one unit of their dtype; few samples may have more of them.
    """
    if got.dtype == torch.float32:
        return assert_close(got, expected, 4e-6)
    unit = torch.finfo(got.dtype).eps * pair_scale(normed) / (3 * 2.0**-24)
    assert_rounded(got, expected, unit, share=0.999 if got.numel() > 10**5 else 0.99)


def check(qkv: Any, w: Any, idx: Any, caches: Any, eps: float = EPS) -> None:
    """Compare q and k but for a rounding of the statistics, and all other memory bit by bit."""
    q, k, v = qkv
    slots, n = idx[1], idx[4] * idx[5]
    there = move(*qkv, *w, *idx[:4], *caches)
    got_q = op(*there[:5], eps, *there[5:9], *idx[4:], *there[9:])
    assert got_q.is_contiguous()
    back = move(*there, device="cpu")
    assert_same_memory(back[:9], [*qkv, *w, *idx[:4]], "inputs")
    got = back[9:]
    rows = reference.kv_cache.cache_rows(q.size(1), slots, n)
    got_k = got[0][:, rows].contiguous()

    normed = [rms_norm(x.flatten(2), y, eps).view(x.shape) for x, y in zip((q, k), w, strict=True)]
    for form in (op, reference.qk_norm_rope_kv_write):
        expected = twins(*caches)
        expected_q = form(*qkv, *w, eps, *idx, *expected)
        assert_nearly(got_q.cpu(), expected_q, normed[0])
        assert_nearly(got_k, expected[0][:, rows].contiguous(), normed[1])
    expected = twins(*caches)
    vidk.kv_cache_write(got_k, v, *expected, slots, n)
    assert_same_memory(got, expected, "caches")


@every_dtype
@pytest.mark.parametrize("layout", READ_LAYOUTS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_layouts(head_dim: int, layout: str, dtype: torch.dtype) -> None:
    make = normal(dtype, layout, head_dim)
    qkv = [READ_LAYOUTS[layout](make, 2, 2 * FRAME + 7, 3, head_dim) for _ in range(3)]
    caches = CACHES["two_tensors"](random_bits(dtype, layout), 2, 5 * FRAME, 3, head_dim)
    idx = index(head_dim, ints(7, 63, 0), ints(4, 1, 2))
    check(qkv, weights(make, 3 * head_dim), idx, caches)


@every_dtype
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("head_dim", [6, 48, 128])
def test_layouts_of_the_caches(head_dim: int, cache: str, dtype: torch.dtype) -> None:
    make = normal(dtype, cache, head_dim)
    qkv = make(2, 2 * FRAME, 3, 3, head_dim).unbind(2)
    caches = CACHES[cache](random_bits(dtype, cache), 2, 4 * FRAME, 3, head_dim)
    check(qkv, weights(make, 3 * head_dim), index(head_dim, ints(2, 9), ints(3, 0)), caches)


@every_dtype
@pytest.mark.parametrize("heads", [1, 12, 24, 40])
def test_rows_of_the_models(heads: int, dtype: torch.dtype) -> None:
    """1.3B, 5B and 14B have rows of 1536, 3072 and 5120 channels."""
    make = normal(dtype, heads)
    qkv = make(1, 2 * FRAME + 3, 3, heads, 128).unbind(2)
    caches = CACHES["layer_of_stack"](make, 1, 4 * FRAME, heads, 128)
    check(qkv, weights(make, heads * 128), index(128, ints(2, 9, 4), ints(3, 0, 1)), caches)


@pytest.mark.parametrize("eps", [0.0, 1e-5, 1.0])
def test_eps(eps: float) -> None:
    make = normal(torch.float32, eps)
    qkv = [make(1, FRAME, 2, 32) * 1e-3 for _ in range(3)]
    caches = CACHES["two_tensors"](make, 1, FRAME, 2, 32)
    check(qkv, weights(make, 64), index(32, ints(5), ints(0)), caches, eps)


def test_zero_tokens_stay_zero() -> None:
    make = normal(torch.bfloat16)
    qkv = [torch.zeros(1, FRAME, 2, 128, dtype=torch.bfloat16)] * 3
    caches = CACHES["two_tensors"](make, 1, FRAME, 2, 128)
    check(qkv, weights(make, 256), index(128, ints(5), ints(0)), caches)


@every_dtype
def test_model_shape(dtype: torch.dtype) -> None:
    args, _ = sample("qk_norm_rope_kv_write", dtype, MODEL)
    check(args[:3], args[3:5], args[6:12], args[12:], args[5])
