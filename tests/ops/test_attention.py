"""attention against the float64 reference, in half precision within the library's own error."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vidk
from vidk import reference

from .helpers import (
    CACHES,
    DTYPES,
    HALVES,
    READ_LAYOUTS,
    assert_close,
    assert_same_bits,
    assert_same_memory,
    dtype_id,
    far_apart,
    ints,
    normal,
    twins,
    ulp,
)

attention = torch.ops.vidk.attention
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
NAN = float("nan")


def assert_attended(
    got: Tensor, expected: Tensor, library: Tensor, terms: Tensor | None = None
) -> None:
    """Hold a result to 5e-6 in float32, to twice the library's error and an ulp in the halves.

    The ulp is that of the result or, where its terms may cancel, of `terms`, the sum of their
    magnitudes: the probabilities are rounded to the dtype before they meet the values.
    """
    if got.dtype == torch.float32:
        return assert_close(got, expected, 5e-6)
    assert got.dtype == expected.dtype and got.is_contiguous()
    error = (got.double() - expected.double()).abs()
    allowed = 2 * (library.double() - expected.double()).abs().max() if got.numel() else 0.0
    one = ulp(expected if terms is None else terms, got.dtype)
    assert (error <= allowed + one).all(), f"{error.max():.3g}, {allowed:.3g}"


def lse_tolerance(dtype: torch.dtype) -> float:
    """In half precision the library's exponential has 20 bits; rounding the output has 11 or 8."""
    return 1e-5 if dtype == torch.float32 else 1e-4


def check(q: Tensor, k_cache: Tensor, v_cache: Tensor, n: int, scale: float | None = None) -> None:
    """Compare output and LSE; rows past the valid prefix hold NaN, which must not be read."""
    k_cache[:, n:] = NAN
    v_cache[:, n:] = NAN
    args = (q, k_cache, v_cache, ints(n))
    before = twins(q, k_cache, v_cache)
    got, lse = attention(*args, scale=scale)
    assert_same_memory([q, k_cache, v_cache], before, "inputs")
    expected, expected_lse = reference.attention(*args, scale=scale)
    heads_first = (x.transpose(1, 2) for x in (q, k_cache[:, :n], v_cache[:, :n]))
    library = F.scaled_dot_product_attention(*heads_first, scale=scale).transpose(1, 2)
    assert_attended(got, expected, library)
    assert_close(lse, expected_lse, lse_tolerance(q.dtype))


@every_dtype
@pytest.mark.parametrize("layout", READ_LAYOUTS)
@pytest.mark.parametrize("head_dim", [1, 6, 33, 48, 128])
def test_layouts_of_q(head_dim: int, layout: str, dtype: torch.dtype) -> None:
    make = normal(dtype, layout, head_dim)
    q = READ_LAYOUTS[layout](make, 2, 9, 3, head_dim)
    check(q, *CACHES["two_tensors"](make, 2, 20, 3, head_dim), 17)


@every_dtype
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("head_dim", [2, 32, 64, 96])
def test_layouts_of_the_caches(head_dim: int, cache: str, dtype: torch.dtype) -> None:
    make = normal(dtype, cache, head_dim)
    check(make(2, 9, 3, head_dim), *CACHES[cache](make, 2, 20, 3, head_dim), 17)


@every_dtype
@pytest.mark.parametrize("layout", ["batch_stride_0", "head_stride_0"])
def test_expanded_caches(layout: str, dtype: torch.dtype) -> None:
    make = normal(dtype, layout)
    k, v = (READ_LAYOUTS[layout](make, 2, 20, 3, 32) for _ in range(2))
    got, lse = attention(make(2, 9, 3, 32), k, v, ints(17))
    make = normal(dtype, layout)
    k, v = (READ_LAYOUTS[layout](make, 2, 20, 3, 32).contiguous() for _ in range(2))
    dense, dense_lse = attention(make(2, 9, 3, 32), k, v, ints(17))
    assert_same_bits(got, dense)
    assert_same_bits(lse, dense_lse)


@every_dtype
@pytest.mark.parametrize("valid", [0, 1, 2, 599, 600])
@pytest.mark.parametrize("tokens", [1, 70])
def test_lengths(tokens: int, valid: int, dtype: torch.dtype) -> None:
    """Longer than one tile of the flash kernel in both directions."""
    make = normal(dtype, tokens, valid)
    check(make(2, tokens, 2, 64), *CACHES["layer_of_stack"](make, 2, 600, 2, 64), valid)


def test_no_key_gives_zeros() -> None:
    make = normal(torch.bfloat16)
    got, lse = attention(make(2, 9, 3, 8), make(2, 4, 3, 8), make(2, 4, 3, 8), ints(0))
    assert_same_bits(got, torch.zeros_like(got))
    assert (lse == -math.inf).all() and lse.shape == (2, 3, 9)


@pytest.mark.parametrize("scale", [0.0, 1.0, 0.3, -0.5, 1e-3])
def test_scale(scale: float) -> None:
    make = normal(torch.float32, scale)
    check(make(2, 9, 3, 32), *CACHES["two_tensors"](make, 2, 20, 3, 32), 17, scale)


@pytest.mark.parametrize("valid", [0, 3, 4])
@pytest.mark.parametrize(
    "size", [(0, 9, 3, 8), (2, 0, 3, 8), (2, 9, 0, 8), (2, 9, 3, 0)], ids=["B", "S", "H", "D"]
)
def test_empty(size: tuple[int, int, int, int], valid: int) -> None:
    batch, tokens, heads, dim = size
    q, cache = torch.randn(size), torch.randn(batch, 4, heads, dim)
    got, lse = attention(q, cache, cache, ints(valid), scale=1.0)
    assert got.shape == size and got.is_contiguous() and got.dtype == q.dtype
    assert lse.shape == (batch, heads, tokens) and lse.dtype == torch.float32
    if dim == 0:  # every logit is 0
        expected = torch.tensor(valid, dtype=torch.float32).log()
        assert_close(lse, expected.expand(lse.shape).contiguous(), 1e-6)


