"""Caches with quantised keys: what they hold, what they keep apart, what they cost."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_model
from vidk.cache import KVCache
from vidk.cache_kinds import Sizes, channel_order, key_row_bytes, make_kind

CASES = [("nvfp4", r) for r in ("plain", "default", "accurate", "accurate256")] + [("fp8", "plain")]
every_kind = pytest.mark.parametrize(("kind", "recipe"), CASES, ids=str)
HEADS, DIM, HEIGHT, WIDTH = 2, 128, 9, 15  # 135 tokens a frame: a tile of 128 and part of one


def make(kind: str, recipe: str = "default", frames: int = 4, **more: object) -> KVCache:
    sizes = {"layers": 2, "heads": HEADS, "head_dim": DIM, "height": HEIGHT, "width": WIDTH}
    return KVCache(frames=frames, block_frames=2, kind=kind, recipe=recipe, **{**sizes, **more})


def block(seed: int, frames: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 1, frames * HEIGHT * WIDTH, HEADS, DIM)
    q, k, v = torch.randn(shape, generator=generator)
    return q, k, v


def write(cache: KVCache, seed: int, start: int, layer: int = 0) -> tuple[Tensor, ...]:
    cache.place(start, 2)
    weight = torch.ones(HEADS * DIM)
    return cache.write(layer, 2, block(seed), (weight, weight), 1e-6)


def raw(cache: KVCache) -> dict[str, Tensor]:
    """Return the bytes of every stored tensor, slots first."""
    found = {}
    for name, stored in cache.kind.stored(cache.sizes).items():
        x = getattr(cache, name).movedim(stored.slot_dim, 0)
        found[name] = x.reshape(cache.frames, -1).contiguous().view(torch.uint8).clone()
    return found


@pytest.mark.parametrize(
    ("kind", "recipe", "expected"),
    [
        ("plain", "default", 256),
        ("nvfp4", "plain", 64 + 8 * 1664 / 1560),
        ("nvfp4", "default", 64 + 8 * 1664 / 1560 + 13 * 256 / 1560),
        ("nvfp4", "accurate", 96 + 12 * 1664 / 1560 + 13 * 256 / 1560),
        ("nvfp4", "accurate256", 128 + 16 * 1664 / 1560 + 13 * 256 / 1560),
        ("fp8", "default", 128 + 4 * 1664 / 1560),
    ],
)
def test_bytes_of_a_key_at_480p(kind: str, recipe: str, expected: float) -> None:
    sizes = Sizes(30, 1, 12, 128, 21, 1560, torch.bfloat16)
    assert key_row_bytes(make_kind(kind, recipe, 128).stored(sizes), sizes) == expected


@every_kind
def test_the_cache_has_the_bytes_that_it_reports(kind: str, recipe: str) -> None:
    cache = make(kind, recipe)
    names = cache.kind.stored(cache.sizes)
    total = sum(getattr(cache, n).numel() * getattr(cache, n).itemsize for n in names if n != "v")
    assert cache.key_row_bytes == total / (2 * HEADS * 4 * HEIGHT * WIDTH)


@every_kind
def test_reads_what_was_written(kind: str, recipe: str) -> None:
    cache, plain = make(kind, recipe), make("plain")
    for start in (0, 2):
        query = write(cache, start, start, layer=1)
        exact = write(plain, start, start, layer=1)
    out, expected = cache.read(1, query).float(), plain.read(1, exact)
    # At most what two blocks of normal q and k cost in published figures.
    limit = {"plain": 0.2, "default": 0.18, "accurate": 0.16, "accurate256": 0.13}[recipe]
    limit = 0.08 if kind == "fp8" else limit
    assert 0.005 < (out - expected).norm() / expected.norm() < limit


@every_kind
def test_a_block_changes_its_slots_only(kind: str, recipe: str) -> None:
    cache = make(kind, recipe, sink=1)
    write(cache, 0, 0)
    write(cache, 1, 2)
    before = raw(cache)
    write(cache, 2, 4)  # evicts frames 1 and 2
    slots = set(cache.frame_slot.tolist())
    assert slots == {1, 2}
    for name, after in raw(cache).items():
        changed = (after != before[name]).any(1)
        assert {i for i in range(4) if changed[i]} == slots, name


@every_kind
def test_writing_a_block_again_gives_the_same_bytes(kind: str, recipe: str) -> None:
    cache = make(kind, recipe)
    write(cache, 0, 0)
    before = raw(cache)
    write(cache, 5, 0)
    write(cache, 0, 0)
    for name, after in raw(cache).items():
        assert torch.equal(after, before[name]), name


@every_kind
def test_snapshot_restore_and_grow(kind: str, recipe: str) -> None:
    cache = make(kind, recipe)
    write(cache, 0, 0)
    query = write(cache, 1, 2)
    expected = cache.read(0, query)
    saved = cache.snapshot()
    addresses = {name: x.data_ptr() for name, x in cache.named_buffers()}
    cache.reset()
    write(cache, 7, 0)
    write(cache, 8, 2)
    assert not torch.equal(cache.read(0, query), expected)
    cache.restore(saved)
    assert torch.equal(cache.read(0, query), expected)
    assert {name: x.data_ptr() for name, x in cache.named_buffers()} == addresses
    cache.grow(7)
    assert cache.frames == 7 and torch.equal(cache.read(0, query), expected)
    write(cache, 9, 4)
    assert int(cache.kv_len) == 6 * HEIGHT * WIDTH
    with pytest.raises(ValueError, match=r"snapshot: got 4 slots and \{.*expected 7 slots and"):
        cache.restore(saved)


def test_a_snapshot_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"KVCache: snapshot: got 4 slots and "):
        make("nvfp4").restore(make("plain").snapshot())


def test_channels_come_by_falling_energy() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.rand((2, 3, 16), generator=generator)
    order = channel_order(q, k).long()
    assert torch.equal(order.sort(1).values, torch.arange(16).expand(3, -1))
    pairs = order.unflatten(1, (-1, 2))
    assert (pairs[..., 0] % 2 == 0).all() and (pairs[..., 1] == pairs[..., 0] + 1).all()
    energy = (q.unflatten(1, (-1, 2)).mean(-1) * k.unflatten(1, (-1, 2)).mean(-1)).gather(
        1, pairs[..., 0] // 2
    )
    assert (energy.diff(dim=1) <= 0).all()


def test_a_models_order_comes_from_its_weights() -> None:
    model = tiny_model(dim=128, num_heads=1)
    attention = model.blocks[1].self_attn
    attention.norm_q.weight[60:62] *= 9
    attention.k.weight[20:22] *= 7
    cache = model.new_cache(4, 6, 3, kind="nvfp4", recipe="accurate")
    assert cache.perm is not None and cache.perm.shape == (2, 1, 128)
    assert set(cache.perm[1, 0, :4].tolist()) == {60, 61, 20, 21}
    assert set(cache.perm[0, 0, :4].tolist()) != {60, 61, 20, 21}
    assert model.new_cache(4, 6, 3, kind="nvfp4").perm is None


def test_the_order_makes_the_accurate_recipe_better() -> None:
    weight = torch.ones(HEADS * DIM)
    weight[DIM - 32 : DIM] = weight[2 * DIM - 32 :] = 4
    energy = weight.square().view(HEADS, DIM)

    def error(perm: Tensor | None) -> float:
        caches = [make("nvfp4", "accurate", perm=perm), make("plain")]
        outs = []
        for cache in caches:
            cache.place(0, 2)
            query = cache.write(0, 2, block(0), (weight, weight), 1e-6)
            outs.append(cache.read(0, query))
        return float((outs[0] - outs[1]).norm() / outs[1].norm())

    orders = torch.stack([channel_order(energy, energy)] * 2)
    assert error(orders) < 0.5 * error(None)


ERRORS = {
    "kind: got 'fp4', expected one of plain, nvfp4, fp8": {"kind": "fp4"},
    "recipe: got 'mxfp8', expected one of plain, default, accurate": {"recipe": "mxfp8"},
    "head_dim: got 96, expected a multiple of 64 for kind 'nvfp4'": {"head_dim": 96},
    "head_dim: got 64, expected a multiple of 128 for kind 'fp8'": {"kind": "fp8", "head_dim": 64},
}


@pytest.mark.parametrize("text", ERRORS)
def test_errors(text: str) -> None:
    with pytest.raises(ValueError, match="vidk.KVCache: " + re.escape(text)):
        make(**{"kind": "nvfp4", **ERRORS[text]})


def test_an_empty_cache_reads_zeros() -> None:
    cache = make("nvfp4")
    query = write(cache, 0, 0)
    cache.reset()
    out = cache.read(0, query)
    assert out.shape == (1, 2 * HEIGHT * WIDTH, HEADS, DIM)
    assert not out.any() and math.prod(out.shape) > 0
