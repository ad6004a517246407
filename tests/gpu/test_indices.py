"""Indices on the device that are out of range: skipped, and nothing around is touched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.helpers import (
    DTYPES,
    assert_same_bits,
    assert_same_memory,
    dtype_id,
    ints,
    normal,
    random_bits,
    tables,
    twins,
)
from vidk import reference

from .helpers import move

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
HEIGHT, WIDTH, SLOTS, FRAMES = 2, 4, 4, 3
FRAME = HEIGHT * WIDTH
# What no slot and no row of a table is, and what overflows when it is multiplied.
WRONG = [-1, SLOTS, 64, 2**31 - 1, -(2**31), 2**28, -(2**28)]


def guarded(dtype: torch.dtype, *key: object) -> tuple[Tensor, Tensor]:
    """Return k and v caches in the middle of one allocation, with two frames on every side."""
    make = random_bits(dtype, "guard", *key)
    store = make(2, (SLOTS + 4) * FRAME, 2, 2, 64)
    inner = store[:, 2 * FRAME : -2 * FRAME]
    k, v = inner.unbind(2)
    return k, v


def put(caches: tuple[Tensor, Tensor], k: Tensor, v: Tensor, frames: list[int], slots: Tensor):
    """Write some frames of a block on the CPU; return all memory as it must then be."""
    expected = twins(*caches)
    for i in frames:
        rows = slice(i * FRAME, (i + 1) * FRAME)
        reference.kv_cache_write(k[:, rows], v[:, rows], *expected, slots[i : i + 1], FRAME)
    return expected


@every_dtype
@pytest.mark.parametrize("at", range(FRAMES))
@pytest.mark.parametrize("wrong", WRONG)
def test_kv_cache_write(wrong: int, at: int, dtype: torch.dtype) -> None:
    make = random_bits(dtype, wrong, at)
    k, v = make(2, FRAMES * FRAME, 2, 64), make(2, FRAMES * FRAME, 2, 64)
    slots = ints(3, 0, 2)
    slots[at] = wrong
    caches = guarded(dtype, wrong)
    there = move(k, v, *caches, slots)
    torch.ops.vidk.kv_cache_write(*there, FRAME)
    expected = put(caches, k, v, [i for i in range(FRAMES) if i != at], slots)
    assert_same_memory(move(*there[2:4], device="cpu"), expected)


def test_a_partly_filled_last_slot_takes_what_fits() -> None:
    """Rows 8 and 9 of a cache of 10: slot 2 has two rows, and the block has three for it."""
    make = random_bits(torch.float16)
    caches = [make(1, 14, 2, 64)[:, 2:12] for _ in range(2)]
    k, v = make(1, 7, 2, 64), make(1, 7, 2, 64)
    there = move(k, v, *caches, ints(0, 2))
    torch.ops.vidk.kv_cache_write(*there, 4)
    expected = twins(*caches)
    for c, x in zip(expected, (k, v), strict=True):
        c[:, :4], c[:, 8:] = x[:, :4], x[:, 4:6]
    assert_same_memory(move(*there[2:4], device="cpu"), expected)


@every_dtype
@pytest.mark.parametrize("wrong", WRONG[:1] + WRONG[2:5])
def test_rope_3d(wrong: int, dtype: torch.dtype) -> None:
    """A frame at no position passes unchanged, as padding does; the others are rotated."""
    x = normal(dtype, wrong)(2, FRAMES * FRAME, 2, 64)
    time, space = tables(64, HEIGHT, WIDTH)
    args = move(x, ints(5, wrong, 9), time, space)
    got = torch.ops.vidk.rope_3d(*args, HEIGHT, WIDTH).cpu()
    expected = torch.ops.vidk.rope_3d(x, ints(5, 1, 9), time, space, HEIGHT, WIDTH)
    expected[:, FRAME : 2 * FRAME] = x[:, FRAME : 2 * FRAME]
    assert_same_bits(got, expected)


@every_dtype
@pytest.mark.parametrize("wrong", WRONG)
def test_qk_norm_rope_kv_write(wrong: int, dtype: torch.dtype) -> None:
    """A frame without a slot is not written; its queries, and all other frames, are as ever."""
    make = normal(dtype, wrong)
    q, k, v = make(2, FRAMES * FRAME, 3, 2, 64).unbind(2)
    w = (make(128), make(128))
    caches, slots = guarded(dtype, wrong), ints(3, wrong, 2)
    rest = (*tables(64, HEIGHT, WIDTH), *caches)
    right = move(q, k, v, *w, ints(5, 6, 9), ints(3, 0, 2), *rest)
    there = move(q, k, v, *w, ints(5, 6, 9), slots, *rest)

    def call(args: list[Tensor]) -> Tensor:
        index = (*args[5:9], HEIGHT, WIDTH)
        return torch.ops.vidk.qk_norm_rope_kv_write(*args[:5], 1e-6, *index, *args[9:])

    assert_same_bits(call(there).cpu(), call(right).cpu())
    written = move(*right[9:], device="cpu")
    for cache, before in zip(written, caches, strict=True):
        cache[:, :FRAME] = before[:, :FRAME]  # slot 0, which only the right call has
    assert_same_memory(move(*there[9:], device="cpu"), written)


def test_positions_out_of_range_in_the_fused_op() -> None:
    """What is written where is not touched by a position that has no angle."""
    make = normal(torch.bfloat16)
    q, k, v = make(1, 2 * FRAME, 3, 2, 64).unbind(2)
    w = (make(128), make(128))
    caches = guarded(torch.bfloat16)
    rest = (*tables(64, HEIGHT, WIDTH), *(c[:1] for c in caches))
    results = []
    for pos in (ints(5, 6), ints(5, 2**31 - 1)):
        args = move(q, k, v, *w, pos, ints(3, 1), *rest)
        index = (*args[5:9], HEIGHT, WIDTH)
        out = torch.ops.vidk.qk_norm_rope_kv_write(*args[:5], 1e-6, *index, *args[9:])
        results.append((out.cpu(), *move(*args[9:], device="cpu")))
    (q_right, k_right, v_right), (q_got, k_got, v_got) = results
    assert q_got.isfinite().all()
    assert_same_bits(q_got[:, :FRAME], q_right[:, :FRAME])
    assert_same_memory([v_got], [twin_of_k(v_right, k_right, k_got)])


def twin_of_k(v_right: Tensor, k_right: Tensor, k_got: Tensor) -> Tensor:
    """Return v's memory with the keys of the frame at no position, which are beside it, put in."""
    rows = slice(FRAME, 2 * FRAME)
    k_right[:, rows] = k_got[:, rows]
    return v_right
