"""Caches of quantised keys, sharded by head: the bits of one process, and its video."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code
from torch.overrides import TorchFunctionMode

from vidk import qk_norm_rope_pack
from vidk.cache import KVCache
from vidk.cache_kinds import SORTED_RECIPES
from vidk.ops import _received_fp4
from vidk.parallel.layout import KINDS, Layout

from .model import (
    SIZE,
    cache_bytes,
    compiled_rollout,
    counted_forwards,
    model_of,
    rank_cache,
    rollout,
    sharded_rollout,
)
from .ranks import Ranks

HEIGHT, WIDTH, FRAMES, HEADS, DIM = (
    9,
    15,
    2,
    4,
    128,
)  # 135 tokens a frame: a tile of 128 and part of one
SIZES = {"layers": 2, "head_dim": DIM, "height": HEIGHT, "width": WIDTH, "frames": 8}
CASES = [("nvfp4", r) for r in ("plain", "default", "accurate", "accurate256")] + [("fp8", "plain")]
EPS = 1e-6


def new_cache(kind: str, recipe: str, dtype: torch.dtype, heads: slice) -> KVCache:
    """Return a cache of some heads, at a block that lies in its last slots."""
    perm = None
    if recipe in SORTED_RECIPES:
        turns = 7 * torch.arange(SIZES["layers"] * HEADS).view(-1, HEADS, 1)
        perm = (turns + 5 * torch.arange(DIM))[:, heads].remainder(DIM).int().contiguous()
    cache = KVCache(
        heads=heads.stop - heads.start, kind=kind, recipe=recipe, dtype=dtype, perm=perm,
        block_frames=FRAMES, **SIZES,
    )  # fmt: skip
    for start in (0, SIZES["frames"] - FRAMES):
        cache.place(start, FRAMES)
    return cache


def block(dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return q, k, v of a block, and the weights of the norms of q and k."""
    generator = torch.Generator().manual_seed(4)
    q, k, v = torch.randn(3, 1, FRAMES * HEIGHT * WIDTH, HEADS, DIM, generator=generator)
    # Past what E4M3 holds; constant parts, which means take off.
    q, k, v = (x.to(dtype) for x in (q + 1, k + torch.linspace(-2, 2, DIM), v * 200))
    w_q, w_k = 1 + 0.1 * torch.randn(2, HEADS * DIM, generator=generator).to(dtype)
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
    whole = new_cache(kind, recipe, dtype, slice(0, HEADS))
    query = whole.write(1, FRAMES, *block(dtype), EPS)
    layouts = [Layout(layout, ranks, rank, HEIGHT * WIDTH) for rank in range(ranks)]
    for rank, (q, k, v) in enumerate(exchanged(whole, layouts, dtype)):
        heads = slice(rank * own, (rank + 1) * own)
        cache = new_cache(kind, recipe, dtype, heads)
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


# Ranks and exchange; two heads, but for the case that needs four.
SHARDED = [(2, "heads"), (4, "heads"), (4, "hybrid"), (2, "gather"), (4, "gather")]
ROLLOUTS = [(4, "heads", "contiguous"), (4, "hybrid", "slices"), (2, "gather", "contiguous")]


def heads_of(ranks: int, pattern: str) -> int:
    return ranks if pattern == "heads" else 2


# What ranks compute may round otherwise than what one process computes, and a code may flip then:
# weights that are moved by 1 ulp change these videos by 0.1 to 0.53 of what quantisation itself
# does to them in the mean, and by 0.16 to 0.85 at most. A wrong head or token changes them by more.
MOST_MEAN, MOST = 1, 2


@functools.cache
def single(heads: int, kind: str, recipe: str) -> Tensor:
    return rollout(model_of(heads, DIM * heads), kind=kind, recipe=recipe)


@pytest.mark.parametrize(
    ("kind", "recipe", "ranks", "pattern", "layout"),
    [
        *(("nvfp4", "default", *sharded, layout) for sharded in SHARDED for layout in KINDS),
        *(("nvfp4", "accurate", *case) for case in ROLLOUTS),
        *(("fp8", "default", *case) for case in ROLLOUTS),
    ],
)
def test_same_video(
    world: Ranks, kind: str, recipe: str, ranks: int, pattern: str, layout: str
) -> None:
    """A window with a sink, a recache: all ranks have the video of one process."""
    heads = heads_of(ranks, pattern)
    options = {"kind": kind, "recipe": recipe}
    results = world.run(sharded_rollout, ranks, heads, pattern, layout, options, DIM * heads)
    video, digest, said = results[0]
    assert {d for _, d, _ in results} == {digest}
    assert f"{ranks} ranks ({pattern})" in said
    one = single(heads, kind, recipe)
    error = (video - one).abs()
    lost = (one - single(heads, "plain", "default")).abs()
    assert 0 < lost.max() < 0.2 * one.abs().max()
    assert error.mean() <= MOST_MEAN * lost.mean()
    assert error.max() <= MOST * lost.max()


