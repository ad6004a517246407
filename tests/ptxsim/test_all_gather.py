"""The fused AllGather + RoPE: P virtual ranks in one launch, with signals between them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.helpers import DTYPES, assert_same_bits, dtype_id, ints, normal, tables

from . import Fault, has_nvcc, launch
from .launch import ARCHS
from .ops import Sim, all_gather_ranks

pytestmark = pytest.mark.skipif(not has_nvcc(), reason="no nvcc to compile the kernels")
HEIGHT, WIDTH = 3, 5
FRAME = HEIGHT * WIDTH
EVERYTHING = {"coresident": True}


class Ranks:
    """The buffers of P ranks, and what their shards of one block should become."""

    def __init__(self, ranks: int, dtype: torch.dtype, kind: str, heads: int = 2, dim: int = 64):
        self.ranks, frames = ranks, 3
        self.slice = -(-FRAME // ranks) if kind == "slices" else None
        shard = -(-frames * FRAME // ranks) if self.slice is None else frames * self.slice
        make = normal(dtype, ranks, kind)
        self.x = [make(2, shard, heads, dim) for _ in range(ranks)]
        self.index = (ints(4, 9, 2), *tables(dim, HEIGHT, WIDTH), HEIGHT, WIDTH)
        self.out = [torch.empty(ranks, 2, shard, heads, dim, dtype=dtype) for _ in range(ranks)]
        self.signals = [torch.zeros(2 * ranks + 2, dtype=torch.int32) for _ in range(ranks)]

    def rotated(self) -> Tensor:
        """Return what every rank's buffer should hold."""
        c = self.x[0].size(1) if self.slice is None else self.slice
        return torch.stack([
            torch.ops.vidk.rope_3d(x, *self.index, token_offset=r * c, slice_tokens=self.slice)
            for r, x in enumerate(self.x)
        ])  # fmt: skip

    def run(self, on: Sim, only: slice = slice(None), **options: object) -> None:
        first = range(self.ranks)[only].start
        all_gather_ranks(
            on, self.x[only], *self.index, self.out, self.signals,
            first_rank=first, slice_tokens=self.slice, **options,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("kind", ["contiguous", "slices"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_every_rank_has_everything(ranks: int, kind: str, dtype: torch.dtype) -> None:
    world = Ranks(ranks, dtype, kind)
    on = Sim("sm_90a", EVERYTHING)
    world.run(on)
    for out in world.out:
        assert_same_bits(out, world.rotated())
    # All that is left is the number of calls.
    for signals in world.signals:
        assert signals.tolist() == [1] * (2 * ranks) + [0, 1]
    assert not on.reports[0]["warnings"]


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("dim", [128, 12, 6, 2])
def test_one_store_for_all(dim: int, dtype: torch.dtype, arch: str) -> None:
    """With a multicast address each vector leaves the rank once."""
    world = Ranks(4, dtype, "contiguous", heads=3, dim=dim)
    sent = []
    for multicast in (True, False):
        on = Sim(arch, EVERYTHING)
        world.run(on, defined=not multicast, multicast=multicast)
        for out in world.out:
            assert_same_bits(out, world.rotated())
            out.zero_()
        sent.append(on.reports[0]["global_store"]["bytes"])
    once = sum(x.nbytes for x in world.x)
    assert sent[1] - sent[0] == 3 * once


@pytest.mark.parametrize("multicast", [False, True])
def test_accesses_of_2_bytes(multicast: bool) -> None:
    """Of tokens that begin in the middle of a word; the switch repeats no such stores."""
    world = Ranks(2, torch.bfloat16, "contiguous", heads=3, dim=6)
    odd = [torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape) for x in world.x]
    world.x = odd
    on = Sim("sm_90a", EVERYTHING)
    world.run(on, multicast=multicast)
    assert on.kernels == ["vidk_all_gather_rope_bf16_2B"]
    for out in world.out:
        assert_same_bits(out, world.rotated())


def test_no_multicast_before_hopper() -> None:
    world = Ranks(2, torch.bfloat16, "contiguous")
    world.run(Sim("sm_89", EVERYTHING), multicast=True)
    assert_same_bits(world.out[0], world.rotated())


def test_a_buffer_that_the_table_does_not_name() -> None:
    """As if a compiler had made a copy of it."""
    world = Ranks(2, torch.bfloat16, "contiguous")
    with pytest.raises(Fault) as fault:
        world.run(Sim("sm_90a", EVERYTHING), copy=world.out[0].clone())
    assert fault.value.kind == "trap"


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_again_and_in_any_order(seed: int) -> None:
    """Signals count calls, so nothing is reset between them; ranks run in any order."""
    world = Ranks(4, torch.bfloat16, "contiguous")
    on = Sim("sm_80", {**EVERYTHING, "seed": seed})
    for call in range(1, 4):
        world.x = [x.flip(1) for x in world.x]
        world.run(on, defined=True)
        for out, signals in zip(world.out, world.signals, strict=True):
            assert_same_bits(out, world.rotated())
            assert signals.tolist() == [call] * 8 + [0, call]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("dim", [128, 12, 6, 2])
def test_accesses(dim: int, dtype: torch.dtype, arch: str) -> None:
    world = Ranks(2, dtype, "contiguous", heads=3, dim=dim)
    world.run(Sim(arch, EVERYTHING))
    assert_same_bits(world.out[0], world.rotated())
    assert_same_bits(world.out[1], world.rotated())


BOUNDED = EVERYTHING | {"max_instructions": 3_000_000}


def stands_still(world: Ranks, only: slice) -> None:
    """Run some of the ranks, which wait for ever."""
    with pytest.raises(Fault) as fault:
        world.run(Sim("sm_90a", BOUNDED), only, defined=True)
    assert fault.value.kind in ("deadlock", "divergence", "runaway")


def test_nothing_is_stored_before_all_are_ready() -> None:
    """What the fourth rank still reads in its buffer stays."""
    world = Ranks(4, torch.bfloat16, "contiguous")
    before = [out.zero_().clone() for out in world.out]
    stands_still(world, slice(0, 3))
    for signals, out, kept in zip(world.signals, world.out, before, strict=True):
        assert signals.tolist()[:8] == [1, 1, 1, 0, 0, 0, 0, 0]
        assert_same_bits(out, kept)


def test_a_rank_waits_for_what_the_others_store() -> None:
    """The fourth rank is ready and then stores nothing: only its chunk is missing."""
    world = Ranks(4, torch.bfloat16, "contiguous")
    for out, signals in zip(world.out, world.signals, strict=True):
        out.zero_()
        signals[3] = 1
    stands_still(world, slice(0, 3))
    for signals, out in zip(world.signals, world.out, strict=True):
        assert signals.tolist()[:8] == [1, 1, 1, 1, 1, 1, 1, 0]
        assert_same_bits(out[:3], world.rotated()[:3])
        assert not out[3].any()


def test_multicast_stores_without_a_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the multicast stores and the signal that tells of them."""
    whole = launch.ptx_of
    monkeypatch.setattr(
        launch, "ptx_of", lambda *which: whole(*which).replace("fence.proxy.alias;", "")
    )
    world = Ranks(2, torch.bfloat16, "contiguous")
    with pytest.raises(Fault) as fault:
        world.run(Sim("sm_90a", EVERYTHING), multicast=True)
    assert fault.value.kind == "multicast"


def test_ranks_that_overlap_are_a_race() -> None:
    """Rank 1's buffer begins a chunk late in rank 0's, so that both write the chunk between."""
    world = Ranks(2, torch.bfloat16, "contiguous")
    whole = torch.empty(3, *world.out[0].shape[1:], dtype=torch.bfloat16)
    world.out = [whole[:2], whole[1:]]
    with pytest.raises(Fault) as fault:
        world.run(Sim("sm_90a", EVERYTHING))
    assert fault.value.kind == "cross-block"


@pytest.mark.parametrize("ranks", [2, 8])
def test_traffic_is_at_the_floor(ranks: int) -> None:
    """A rank reads its shard once and writes it once to each rank; tables and signals are small."""
    heads, dim, tokens = 12, 128, 4680 // ranks
    x = [torch.zeros(1, tokens, heads, dim, dtype=torch.bfloat16)]
    out = [torch.empty(ranks, 1, tokens, heads, dim, dtype=torch.bfloat16) for _ in range(ranks)]
    # As if the others had already been here.
    signals = [torch.ones(2 * ranks + 2, dtype=torch.int32) for _ in range(ranks)]
    signals[0][-2:] = 0
    on = Sim("sm_90a", {"checks": False})
    index = (ints(4, 9, 2), *tables(dim, 30, 52), 30, 52)
    all_gather_ranks(on, x, *index, out, signals, defined=True)
    (report,) = on.reports
    shard = x[0].nbytes
    store, load = report["global_store"], report["global_load"]
    # A block adds to one counter; the last one resets it, counts the call and tells every rank, as
    # the first one has.
    atomics = -(-store["bytes"] // 4) - ranks * shard // 4
    assert atomics <= tokens + 2 + 2 * ranks
    assert store["sectors"] - atomics == ranks * shard // 32
    assert 32 * (load["sectors"] + store["sectors"]) <= 1.05 * (1 + ranks) * shard
    assert report["local_bytes"] == 0
