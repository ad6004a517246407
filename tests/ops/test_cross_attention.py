"""cross_attention: the fold of the pad keys is exact, and the mask leaves them out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vidk
from vidk import reference

from .helpers import (
    DTYPES,
    READ_LAYOUTS,
    assert_same_bits,
    assert_same_memory,
    dtype_id,
    far_apart,
    ints,
    normal,
    twins,
)
from .test_attention import NAN, assert_attended

cross_attention = torch.ops.vidk.cross_attention
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
every_pad = pytest.mark.parametrize("pad", ["trained", "mask"])


def padded(lens: list[int], *keys: Tensor) -> None:
    """Make the rows past each batch row's text equal, as zero-padded text becomes."""
    for x in keys:
        for b, n in enumerate(lens):
            x[b, n + 1 :] = x[b, n : n + 1]


def check(
    q: Tensor, k: Tensor, v: Tensor, lens: list[int], pad: str, scale: float | None = None
) -> Tensor:
    """Compare with every pad key attended, or with the shorter keys, row by row."""
    before = twins(q, k, v)
    got = cross_attention(q, k, v, ints(*lens), pad=pad, scale=scale)
    assert_same_memory([q, k, v], before, "inputs")
    expected = reference.cross_attention(q, k, v, ints(*lens), pad=pad, scale=scale)
    library = torch.empty_like(expected)
    for b, n in enumerate(lens):
        end = k.size(1) if pad == "trained" else n
        row = (x[b : b + 1].transpose(1, 2) for x in (q, k[:, :end], v[:, :end]))
        library[b] = F.scaled_dot_product_attention(*row, scale=scale)[0].transpose(0, 1)
    assert_attended(got, expected, library)
    return got


@every_dtype
@every_pad
@pytest.mark.parametrize("layout", READ_LAYOUTS)
@pytest.mark.parametrize("head_dim", [33, 128])
def test_layouts(head_dim: int, layout: str, pad: str, dtype: torch.dtype) -> None:
    make = normal(dtype, layout, head_dim)
    q, k, v = (READ_LAYOUTS[layout](make, 2, s, 3, head_dim) for s in (9, 12, 12))
    if "stride_0" in layout:
        k, v = k.clone(), v.clone()
    lens = [5, 8]
    padded(lens, k, v)
    check(q, k, v, lens, pad)


@every_dtype
@every_pad
@pytest.mark.parametrize(
    "lens",
    [[0], [1], [11], [12], [0, 0], [5, 5, 5], [0, 12], [1, 11, 0, 12], [4, 4, 0, 0, 7, 12, 12]],
    ids=str,
)
def test_lengths(lens: list[int], pad: str, dtype: torch.dtype) -> None:
    make = normal(dtype, pad, lens)
    q, k, v = (make(len(lens), s, 3, 32) for s in (9, 12, 12))
    padded(lens, k, v)
    got = check(q, k, v, lens, pad)
    for b, n in enumerate(lens):
        if pad == "mask" and n == 0:
            assert not got[b].any()


@every_dtype
@every_pad
def test_wan_text(pad: str, dtype: torch.dtype) -> None:
    """512 text keys of which 70 and 511 are real: the fold carries log(442)."""
    make = normal(dtype, pad)
    q, k, v = (make(2, s, 2, 128) for s in (40, 512, 512))
    lens = [70, 511]
    padded(lens, k, v)
    check(q, k, v, lens, pad)


@every_pad
def test_rows_past_the_first_pad_are_not_read(pad: str) -> None:
    make = normal(torch.float32)
    q, k, v = (make(2, s, 3, 32) for s in (9, 12, 12))
    lens = [5, 0]
    padded(lens, k, v)
    clean = cross_attention(q, k, v, ints(*lens), pad=pad)
    for b, n in enumerate(lens):
        for x in (k, v):
            x[b, n + (pad == "trained") :] = NAN
    assert_same_bits(cross_attention(q, k, v, ints(*lens), pad=pad), clean)


