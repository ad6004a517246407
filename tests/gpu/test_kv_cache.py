"""kv_cache_write: the bits of the CPU kernel, and not one byte elsewhere."""

from __future__ import annotations

import pytest
import torch

from tests.ops.helpers import CACHES, DTYPES, READ_LAYOUTS, dtype_id, ints, random_bits

from .helpers import MODEL, assert_same_memory_of, both, sample

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)


def check(*args: object) -> None:
    assert_same_memory_of(*both("kv_cache_write", *args))


@every_dtype
@pytest.mark.parametrize("layout", READ_LAYOUTS)
@pytest.mark.parametrize("head_dim", [1, 2, 33, 64, 128])
def test_layouts_of_the_block(head_dim: int, layout: str, dtype: torch.dtype) -> None:
    make = random_bits(dtype, layout, head_dim)
    k, v = (READ_LAYOUTS[layout](make, 2, 11, 3, head_dim) for _ in range(2))
    check(k, v, *CACHES["two_tensors"](make, 2, 25, 3, head_dim), ints(4, 0, 2), 5)


@every_dtype
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("head_dim", [6, 33, 128])
def test_layouts_of_the_caches(head_dim: int, cache: str, dtype: torch.dtype) -> None:
    make = random_bits(dtype, cache, head_dim)
    k, v = (READ_LAYOUTS["fused_qkv"](make, 2, 11, 3, head_dim) for _ in range(2))
    check(k, v, *CACHES[cache](make, 2, 25, 3, head_dim), ints(1, 4, 3), 5)


@pytest.mark.parametrize("tokens", range(0, 13, 3))
@pytest.mark.parametrize("frame_tokens", [1, 4, 6])
def test_ragged_blocks_in_wrapped_slots(frame_tokens: int, tokens: int) -> None:
    make = random_bits(torch.bfloat16, tokens, frame_tokens)
    slots = torch.arange(13, dtype=torch.int32).roll(5).flip(0)
    k, v = make(2, tokens, 2, 8), make(2, tokens, 2, 8)
    check(k, v, *CACHES["two_tensors"](make, 2, 13 * frame_tokens, 2, 8), slots, frame_tokens)


def test_slots_of_unused_frames_are_not_read() -> None:
    make = random_bits(torch.float32)
    caches = CACHES["two_tensors"](make, 1, 12, 2, 8)
    check(make(1, 5, 2, 8), make(1, 5, 2, 8), *caches, ints(2, 0, -7, 99, 0), 4)


def test_frames_of_any_length() -> None:
    make = random_bits(torch.float32)
    caches = (make(1, 5, 2, 8), make(1, 5, 2, 8))
    check(make(1, 5, 2, 8), make(1, 5, 2, 8), *caches, ints(0), 2**63 - 1)


@every_dtype
def test_model_shape(dtype: torch.dtype) -> None:
    args, _ = sample("kv_cache_write", dtype, MODEL)
    check(*args)
