"""kv_cache_write against the reference: every bit of the caches' memory is compared."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vidk import reference

from .helpers import (
    CACHES,
    DTYPES,
    READ_LAYOUTS,
    assert_same_bits,
    assert_same_memory,
    dtype_id,
    far_apart,
    ints,
    random_bits,
    twins,
)

kv_cache_write = torch.ops.vidk.kv_cache_write
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)


def check(k: Tensor, v: Tensor, caches: tuple[Tensor, ...], slots: Tensor, n: int) -> None:
    """Write with the op and with the reference; compare all memory, gaps included."""
    expected = twins(*caches)
    inputs = twins(k, v)
    assert kv_cache_write(k, v, *caches, slots, n) is None
    reference.kv_cache_write(*inputs, *expected, slots, n)
    assert_same_memory(list(caches), expected, "caches")
    assert_same_memory([k, v], inputs, "k and v")


@every_dtype
@pytest.mark.parametrize("layout", READ_LAYOUTS)
@pytest.mark.parametrize("head_dim", [1, 2, 33, 64, 128])
def test_layouts_of_the_block(head_dim: int, layout: str, dtype: torch.dtype) -> None:
    make = random_bits(dtype, layout, head_dim)
    k, v = (READ_LAYOUTS[layout](make, 2, 11, 3, head_dim) for _ in range(2))
    check(k, v, CACHES["two_tensors"](make, 2, 25, 3, head_dim), ints(4, 0, 2), 5)


@every_dtype
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("layout", ["contiguous", "fused_qkv", "unaligned"])
@pytest.mark.parametrize("head_dim", [6, 33, 96])
def test_layouts_of_the_caches(head_dim: int, layout: str, cache: str, dtype: torch.dtype) -> None:
    make = random_bits(dtype, layout, cache, head_dim)
    k, v = (READ_LAYOUTS[layout](make, 2, 11, 3, head_dim) for _ in range(2))
    check(k, v, CACHES[cache](make, 2, 25, 3, head_dim), ints(1, 4, 3), 5)


@pytest.mark.parametrize("tokens", range(13))
@pytest.mark.parametrize("frame_tokens", [1, 4, 6])
def test_ragged_blocks(frame_tokens: int, tokens: int) -> None:
    """The block ends anywhere in its last frame."""
    make = random_bits(torch.bfloat16, tokens, frame_tokens)
    slots = torch.arange(13, dtype=torch.int32).flip(0)
    cache = CACHES["two_tensors"](make, 2, 13 * frame_tokens, 2, 6)
    check(make(2, tokens, 2, 6), make(2, tokens, 2, 6), cache, slots, frame_tokens)


def test_slots_of_unused_frames_are_not_read() -> None:
    """The block has two frames; what the vector says of a third does not matter."""
    make = random_bits(torch.float32)
    cache = CACHES["two_tensors"](make, 1, 12, 2, 8)
    check(make(1, 5, 2, 8), make(1, 5, 2, 8), cache, ints(2, 0, -7, 99, 0), 4)


def test_last_frame_may_end_with_the_cache() -> None:
    """A cache whose rows are no multiple of the frame: the partly filled frame fits its end."""
    make = random_bits(torch.float16)
    cache = CACHES["two_tensors"](make, 1, 10, 2, 8)
    check(make(1, 6, 2, 8), make(1, 6, 2, 8), cache, ints(0, 2), 4)


@pytest.mark.parametrize(
    "size", [(0, 6, 2, 8), (2, 0, 2, 8), (2, 6, 0, 8), (2, 6, 2, 0)], ids=["B", "S", "H", "D"]
)
def test_empty(size: tuple[int, int, int, int]) -> None:
    batch, _, heads, dim = size
    make = random_bits(torch.float32)
    caches = (make(batch, 12, heads, dim), make(batch, 12, heads, dim))
    check(make(*size), make(*size), caches, ints(1, 2), 3)


def test_empty_cache_takes_an_empty_block() -> None:
    make = random_bits(torch.float32)
    check(make(1, 0, 2, 8), make(1, 0, 2, 8), (make(1, 0, 2, 8), make(1, 0, 2, 8)), ints(), 3)


def test_frames_of_any_length() -> None:
    make = random_bits(torch.float32)
    caches = (make(1, 5, 2, 8), make(1, 5, 2, 8))
    check(make(1, 5, 2, 8), make(1, 5, 2, 8), caches, ints(0), 2**63 - 1)


@every_dtype
@pytest.mark.parametrize("cache", ["two_tensors", "k_beside_v_in_head", "bhsd"])
def test_large_block_on_all_threads(cache: str, dtype: torch.dtype) -> None:
    make = random_bits(dtype, cache)
    k, v = (READ_LAYOUTS["fused_qkv"](make, 2, 550, 4, 64) for _ in range(2))
    check(k, v, CACHES[cache](make, 2, 900, 4, 64), ints(0, 2, 1), 220)


def test_a_window_of_two_sessions() -> None:
    """Two sessions' caches in one tensor: a write to one leaves the other alone."""
    make = random_bits(torch.bfloat16)
    both = make(2, 2, 12, 2, 8)
    k, v = make(1, 8, 2, 8), make(1, 8, 2, 8)
    before = both.clone()
    kv_cache_write(k, v, both[0, :1], both[1, :1], ints(2, 0), 4)
    assert_same_bits(both[:, 1], before[:, 1])
    assert_same_bits(both[0, :1, 8:], k[:, :4])
    assert_same_bits(both[1, :1, :4], v[:, 4:])


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_offsets_past_2_31_elements(dim: int) -> None:
    make = random_bits(torch.bfloat16, dim)
    caches = [make(2, 3, 2, 32) for _ in range(2)]
    block = (make(2, 2, 2, 32), make(2, 2, 2, 32))
    far = [far_apart(c, dim) for c in caches]
    kv_cache_write(*block, *far, ints(2, 0), 1)
    kv_cache_write(*block, *caches, ints(2, 0), 1)
    for got, expected in zip(far, caches, strict=True):
        assert_same_bits(got, expected)


@pytest.mark.parametrize("dim", [1, 64])
def test_rows_past_2_31_elements_of_a_dense_cache(dim: int) -> None:
    """Slot times tokens, the row, and row times stride: none of them fits 32 bits at D = 1."""
    frame_tokens = 2**20
    slot = 2**31 // (frame_tokens * dim)
    store = torch.empty(2**31 + 2 * dim, dtype=torch.bfloat16)
    cache = store[: (slot * frame_tokens + 2) * dim].view(1, -1, 1, dim)
    k, v = random_bits(torch.bfloat16)(2, 1, 1, 1, dim)
    assert cache.numel() > 2**31
    other = torch.empty_like(cache)
    kv_cache_write(k, v, cache, other, ints(slot), frame_tokens)
    for got, expected in ((cache, k), (other, v)):
        assert_same_bits(got[:, slot * frame_tokens, None], expected)
