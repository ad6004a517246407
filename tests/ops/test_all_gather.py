"""all_gather_rope of a group of one rank, and the chunk that each of several ranks makes.

What several processes gather is tested in tests/parallel.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vidk import reference

from .helpers import (
    DTYPES,
    READ_LAYOUTS,
    assert_same_bits,
    dtype_id,
    far_apart,
    ints,
    memory_of,
    normal,
    random_bits,
    tables,
)
from .test_rope import FRAME, HEIGHT, WIDTH, assert_rotated

all_gather = torch.ops.vidk.all_gather_rope
local = torch.ops.vidk_local.all_gather_rope
rope_3d = torch.ops.vidk.rope_3d
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)


def index(head_dim: int, *positions: int) -> tuple[Any, ...]:
    return (ints(*positions), *tables(head_dim, HEIGHT, WIDTH), HEIGHT, WIDTH)


@every_dtype
@pytest.mark.parametrize("layout", READ_LAYOUTS)
@pytest.mark.parametrize("head_dim", [2, 6, 48, 128])
def test_one_rank(head_dim: int, layout: str, dtype: torch.dtype) -> None:
    x = READ_LAYOUTS[layout](normal(dtype, layout, head_dim), 2, 2 * FRAME + 7, 3, head_dim)
    args = (x, *index(head_dim, 5, 63, 0))
    before = [m.clone() for m in memory_of(x)]
    out, expected = (random_bits(dtype)(1, *x.shape) for _ in range(2))
    all_gather(*args, out, 0, "")
    reference.all_gather_rope(*args, expected, 0, "")
    assert_rotated(out[0], expected[0], x)
    assert_same_bits(out[0], rope_3d(*args))
    assert_same_bits(memory_of(x)[0], before[0], "the input was written to")


@every_dtype
@pytest.mark.parametrize("slice_tokens", [None, 4, FRAME])
@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_each_rank_has_its_place(ranks: int, slice_tokens: int | None, dtype: torch.dtype) -> None:
    """Borders in frames and rows, and ranks that hold nothing but padding."""
    make = normal(dtype, ranks, slice_tokens)
    run = 11 if slice_tokens is None else slice_tokens
    for rank in range(ranks):
        x = make(2, run if slice_tokens is None else 3 * run, 2, 32)
        where = index(32, 7, 63, 0)
        out = random_bits(dtype, rank)(ranks, *x.shape)
        expected = out.clone()
        expected[rank] = rope_3d(x, *where, token_offset=rank * run, slice_tokens=slice_tokens)
        local(x, *where, out, rank, slice_tokens, None)
        assert_same_bits(out, expected)


@pytest.mark.parametrize("size", [(0, 15, 2, 6), (2, 0, 2, 6), (2, 15, 0, 6), (2, 15, 2, 0)])
def test_empty(size: tuple[int, ...]) -> None:
    x = torch.zeros(size)
    out = torch.zeros(1, *size)
    all_gather(x, *index(size[-1], 5), out, 0, "")
    assert not out.numel()


def test_offset_past_all_integers() -> None:
    """A rank far behind the block, with a frame as large as the checks allow."""
    tables = torch.zeros(4, 1, 2), torch.zeros(2**61, 0, 2)
    x = normal(torch.float32)(1, 2, 1, 2)
    out = torch.zeros(8, 1, 2, 1, 2)
    local(x, ints(3), *tables, 2**30, 2**30, out, 7, 2**60, None)
    assert_same_bits(out[7], x)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_offsets_past_2_31_elements(dim: int) -> None:
    x = normal(torch.bfloat16, dim)(2, 3, 2, 32)
    where = (ints(7), *tables(32, 1, 3), 1, 3)
    results: list[Tensor] = []
    for given in (x, far_apart(x, dim)):
        results.append(torch.zeros(2, *x.shape, dtype=x.dtype))
        local(given, *where, results[-1], 1, None, None)
    assert_same_bits(*results)
