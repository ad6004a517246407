"""attention against the float64 reference, and as exact as the library's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.ops.helpers import CACHES, DTYPES, READ_LAYOUTS, assert_close, dtype_id, ints, normal
from tests.ops.test_attention import lse_tolerance
from vidk import reference

from .helpers import assert_as_exact, move, whole

attention = torch.ops.vidk.attention
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)


def check(q: Tensor, k: Tensor, v: Tensor, n: int, scale: float | None = None) -> None:
    """Compare output and LSE; rows past the valid prefix hold NaN, which must not be read."""
    k[:, n:] = math.nan
    v[:, n:] = math.nan
    there = move(q, k, v, ints(n))
    before = [whole(x).clone() for x in there]
    got, lse = attention(*there, scale=scale)
    for x, y in zip(there, before, strict=True):
        assert torch.equal(whole(x), y), "an input changed"
    expected, expected_lse = reference.attention(q, k, v, ints(n), scale=scale)
    heads_first = (x.transpose(1, 2) for x in (there[0], there[1][:, :n], there[2][:, :n]))
    library = F.scaled_dot_product_attention(*heads_first, scale=scale).transpose(1, 2)
    assert_as_exact(got.cpu(), expected, library.cpu())
    assert_close(lse.cpu(), expected_lse, lse_tolerance(q.dtype))


@every_dtype
@pytest.mark.parametrize("layout", READ_LAYOUTS)
@pytest.mark.parametrize("head_dim", [6, 48, 64, 128])
def test_layouts_of_q(head_dim: int, layout: str, dtype: torch.dtype) -> None:
    make = normal(dtype, layout, head_dim)
    q = READ_LAYOUTS[layout](make, 2, 70, 3, head_dim)
    check(q, *CACHES["two_tensors"](make, 2, 200, 3, head_dim), 150)


@every_dtype
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("head_dim", [32, 96, 128])
def test_layouts_of_the_caches(head_dim: int, cache: str, dtype: torch.dtype) -> None:
    make = normal(dtype, cache, head_dim)
    check(make(2, 9, 3, head_dim), *CACHES[cache](make, 2, 200, 3, head_dim), 150)


@every_dtype
@pytest.mark.parametrize("valid", [0, 1, 2, 63, 64, 65, 175, 176, 177, 352, 599, 600])
@pytest.mark.parametrize("tokens", [1, 64, 129, 300])
def test_lengths(tokens: int, valid: int, dtype: torch.dtype) -> None:
    """About the tiles of the kernels in both directions."""
    make = normal(dtype, tokens, valid)
    check(make(2, tokens, 2, 128), *CACHES["layer_of_stack"](make, 2, 600, 2, 128), valid)


@every_dtype
@pytest.mark.parametrize("scale", [0.0, 0.3, -0.1, 1e-3])
def test_scale(scale: float, dtype: torch.dtype) -> None:
    make = normal(dtype, scale)
    check(make(2, 9, 3, 128), *CACHES["two_tensors"](make, 2, 200, 3, 128), 150, scale)


def test_large_logits() -> None:
    """Logits far apart, and a maximum that rises from tile to tile."""
    make = normal(torch.bfloat16)
    k, v = CACHES["two_tensors"](make, 1, 600, 2, 128)
    k = k * torch.linspace(0.1, 30, 600).view(1, -1, 1, 1).to(k.dtype)
    check(make(1, 65, 2, 128), k, v, 550)


@every_dtype
def test_length_past_the_cache_is_the_whole_cache(dtype: torch.dtype) -> None:
    """Nobody can check the length without a synchronisation; memory past the end stays unread."""
    make = normal(dtype)
    q, k, v = move(make(1, 9, 2, 128), *CACHES["two_tensors"](make, 1, 200, 2, 128))
    full = attention(q, k, v, ints(200).to(q.device))
    for n in (201, 2**31 - 1):
        for a, b in zip(attention(q, k, v, ints(n).to(q.device)), full, strict=True):
            assert torch.equal(a, b)
    for n in (-1, -(2**31)):
        out, lse = attention(q, k, v, ints(n).to(q.device))
        assert not out.any() and (lse == -math.inf).all()


@pytest.mark.parametrize("heads", [12, 40])
def test_model_shape(heads: int) -> None:
    """A block of three frames on a window of six; the oracle is the library, on the GPU too."""
    generator = torch.Generator("cuda").manual_seed(heads)
    make = {"dtype": torch.bfloat16, "device": "cuda", "generator": generator}
    q = torch.randn(1, 4680, 3, heads, 128, **make)[:, :, 0]
    k, v = (torch.randn(1, 9360, heads, 128, **make) for _ in range(2))
    n = 8000
    k[:, n:] = v[:, n:] = math.nan
    got, lse = attention(q, k, v, ints(n).cuda())
    # Float32 in slices of heads: all logits of all heads at once would take gigabytes.
    for h in range(0, heads, 4):
        x, y, z = (t[:, : (n if t is not q else None), h : h + 4].float() for t in (q, k, v))
        logits = torch.einsum("bqhd,bkhd->bhqk", x, y) / math.sqrt(128)
        expected = torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), z)
        error = (got[:, :, h : h + 4].float() - expected).abs().max()
        assert error <= 5e-4, f"error {error:.3g}"
        assert torch.allclose(lse[:, h : h + 4], logits.logsumexp(-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("choice", ["tile", "simt", "auto"])
def test_forced_kernel(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDK_ATTENTION", choice)
    make = normal(torch.float16)
    check(make(2, 70, 3, 128), *CACHES["two_tensors"](make, 2, 200, 3, 128), 150)


def test_forced_kernel_that_cannot_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, n = move(*(normal(torch.float32)(1, 9, 2, 128) for _ in range(3)), ints(9))
    for choice, got in (("tile", "'tile' with float32"), ("cudnn", "'cudnn'")):
        monkeypatch.setenv("VIDK_ATTENTION", choice)
        with pytest.raises(RuntimeError, match=f"attention: VIDK_ATTENTION: got {got}, expected"):
            attention(q, k, v, n)
