"""cross_attention: padding folded into one key, or left out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.ops.helpers import DTYPES, LAYOUTS, dtype_id, ints, normal
from vidk import reference

from .helpers import assert_as_exact, move

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)


def check(q: Tensor, k: Tensor, v: Tensor, lens: Tensor, pad: str) -> None:
    for b, n in enumerate(lens.tolist()):
        for x in (k, v):
            # Folded rows are equal; rows that are left out must not be read.
            x[b, n:] = x[b, n : n + 1].clone() if pad == "trained" else math.nan
    there = move(q, k, v, lens)
    got = torch.ops.vidk.cross_attention(*there, pad=pad)
    expected = reference.cross_attention(q, k, v, lens, pad=pad)
    library = torch.zeros_like(got)
    for b, n in enumerate(lens.tolist()):
        keys = k.size(1) if pad == "trained" else n
        rows = (there[0][b : b + 1], *(x[b : b + 1, :keys] for x in there[1:3]))
        one = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in rows))
        library[b] = one.transpose(1, 2)[0]
    assert_as_exact(got.cpu(), expected, library.cpu())


@every_dtype
@pytest.mark.parametrize("pad", ["trained", "mask"])
@pytest.mark.parametrize("lens", [(0, 1), (70, 512), (64, 65), (511, 175)], ids=str)
@pytest.mark.parametrize("head_dim", [48, 128])
def test_lengths(head_dim: int, lens: tuple[int, int], pad: str, dtype: torch.dtype) -> None:
    make = normal(dtype, head_dim, lens, pad)
    text = (make(2, 512, 3, head_dim), make(2, 512, 3, head_dim))
    check(LAYOUTS["fused_qkv"](make, 2, 130, 3, head_dim), *text, ints(*lens), pad)


@every_dtype
@pytest.mark.parametrize("pad", ["trained", "mask"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, pad: str, dtype: torch.dtype) -> None:
    make = normal(dtype, layout, pad)
    q, k, v = (LAYOUTS[layout](make, 2, n, 3, 128) for n in (9, 30, 30))
    check(q, k, v, ints(7, 30), pad)


@every_dtype
@pytest.mark.parametrize("pad", ["trained", "mask"])
def test_lengths_out_of_range_are_clamped(pad: str, dtype: torch.dtype) -> None:
    make = normal(dtype, pad)
    q, k, v = move(make(2, 9, 2, 128), make(2, 30, 2, 128), make(2, 30, 2, 128))
    k[:], v[:] = k[:, :1].clone(), v[:, :1].clone()  # as the fold of rows 0 and on demands

    def result(*lens: int) -> Tensor:
        return torch.ops.vidk.cross_attention(q, k, v, ints(*lens).to(q.device), pad=pad)

    assert torch.equal(result(31, -1), result(30, 0))
    assert torch.equal(result(2**31 - 1, -(2**31)), result(30, 0))