@pytest.mark.parametrize(("kind", "recipe"), [("nvfp4", "accurate"), ("fp8", "plain")])
def test_a_rank_keeps_its_heads(world: Ranks, kind: str, recipe: str) -> None:
    """Memory of a rank is that of one process over the ranks that share the heads."""
    options = {"kind": kind, "recipe": recipe}
    whole = model_of(4, 4 * DIM).new_cache(*SIZE, 6, **options)
    for ranks, head_ranks in ((2, 2), (4, 4), (8, 4)):
        results = world.run(rank_cache, ranks, 4, options, 4 * DIM)
        assert len(results) == ranks
        for first, size, order in results:
            assert head_ranks * size == cache_bytes(whole)
            assert (order is None) == (whole.perm is None)
            if order is not None and whole.perm is not None:
                assert torch.equal(order, whole.perm[:, first : first + 4 // head_ranks])


@pytest.mark.parametrize("kind", ["nvfp4", "fp8"])
@pytest.mark.parametrize(("ranks", "pattern"), [(4, "heads"), (4, "hybrid"), (2, "gather")])
def test_bytes_are_those_of_the_planner(world: Ranks, ranks: int, pattern: str, kind: str) -> None:
    """As much as of a plain cache: keys are quantised where they are kept."""
    heads = heads_of(ranks, pattern)
    options = {"kind": kind}
    results = world.run(counted_forwards, ranks, heads, pattern, "contiguous", options, DIM * heads)
    assert len(results) == ranks
    for plan, counts in results:
        sent = [count for count, _, _ in counts]
        assert sent == [*[plan.forward_bytes] * 4, plan.clean_bytes] * 4


@pytest.mark.parametrize("kind", ["nvfp4", "fp8"])
def test_one_graph(world: Ranks, kind: str) -> None:
    results = world.run(compiled_rollout, 2, 2, "aot_eager", {"kind": kind}, 2 * DIM)
    lost = (single(2, kind, "default") - single(2, "plain", "default")).abs()
    assert len(results) == 2
    for counts, error in results:
        assert counts == {"graphs": 1, "breaks": 0, "recompiles": []}
        assert error <= MOST * lost.max()


@pytest.mark.parametrize(("kind", "recipe"), [("nvfp4", "accurate"), ("fp8", "plain")])
def test_generated_code_holds_no_second_cache(kind: str, recipe: str) -> None:
    """And does what eager code does."""
    caches = [new_cache(kind, recipe, torch.float32, slice(0, HEADS)) for _ in range(2)]
    layout = Layout("slices", 1, 0, HEIGHT * WIDTH)
    ((q, k, v),) = exchanged(caches[0], [layout], torch.float32)

    def step(cache: KVCache) -> tuple[Tensor, ...]:
        cache.receive(1, FRAMES, k, v, layout.slice_tokens)
        return cache.read(1, cache.query(1, q.squeeze(0)))

    torch._dynamo.reset()
    compiled, sources = run_and_get_code(torch.compile(step, fullgraph=True), caches[0])
    assert torch.equal(compiled, step(caches[1]))
    for name in caches[0].kind.stored(caches[0].sizes):
        assert torch.equal(raw(getattr(caches[0], name)), raw(getattr(caches[1], name)))
    source = "\n".join(sources)
    assert "vidk_received.kv_write" in source
    assert not re.findall(r"empty_strided\w*\(\(", source)


class NothingFromHost(TorchFunctionMode):
    """Forbids what copies numbers from the host to the device, and so waits for it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.tensor, torch.as_tensor, Tensor.new_tensor)
        if func is Tensor.__getitem__:
            index = args[1] if isinstance(args[1], tuple) else args[1:]
            assert not any(isinstance(i, list | Tensor) for i in index)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("kind", "recipe"), CASES, ids=str)
def test_nothing_waits_for_a_device(kind: str, recipe: str) -> None:
    """The ops' own code, on a device without data, so that none can be read back."""
    with torch.device("meta"):
        cache = new_cache(kind, recipe, torch.bfloat16, slice(0, 2))
        k, v = torch.empty(2, 2, 1, HEIGHT * WIDTH, 2, DIM, dtype=torch.bfloat16)
    kept = cache._layer(1)
    stored = (kept.get(name) for name in ("k_codes", "k_scales", "k_mean", "v"))
    more = (str(cache.kind.recipe), kept.get("perm"))
    with NothingFromHost():
        _received_fp4._kv_write(k, v, *stored, cache.frame_slot, HEIGHT * WIDTH, None, *more)
        _received_fp4._query(k[0], *more)