def test_empty_cache() -> None:
    q = torch.randn(2, 9, 3, 8)
    got, lse = attention(q, q[:, :0], q[:, :0], ints(0))
    assert not got.any() and (lse == -math.inf).all()


@every_dtype
@pytest.mark.parametrize("value", [NAN, math.inf], ids=str)
def test_special_value_in_q_stays_in_its_row(value: float, dtype: torch.dtype) -> None:
    make = normal(dtype)
    q, caches = make(2, 40, 3, 32), CACHES["two_tensors"](make, 2, 50, 3, 32)
    clean, clean_lse = attention(q, *caches, ints(45))
    dirty = q.clone()
    dirty[1, 8, 2, 6] = value
    got, lse = attention(dirty, *caches, ints(45))
    assert got[1, 8, 2].isnan().all()
    got[1, 8, 2], lse[1, 2, 8] = clean[1, 8, 2], clean_lse[1, 2, 8]
    assert_same_bits(got, clean)
    assert_same_bits(lse, clean_lse)


@every_dtype
@pytest.mark.parametrize("cache", ["k", "v"])
def test_nan_in_a_key_stays_in_its_head(cache: str, dtype: torch.dtype) -> None:
    make = normal(dtype)
    q, (k, v) = make(2, 40, 3, 32), CACHES["two_tensors"](make, 2, 50, 3, 32)
    clean, _ = attention(q, k, v, ints(45))
    {"k": k, "v": v}[cache][1, 11, 2, 6] = NAN
    got, _ = attention(q, k, v, ints(45))
    if cache == "k":
        assert got[1, :, 2].isnan().all()
    else:
        assert torch.equal(got[1, :, 2].isnan(), (torch.arange(32) == 6).expand(40, 32))
    got[1, :, 2] = clean[1, :, 2]
    assert_same_bits(got, clean)


@every_dtype
def test_infinite_value_shows(dtype: torch.dtype) -> None:
    make = normal(dtype)
    q, (k, v) = make(1, 9, 1, 32), CACHES["two_tensors"](make, 1, 20, 1, 32)
    v[0, 3, 0, 6] = math.inf
    got, _ = attention(q, k, v, ints(20))
    expected, _ = reference.attention(q, k, v, ints(20))
    assert torch.equal(got.isinf(), expected.isinf()) and got[..., 6].isinf().all()


@every_dtype
def test_logits_that_overflow_exp(dtype: torch.dtype) -> None:
    """Logits in the hundreds: the maximum is taken out before the exponential."""
    make = normal(dtype)
    q, (k, v) = make(2, 9, 3, 64), CACHES["two_tensors"](make, 2, 20, 3, 64)
    got, lse = attention(q * 8, k * 8, v, ints(20))
    expected, expected_lse = reference.attention(q * 8, k * 8, v, ints(20))
    assert expected_lse.max() > 100
    assert torch.allclose(lse, expected_lse, rtol=2e-6)
    assert (got.double() - expected.double()).abs().max() <= 2e-4 + 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", HALVES, ids=dtype_id)
def test_public_function(dtype: torch.dtype) -> None:
    make = normal(dtype)
    q, (k, v) = make(1, 9, 3, 32), CACHES["two_tensors"](make, 1, 20, 3, 32)
    out, lse = attention(q, k, v, ints(17), scale=0.2)
    alone = vidk.attention(q, k, v, ints(17), scale=0.2)
    both = vidk.attention(q, k, v, ints(17), scale=0.2, return_lse=True)
    assert_same_bits(alone, out)
    assert_same_bits(both[0], out)
    assert_same_bits(both[1], lse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=dtype_id)
def test_partial_results_merge_by_lse(dtype: torch.dtype) -> None:
    """What the LSE is for: two halves of the keys give the whole."""
    make = normal(dtype)
    q, (k, v) = make(2, 9, 3, 32), CACHES["two_tensors"](make, 2, 20, 3, 32)
    whole, lse = attention(q, k, v, ints(20))
    a, lse_a = attention(q, k[:, :12], v[:, :12], ints(12))
    b, lse_b = attention(q, k[:, 12:], v[:, 12:], ints(8))
    assert_close(torch.logaddexp(lse_a, lse_b), lse, lse_tolerance(dtype))
    share = torch.exp(lse_a - lse).transpose(1, 2)[..., None]
    merged = a.float() * share + b.float() * (1 - share)
    assert (merged - whole.float()).abs().max() <= 5e-6 + 2 * torch.finfo(dtype).eps


def test_cache_is_not_copied() -> None:
    """One query against two caches of 16 MB allocates next to nothing."""
    make = normal(torch.float32)
    k, v = CACHES["k_beside_v_in_token"](make, 1, 16384, 4, 64)
    q = make(1, 1, 4, 64)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        attention(q, k, v, ints(16000))
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    assert 0 < allocated < k.nbytes // 4


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_offsets_past_2_31_elements(dim: int) -> None:
    make = normal(torch.bfloat16, dim)
    q, (k, v) = make(2, 9, 2, 32), CACHES["two_tensors"](make, 2, 3, 2, 32)
    got, _ = attention(q, far_apart(k, dim), far_apart(v, dim), ints(3))
    expected, _ = attention(q, k, v, ints(3))
    assert_same_bits(got, expected)
