"""rope_3d against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vidk import reference

from .helpers import (
    DTYPES,
    HEAD_DIMS,
    READ_LAYOUTS,
    assert_close,
    assert_rounded,
    assert_same_bits,
    dtype_id,
    far_apart,
    ints,
    memory_of,
    normal,
    pair_scale,
    random_bits,
    seeded,
    tables,
    twins,
)

rope_3d = torch.ops.vidk.rope_3d
HEIGHT, WIDTH = 3, 5
FRAME = HEIGHT * WIDTH
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)


def assert_rotated(got: Tensor, expected: Tensor, x: Tensor) -> None:
    """Hold a result to the rounding that its dtype promises."""
    if got.dtype == torch.float32:
        assert_close(got, expected, 1e-6)
    else:
        assert_rounded(got, expected, pair_scale(x))


@every_dtype
@pytest.mark.parametrize("layout", READ_LAYOUTS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_reference(head_dim: int, layout: str, dtype: torch.dtype) -> None:
    tokens = 2 * FRAME + 7  # the last frame is ragged
    x = READ_LAYOUTS[layout](normal(dtype, layout, head_dim), 2, tokens, 3, head_dim)
    args = (ints(5, 63, 0), *tables(head_dim, HEIGHT, WIDTH), HEIGHT, WIDTH)
    before = [m.clone() for m in memory_of(x)]
    got = rope_3d(x, *args)
    assert_rotated(got, reference.rope_3d(x, *args), x)
    assert_same_bits(memory_of(x)[0], before[0], "the input was written to")


@every_dtype
def test_oracle_with_float64_tables(dtype: torch.dtype) -> None:
    x = normal(dtype)(1, 4 * FRAME, 2, 128)
    pos = ints(0, 63, 511, 1023)
    time, space = tables(128, HEIGHT, WIDTH, positions=1024)
    exponents = torch.arange(22, dtype=torch.float64) / 22
    angles = torch.arange(1024)[:, None] * 10000.0**-exponents
    exact_time = torch.stack([angles.cos(), angles.sin()], -1)
    exponents = torch.arange(21, dtype=torch.float64) / 21
    angles = torch.arange(5)[:, None] * 10000.0**-exponents
    exact_space = torch.stack([angles.cos(), angles.sin()], -1)
    expected = reference.rope_3d(x, pos, exact_time, exact_space, HEIGHT, WIDTH)
    assert_rotated(rope_3d(x, pos, time, space, HEIGHT, WIDTH), expected, x)


@every_dtype
@pytest.mark.parametrize("frames", [0, 1, 2])
@pytest.mark.parametrize("layout", ["contiguous", "bhsd", "unaligned"])
def test_padding_keeps_its_bits(layout: str, frames: int, dtype: torch.dtype) -> None:
    tokens = 2 * FRAME + 4
    x = READ_LAYOUTS[layout](random_bits(dtype, layout, frames), 2, tokens, 3, 32)
    pos = torch.arange(frames, dtype=torch.int32) + 7
    got = rope_3d(x, pos, *tables(32, HEIGHT, WIDTH), HEIGHT, WIDTH)
    assert_same_bits(got[:, frames * FRAME :], x[:, frames * FRAME :])


@pytest.mark.parametrize("shape", [(0, 9, 3, 32), (2, 0, 3, 32), (2, 9, 0, 32), (2, 9, 3, 0)])
@pytest.mark.parametrize("frames", [0, 1])
def test_empty(shape: tuple[int, ...], frames: int) -> None:
    got = rope_3d(torch.randn(shape), ints(*range(frames)), *tables(shape[3], 3, 3), 3, 3)
    assert got.shape == shape and got.is_contiguous()


@every_dtype
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_contiguous_shards(ranks: int, dtype: torch.dtype) -> None:
    """Each rank rotates its own tokens; the last one's shard is short or holds padding."""
    tokens, tables_ = 3 * FRAME, tables(32, HEIGHT, WIDTH)
    args = (ints(9, 2, 30), *tables_, HEIGHT, WIDTH)
    x = normal(dtype, ranks)(2, tokens, 2, 32)
    whole = rope_3d(x, *args)
    size = -(-tokens // ranks)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, ranks * size - tokens), value=7.0)
    for rank, shard in enumerate(padded.split(size, dim=1)):
        got = rope_3d(shard, *args, token_offset=rank * size)
        mine = whole[:, rank * size : (rank + 1) * size]
        assert_same_bits(got[:, : mine.size(1)], mine, f"rank {rank}")
        assert_same_bits(got[:, mine.size(1) :], shard[:, mine.size(1) :], f"padding of {rank}")


@every_dtype
@pytest.mark.parametrize("sizes", [(15,), (8, 7), (4, 4, 4, 3), (1, 6, 8), (5, 5, 5)])
def test_spatial_slices(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    """Each rank holds the same tokens of every frame."""
    args = (ints(9, 2, 30), *tables(32, HEIGHT, WIDTH), HEIGHT, WIDTH)
    x = normal(dtype, sizes)(2, 3 * FRAME, 2, 32)
    whole = rope_3d(x, *args).unflatten(1, (3, FRAME))
    begin = 0
    for size in sizes:
        mine = slice(begin, begin + size)
        shard = x.unflatten(1, (3, FRAME))[:, :, mine].flatten(1, 2)
        got = rope_3d(shard, *args, token_offset=begin, slice_tokens=size)
        assert_same_bits(got, whole[:, :, mine].flatten(1, 2), f"slice {mine}")
        begin += size
    assert begin == FRAME


@pytest.mark.parametrize("offset", [0, 3, 14, 15, 44, 45, 46, 1000, 2**62, 2**63 - 1])
@pytest.mark.parametrize("slice_tokens", [None, 1, 4, 15])
def test_any_offset(offset: int, slice_tokens: int | None) -> None:
    x = normal(torch.float32)(1, 20, 2, 32)
    args = (ints(9, 2, 30), *tables(32, HEIGHT, WIDTH), HEIGHT, WIDTH)
    got = rope_3d(x, *args, token_offset=offset, slice_tokens=slice_tokens)
    same_tokens = min(offset, 10000)  # past the block either way, without overflow in the oracle
    expected = reference.rope_3d(x, *args, token_offset=same_tokens, slice_tokens=slice_tokens)
    assert_close(got, expected, 1e-6)


@every_dtype
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_special_value_stays_in_its_pair(value: float, dtype: torch.dtype) -> None:
    x = normal(dtype)(2, FRAME, 3, 32)
    args = (ints(4), *tables(32, HEIGHT, WIDTH), HEIGHT, WIDTH)
    clean = rope_3d(x, *args)
    at = (1, 8, 2, slice(6, 8))
    dirty = x.clone()
    dirty[1, 8, 2, 6] = value
    got = rope_3d(dirty, *args)
    expected = reference.rope_3d(dirty, *args)
    assert torch.equal(got[at].isnan(), expected[at].isnan())
    assert torch.equal(got[at].nan_to_num(0), expected[at].nan_to_num(0))
    assert not got[at].isfinite().any()
    got[at] = clean[at]
    assert_same_bits(got, clean, "another element changed")


@every_dtype
def test_any_bits(dtype: torch.dtype) -> None:
    """Denormals, huge values and NaNs of every payload, in every lane."""
    x = random_bits(dtype)(2, FRAME, 3, 64)
    args = (ints(33), *tables(64, HEIGHT, WIDTH), HEIGHT, WIDTH)
    got, expected = rope_3d(x, *args), reference.rope_3d(x, *args)
    assert torch.equal(got.isnan(), expected.isnan())
    finite = expected.isfinite()
    # A result next to the largest number may round either way.
    edge = expected.abs() >= torch.finfo(dtype).max * 0.99
    assert torch.equal(got.isinf() & ~edge, expected.isinf() & ~edge)
    both = finite & got.isfinite()
    assert_rounded(
        torch.where(both, got, 0),
        torch.where(both, expected, 0),
        torch.where(both, pair_scale(x), 0),
        share=0.7 if dtype == torch.float32 else 0.999,
    )


@every_dtype
def test_huge_values_become_infinite(dtype: torch.dtype) -> None:
    x = torch.full((1, FRAME, 1, 32), torch.finfo(dtype).max, dtype=dtype)
    args = (ints(1), *tables(32, HEIGHT, WIDTH), HEIGHT, WIDTH)
    got, expected = rope_3d(x, *args), reference.rope_3d(x, *args)
    assert expected.isinf().any()
    assert torch.equal(got.isinf(), expected.isinf())


@every_dtype
def test_zeros_keep_their_sign(dtype: torch.dtype) -> None:
    sign = torch.randint(2, (1, 2 * FRAME, 2, 32), generator=seeded("zeros")) * 2.0 - 1
    x = (0.0 * sign).to(dtype)
    args = (ints(0, 5), *tables(32, HEIGHT, WIDTH), HEIGHT, WIDTH)
    assert_same_bits(rope_3d(x, *args), reference.rope_3d(x, *args))


@every_dtype
def test_nan_in_a_table_reaches_only_its_pair(dtype: torch.dtype) -> None:
    """Any payload: one that carries in a rounding would come out as a zero."""
    x = normal(dtype)(1, 2 * FRAME, 2, 32)
    time, space = tables(32, HEIGHT, WIDTH)
    pos = ints(3, 4)
    clean = rope_3d(x, pos, time, space, HEIGHT, WIDTH)
    time[4, 1, 0] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    got = rope_3d(x, pos, time, space, HEIGHT, WIDTH)
    assert got[:, FRAME:, :, 2:4].isnan().all()
    got[:, FRAME:, :, 2:4] = clean[:, FRAME:, :, 2:4]
    assert_same_bits(got, clean)


@every_dtype
def test_threads_do_not_change_bits(dtype: torch.dtype) -> None:
    x = normal(dtype)(2, 2 * 300, 12, 128)
    args = (ints(9, 8), *tables(128, 15, 20), 15, 20)
    got = rope_3d(x, *args)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = rope_3d(x, *args)
    finally:
        torch.set_num_threads(threads)
    assert_same_bits(got, alone)
    assert_rotated(got, reference.rope_3d(x, *args), x)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_offsets_past_2_31_elements(dim: int) -> None:
    values = normal(torch.bfloat16)(2, 3, 2, 32)
    x = far_apart(values, dim)
    args = (ints(9), *tables(32, 1, 3), 1, 3)
    assert_same_bits(rope_3d(x, *args), rope_3d(values, *args))


def test_twins_helper_copies_memory() -> None:
    """The other tests rest on `twins`: shared memory stays shared, and nothing is shared back."""
    base = torch.arange(6.0)
    a, b = twins(base[:3], base[2:])
    a[2] = 9.0
    assert b[0] == 9.0 and base[2] == 2.0
