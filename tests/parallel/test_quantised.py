"""Caches of quantised keys, sharded by head: the bits of one process, and its video."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from vidk import qk_norm_rope_pack
from vidk.cache import KVCache
from vidk.cache_kinds import make_kind
from vidk.parallel.layout import KINDS, Layout

from .model import compiled_rollout, counted_forwards, model_of, rollout, sharded_rollout
from .ranks import Ranks

HEIGHT, WIDTH, FRAMES, HEADS = 9, 15, 2, 4  # 135 tokens a frame: a tile of 128 and part of one
SIZES = {"layers": 2, "head_dim": 128, "height": HEIGHT, "width": WIDTH, "frames": 4}
CASES = [("nvfp4", r) for r in ("plain", "default", "accurate", "accurate256")] + [("fp8", "plain")]
EPS = 1e-6


def orders(heads: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    order = [torch.randperm(128, generator=generator) for _ in range(2 * heads)]
    return torch.stack(order).view(2, heads, 128).int()


def block(dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return q, k, v of a block, and the weights of the norms of q and k."""
    generator = torch.Generator().manual_seed(4)
    q, k, v = torch.randn(3, 1, FRAMES * HEIGHT * WIDTH, HEADS, 128, generator=generator)
    # Past what E4M3 holds; constant parts, which means take off.
    q, k, v = (x.to(dtype) for x in (q + 1, k + torch.linspace(-2, 2, 128), v * 200))
    w_q, w_k = 1 + 0.1 * torch.randn(2, HEADS * 128, generator=generator).to(dtype)
    return (q, k, v), (w_q, w_k)


def exchanged(cache: KVCache, layouts: list[Layout], dtype: torch.dtype) -> Tensor:
    """Return q, k, v `[P, 3, P, B, S_r, H / P, D]`: of each rank's heads, of each rank's tokens."""
    qkv, weights = block(dtype)

    def pack(mine: Layout) -> Tensor:
        parts = (mine.split(x.flatten(2).unflatten(1, (FRAMES, -1))).flatten(1, 2) for x in qkv)
        return qk_norm_rope_pack(
            *(x.unflatten(2, (HEADS, -1)) for x in parts), *weights, EPS, cache.frame_pos,
            cache.rope.time, cache.rope.space, HEIGHT, WIDTH, mine.ranks,
            token_offset=mine.token_offset(FRAMES), slice_tokens=mine.slice_tokens,
        )  # fmt: skip

    return torch.stack([pack(layout) for layout in layouts], 2)


def raw(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


@pytest.mark.parametrize("layout", KINDS)
@pytest.mark.parametrize(("ranks", "dtype"), [(2, torch.float32), (4, torch.bfloat16)], ids=str)
@pytest.mark.parametrize(("kind", "recipe"), CASES, ids=str)
def test_bits_of_one_process(
    kind: str, recipe: str, ranks: int, dtype: torch.dtype, layout: Any
) -> None:
    """Codes, scales, means and values: each head's are what one process keeps and reads."""
    own = HEADS // ranks
    perm = orders(HEADS) if recipe.startswith("accurate") else None

    def new_cache(heads: slice) -> KVCache:
        cache = KVCache(
            heads=heads.stop - heads.start, perm=None if perm is None else perm[:, heads].contiguous(),
            dtype=dtype, kind=kind, recipe=recipe, block_frames=FRAMES, **SIZES,
        )  # fmt: skip
        for start in (0, FRAMES):  # the last slots
            cache.place(start, FRAMES)
        return cache

    whole = new_cache(slice(0, HEADS))
    query = whole.write(1, FRAMES, *block(dtype), EPS)
    layouts = [Layout(layout, ranks, rank, HEIGHT * WIDTH) for rank in range(ranks)]
    for rank, (q, k, v) in enumerate(exchanged(whole, layouts, dtype)):
        heads = slice(rank * own, (rank + 1) * own)
        cache = new_cache(heads)
        cache.receive(1, FRAMES, k, v, layouts[rank].slice_tokens)
        for name in cache.kind.stored(cache.sizes):
            expected = getattr(whole, name)
            # Heads of values lie behind the tokens.
            expected = expected[:, :, :, heads] if name == "v" else expected[:, :, heads]
            assert raw(expected).any()
            assert torch.equal(raw(getattr(cache, name)), raw(expected)), name
        assert ranks * cache_bytes(cache) == cache_bytes(whole)
        # In token order, as one process has them.
        groups = q.unflatten(2, (FRAMES if layout == "slices" else 1, -1)).flatten(4)
        in_order = layouts[rank].join(groups, FRAMES).flatten(1, 2).unflatten(2, (own, -1))
        for got, expected in zip(cache.query(1, in_order), query, strict=True):
            expected = expected[:, :, heads] if got.dtype == dtype else expected[:, heads]
            assert torch.equal(raw(got), raw(expected))


def cache_bytes(cache: KVCache) -> int:
    return sum(getattr(cache, name).nbytes for name in cache.kind.stored(cache.sizes))


# Ranks and exchange; two heads, but for the case that needs four.
SHARDED = [(2, "heads"), (4, "heads"), (4, "hybrid"), (2, "gather"), (4, "gather")]
ROLLOUTS = [("nvfp4", "default"), ("nvfp4", "accurate"), ("fp8", "default")]


def heads_of(ranks: int, pattern: str) -> int:
    return ranks if pattern == "heads" else 2


@functools.cache
def single(heads: int, kind: str, recipe: str) -> Tensor:
    return rollout(model_of(heads, 128 * heads), kind=kind, recipe=recipe)


@pytest.mark.parametrize("layout", KINDS)
@pytest.mark.parametrize(("ranks", "pattern"), SHARDED)
@pytest.mark.parametrize(("kind", "recipe"), ROLLOUTS)
def test_same_video(
    world: Ranks, kind: str, recipe: str, ranks: int, pattern: str, layout: str
) -> None:
    heads = heads_of(ranks, pattern)
    options = {"kind": kind, "recipe": recipe}
    results = world.run(
        sharded_rollout, ranks, heads, pattern, layout, options, channels=128 * heads
    )
    video, digest, said = results[0]
    assert {d for _, d, _ in results} == {digest}
    assert f"{ranks} ranks ({pattern})" in said
    one = single(heads, kind, recipe)
    error, lost = video - one, one - single(heads, "plain", "default")
    print(
        kind, recipe, ranks, pattern, layout, error.abs().max().item(), error.abs().mean().item(), (error.norm()/one.norm()).item(), lost.abs().max().item(),
        lost.abs().mean().item(), (lost.norm()/one.norm()).item()
    )