@every_dtype
@every_pad
@pytest.mark.parametrize("lens", [[5, 5, 5], [5, 0, 12]], ids=str)
def test_batch_rows_are_independent(lens: list[int], pad: str, dtype: torch.dtype) -> None:
    make = normal(dtype, pad, lens)
    q, k, v = (make(3, s, 3, 32) for s in (9, 12, 12))
    padded(lens, k, v)
    together = cross_attention(q, k, v, ints(*lens), pad=pad)
    for b in range(3):
        row = slice(b, b + 1)
        alone = cross_attention(q[row], k[row], v[row], ints(lens[b]), pad=pad)
        assert_same_bits(together[row], alone)
    q[1], k[1], v[1] = NAN, NAN, NAN
    dirty = cross_attention(q, k, v, ints(*lens), pad=pad)
    for b in (0, 2):
        assert_same_bits(dirty[b], together[b])
    assert dirty[1].isnan().all() or (pad == "mask" and lens[1] == 0)


@every_pad
@pytest.mark.parametrize("scale", [0.0, 0.3, -1.0])
def test_scale(scale: float, pad: str) -> None:
    """The fold's log(n_pad) is added after the scale."""
    make = normal(torch.float32, scale)
    q, k, v = (make(1, s, 3, 32) for s in (9, 12, 12))
    padded([5], k, v)
    check(q, k, v, [5], pad, scale)


@every_pad
@pytest.mark.parametrize(
    "size", [(0, 9, 3, 8), (2, 0, 3, 8), (2, 9, 0, 8), (2, 9, 3, 0)], ids=["B", "S", "H", "D"]
)
def test_empty(size: tuple[int, int, int, int], pad: str) -> None:
    q, k = torch.randn(size), torch.randn(size[0], 4, size[2], size[3])
    got = cross_attention(q, k, k, ints(*[2] * size[0]), pad=pad, scale=1.0)
    assert got.shape == size and got.is_contiguous()


@every_pad
def test_no_text(pad: str) -> None:
    """L = 0: no key at all, in either reading of the padding."""
    q = torch.randn(2, 9, 3, 8)
    got = cross_attention(q, q[:, :0], q[:, :0], ints(0, 0), pad=pad)
    assert_same_bits(got, torch.zeros_like(q))


@every_dtype
def test_default_is_trained(dtype: torch.dtype) -> None:
    make = normal(dtype)
    q, k, v = (make(1, s, 3, 32) for s in (9, 12, 12))
    padded([5], k, v)
    trained = cross_attention(q, k, v, ints(5), pad="trained", scale=1 / math.sqrt(32))
    assert_same_bits(vidk.cross_attention(q, k, v, ints(5)), trained)
    masked = vidk.cross_attention(q, k, v, ints(5), pad="mask")
    assert not torch.equal(masked, trained)


@every_dtype
@every_pad
def test_nan_in_q_stays_in_its_row(pad: str, dtype: torch.dtype) -> None:
    make = normal(dtype)
    q, k, v = (make(2, s, 3, 32) for s in (40, 12, 12))
    padded([5, 9], k, v)
    clean = cross_attention(q, k, v, ints(5, 9), pad=pad)
    q[1, 8, 2, 6] = NAN
    got = cross_attention(q, k, v, ints(5, 9), pad=pad)
    # ATen's AVX-512 kernel takes a row of NaN logits for a masked one if the keys are few: zeros.
    row = got[1, 8, 2]
    assert row.isnan().all() or (row == 0).all()
    got[1, 8, 2] = clean[1, 8, 2]
    assert_same_bits(got, clean)


@every_pad
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_offsets_past_2_31_elements(dim: int, pad: str) -> None:
    make = normal(torch.bfloat16, dim)
    q, k, v = (make(2, 3, 2, 32) for _ in range(3))
    padded([1, 1], k, v)
    far = [far_apart(x, dim) for x in (q, k, v)]
    got = cross_attention(*far, ints(1, 1), pad=pad)
    assert_same_bits(got, cross_attention(q, k, v, ints(1, 1), pad=pad))
