"""The KV cache: which frame lies where, and what the device is told."""

from __future__ import annotations

import math
import re

import pytest
import torch

from vidk.cache import EMPTY, KVCache


def make(frames: int = 6, sink: int = 0, **more: int) -> KVCache:
    sizes = {"layers": 2, "heads": 2, "head_dim": 8, "height": 2, "width": 3, **more}
    return KVCache(frames=frames, sink=sink, **sizes)


def frames_of(cache: KVCache) -> list[int]:
    return sorted(f for f in cache.policy.frame_in if f != EMPTY)


def test_global_cache_fills_in_order() -> None:
    cache = make(9)
    for start in (0, 3, 6):
        cache.place(start, 3)
        assert cache.frame_slot.tolist() == list(range(start, start + 3))
        assert cache.frame_pos.tolist() == list(range(start, start + 3))
        assert int(cache.kv_len) == (start + 3) * 6


@pytest.mark.parametrize(("window", "sink"), [(6, 0), (6, 3), (7, 1), (9, 3), (4, 1), (5, 2)])
def test_window_keeps_the_sink_and_the_last_frames(window: int, sink: int) -> None:
    cache = make(window, sink)
    for start in range(0, 60, 3):
        cache.place(start, 3)
        end = start + 3
        last = range(max(sink, end - (window - sink)), end)
        assert frames_of(cache) == sorted({*range(min(sink, end)), *last})
        block = range(start, end)
        assert [cache.policy.frame_in[s] for s in cache.frame_slot.tolist()] == list(block)
        assert int(cache.kv_len) == min(end, window) * 6


def test_placing_a_block_again_takes_the_same_slots() -> None:
    cache = make(7, 1)
    for start in range(0, 30, 3):
        cache.place(start, 3)
        slots, held = cache.frame_slot.tolist(), list(cache.policy.frame_in)
        cache.place(start, 3)
        assert cache.frame_slot.tolist() == slots
        assert cache.policy.frame_in == held


def test_addresses_stay() -> None:
    cache = make(6, 1)
    before = {name: b.data_ptr() for name, b in cache.named_buffers()}
    for start in range(0, 2100, 3):
        cache.place(start, 3)
    cache.reset()
    assert {name: b.data_ptr() for name, b in cache.named_buffers()} == before
    assert int(cache.kv_len) == 0


def test_pinned_frames_stay_until_unpinned() -> None:
    cache = make(7, 1)
    cache.place(0, 3)
    cache.place(3, 3)
    cache.pin([4])
    for start in range(6, 30, 3):
        cache.place(start, 3)
        assert {0, 4} <= set(frames_of(cache))
    cache.unpin([4])
    cache.place(30, 3)
    assert 4 not in frames_of(cache)


def test_a_refused_block_changes_nothing() -> None:
    cache = make(6, 1)
    cache.place(0, 3)
    cache.place(3, 3)
    cache.pin([2, 3, 4])
    held, state = list(cache.policy.frame_in), cache.frame_slot.tolist()
    with pytest.raises(ValueError, match=r"got 3 frames, expected at most 2: 6 slots less 4 sink"):
        cache.place(6, 3)
    assert cache.policy.frame_in == held
    assert cache.frame_slot.tolist() == state


def test_positions_past_1024() -> None:
    cache = make(6, 1, block_frames=3)
    cache.place(0, 3)
    cache.place(5000, 3)
    row = cache.frame_pos.tolist()[1]
    cos, sin = cache.rope.time[row, 0].tolist()
    assert (cos, sin) == pytest.approx((math.cos(5001), math.sin(5001)), abs=1e-7)


def test_snapshot_and_restore() -> None:
    cache = make(6, 1)
    cache.place(0, 3)
    cache.k.normal_()
    cache.v.normal_()
    cache.pin([2])
    saved = cache.snapshot()
    k, v = cache.k[:, :, :18].clone(), cache.v[:, :, :18].clone()
    cache.place(3, 3)
    cache.unpin([2])
    cache.k.zero_()
    cache.v.zero_()
    cache.restore(saved)
    assert frames_of(cache) == [0, 1, 2]
    assert cache.policy.pinned == {2}
    assert int(cache.kv_len) == 18
    assert torch.equal(cache.k[:, :, :18], k)
    assert torch.equal(cache.v[:, :, :18], v)


def test_grow_keeps_the_content() -> None:
    cache = make(3)
    cache.place(0, 3)
    cache.k.normal_()
    k = cache.k.clone()
    cache.grow(6)
    cache.place(3, 3)
    assert frames_of(cache) == list(range(6))
    assert torch.equal(cache.k[:, :, :18], k)
    assert cache.k.size(2) == cache.v.size(2) == 36


ERRORS = {
    "frames: got 0, expected at least 1": lambda: make(0),
    "sink: got 6, expected 0 <= sink < 6": lambda: make(6, 6),
    "frames: got a block of 4, expected 1 to 3": lambda: make().place(0, 4),
    "start_frame: got -1, expected at least 0": lambda: make().place(-1, 3),
    "positions: got 2, expected one for each of the 3 frames": lambda: make().place(
        0, 3, positions=[0, 1]
    ),
    "pin: got frames [7], expected frames that the cache holds": lambda: make().pin([7]),
    "snapshot: got 5 slots": lambda: make().restore(make(5).snapshot()),
}


@pytest.mark.parametrize("text", ERRORS)
def test_errors(text: str) -> None:
    with pytest.raises(ValueError, match="vidk.KVCache: " + re.escape(text)):
        ERRORS[text]()
