"""rope_3d: the bits of the CPU kernel."""

from __future__ import annotations

import pytest
import torch

from tests.ops.helpers import (
    DTYPES,
    HEAD_DIMS,
    READ_LAYOUTS,
    assert_rounded,
    dtype_id,
    ints,
    normal,
    pair_scale,
    random_bits,
    tables,
)
from vidk import reference

from .helpers import MODEL, assert_same_run, both, sample

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
HEIGHT, WIDTH = 3, 5
FRAME = HEIGHT * WIDTH


def check(x: torch.Tensor, pos: torch.Tensor, **options: int) -> torch.Tensor:
    args = (x, pos, *tables(x.size(3), HEIGHT, WIDTH), HEIGHT, WIDTH)
    got, expected = both("rope_3d", *args, **options)
    assert_same_run(got, expected)
    return got.outputs[0]


@every_dtype
@pytest.mark.parametrize("layout", READ_LAYOUTS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_layouts(head_dim: int, layout: str, dtype: torch.dtype) -> None:
    x = READ_LAYOUTS[layout](normal(dtype, layout, head_dim), 2, 2 * FRAME + 7, 3, head_dim)
    check(x, ints(7, 63, 0))


@every_dtype
@pytest.mark.parametrize("tokens", [1, 2 * FRAME, 3 * FRAME, 3 * FRAME + 4])
@pytest.mark.parametrize("offset", [0, 1, 14, 15, 29, 40, 10**9])
def test_offsets_that_cut_frames(offset: int, tokens: int, dtype: torch.dtype) -> None:
    """Tokens past the last frame, the padding of a shard, pass unchanged."""
    x = normal(dtype, offset, tokens)(2, tokens, 3, 48)
    out = check(x, ints(5, 2, 60), token_offset=offset)
    padding = max(0, 3 * FRAME - offset)
    assert torch.equal(out[:, padding:], x[:, padding:])


@every_dtype
@pytest.mark.parametrize(("count", "offset"), [(1, 0), (4, 11), (7, 3), (15, 0), (4, 13)])
def test_slices_of_every_frame(count: int, offset: int, dtype: torch.dtype) -> None:
    x = normal(dtype, count, offset)(2, 3 * count, 2, 128)
    check(x, ints(5, 2, 60), token_offset=offset, slice_tokens=count)


@every_dtype
def test_any_bits(dtype: torch.dtype) -> None:
    """NaNs, infinities and subnormal numbers."""
    check(random_bits(dtype)(2, 2 * FRAME, 3, 64), ints(1, 2))


@every_dtype
def test_model_shape_against_the_reference(dtype: torch.dtype) -> None:
    args, _ = sample("rope_3d", dtype, MODEL)
    got, expected = both("rope_3d", *args)
    assert_same_run(got, expected)
    oracle = reference.rope_3d(*args)
    assert_rounded(got.outputs[0], oracle, pair_scale(args[0]))
