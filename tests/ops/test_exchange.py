"""The sequence->head exchange: P virtual ranks in one process against one rank with everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from vidk import reference

from .helpers import (
    CACHES,
    DTYPES,
    HEAD_DIMS,
    READ_LAYOUTS,
    assert_same_bits,
    assert_same_memory,
    dtype_id,
    far_apart,
    ints,
    normal,
    random_bits,
    tables,
    twins,
)
from .test_norm_rope import EPS, assert_nearly, weights

pack = torch.ops.vidk.qk_norm_rope_pack
unpack = torch.ops.vidk.unpack_kv_write
whole = torch.ops.vidk.qk_norm_rope_kv_write
HEIGHT, WIDTH = 3, 5
FRAME = HEIGHT * WIDTH
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
Shard = tuple[Tensor, dict[str, Any]]  # index of the rank's tokens, past the block for padding


def contiguous(ranks: int, tokens: int) -> Iterator[Shard]:
    """Yield every rank's tokens: runs of one length, the last ones with padding."""
    n = -(-tokens // ranks)
    for r in range(ranks):
        g = r * n + torch.arange(n)
        yield g.where(g < tokens, tokens), {"token_offset": r * n}


def slices(ranks: int, tokens: int) -> Iterator[Shard]:
    """Yield every rank's tokens: a piece of each frame, the last ones with padding."""
    c = -(-FRAME // ranks)
    for r in range(ranks):
        at = r * c + torch.arange(c)
        g = at + FRAME * torch.arange(-(-tokens // FRAME))[:, None]
        g = g.where((at < FRAME) & (g < tokens), tokens).flatten()
        yield g, {"token_offset": r * c, "slice_tokens": c}


def exchange(sent: list[Tensor]) -> list[Tensor]:
    """Return what every rank receives when rank r sends chunk d to rank d: `[P, n, ...]`."""
    return list(torch.stack(sent).transpose(0, 1).contiguous())


def with_padding(x: Tensor, value: float) -> Tensor:
    """Return a block with one more token, which padding is taken from."""
    return torch.cat([x, torch.full_like(x[:, :1], value)], dim=1)


def check_identity(
    layout: Callable[[int, int], Iterator[Shard]],
    ranks: int,
    tokens: int,
    dtype: torch.dtype,
    head_dim: int = 32,
    same: Callable[..., None] = assert_same_bits,
    order: tuple[str, ...] = ("qkv",),
) -> None:
    """Pack on each rank, exchange, unpack on each: as the whole block, head shard by head shard."""
    heads = 2 * ranks
    make = normal(dtype, layout.__name__, ranks, tokens, head_dim)
    qkv = dict(zip("qkv", make(2, tokens, 3, heads, head_dim).unbind(2), strict=True))
    w = dict(zip("qk", weights(make, heads * head_dim), strict=True))
    slots, pos = ints(4, 1, 2, 0), ints(7, 63, 0, 5)
    grid = (*tables(head_dim, HEIGHT, WIDTH), HEIGHT, WIDTH)
    caches = [random_bits(dtype, name)(2, 5 * FRAME, heads, head_dim) for name in "kv"]
    mine = [[c.clone() for c in x.tensor_split(ranks, dim=2)] for x in twins(*caches)]
    q_whole = whole(*qkv.values(), *w.values(), EPS, pos, slots, *grid, *caches)

    received: dict[str, list[Tensor]] = {}
    options: dict[str, Any] = {}
    for names in order:
        sent = []
        for g, options in layout(ranks, tokens):
            shard = {n: with_padding(qkv[n], float("nan"))[:, g] for n in names}
            given = [shard.get(n) for n in "qkv"] + [w[n] if n in names else None for n in "qk"]
            sent.append(pack(*given, EPS, pos, *grid, ranks, **options))
        by_tensor = zip(*(chunks.unbind(1) for chunks in exchange(sent)), strict=True)
        for name, chunks in zip(names, by_tensor, strict=True):
            received[name] = [x.contiguous() for x in chunks]
    order_of_q = torch.cat([g for g, _ in layout(ranks, tokens)])
    options.pop("token_offset")
    for r in range(ranks):
        owned = slice(2 * r, 2 * r + 2)
        q, k, v = (received[n][r] for n in "qkv")
        unpack(k, v, mine[0][r], mine[1][r], slots, FRAME, tokens, **options)
        for got, expected in zip((mine[0][r], mine[1][r]), caches, strict=True):
            same(got, expected[:, :, owned].contiguous())
        # Queries in the order of their ranks, padding left out.
        got = q.transpose(0, 1).flatten(1, 2)[:, order_of_q < tokens]
        same(got, q_whole[:, :, owned][:, order_of_q[order_of_q < tokens]].contiguous())


@every_dtype
@pytest.mark.parametrize("tokens", [4 * FRAME, 2 * FRAME + 7, 3 * FRAME - 1, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("layout", [contiguous, slices])
def test_identity(layout: Any, ranks: int, tokens: int, dtype: torch.dtype) -> None:
    """Lengths and frames that the ranks do not divide, borders in frames and rows, idle ranks."""
    check_identity(layout, ranks, tokens, dtype)


@every_dtype
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_head_dims(head_dim: int, dtype: torch.dtype) -> None:
    check_identity(contiguous, 3, 2 * FRAME + 7, dtype, head_dim)


@pytest.mark.parametrize("order", [("v", "k", "q"), ("kv", "q"), ("v", "qk")])
def test_one_tensor_after_another(order: tuple[str, ...]) -> None:
    """V, then K, then Q, each with an exchange of its own: the same bits."""
    check_identity(slices, 4, 3 * FRAME, torch.bfloat16, order=order)


def index(ranks: int, head_dim: int, *positions: int) -> tuple[Any, ...]:
    return (ints(*positions), *tables(head_dim, HEIGHT, WIDTH), HEIGHT, WIDTH, ranks)


def check_pack(q: Tensor, k: Tensor, v: Tensor, w: Any, idx: Any, **options: Any) -> None:
    """Compare a call with its reference."""
    inputs = twins(q, k, v)
    got = pack(q, k, v, *w, EPS, *idx, **options)
    assert_same_memory([q, k, v], inputs, "inputs")
    expected = reference.qk_norm_rope_pack(q, k, v, *w, EPS, *idx, **options)
    assert got.shape == expected.shape and got.is_contiguous()
    ranks = idx[-1]
    for i, (x, y) in enumerate(((q, w[0]), (k, w[1]))):
        normed = reference.norm_rope.rms_norm(x.flatten(2), y, EPS).view(x.shape)
        scale = reference.exchange.pack([normed], ranks)[:, 0]
        assert_nearly(got[:, i].contiguous(), expected[:, i].contiguous(), scale)
    assert_same_bits(got[:, 2].contiguous(), expected[:, 2].contiguous())


@every_dtype
@pytest.mark.parametrize("layout", READ_LAYOUTS)
@pytest.mark.parametrize("head_dim", [6, 48, 128])
def test_layouts(head_dim: int, layout: str, dtype: torch.dtype) -> None:
    make = normal(dtype, layout, head_dim)
    q, k, v = (READ_LAYOUTS[layout](make, 2, FRAME + 7, 6, head_dim) for _ in range(3))
    idx = index(3, head_dim, 7, 63, 0)
    check_pack(q, k, v, weights(make, 6 * head_dim), idx, token_offset=FRAME + 4)


@every_dtype
def test_large_shard_on_all_threads(dtype: torch.dtype) -> None:
    make = normal(dtype)
    q, k, v = make(1, 500, 3, 12, 128).unbind(2)
    idx = (ints(7, 3), *tables(128, 15, 26), 15, 26, 4)
    check_pack(q, k, v, weights(make, 12 * 128), idx, token_offset=250)


@every_dtype
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("head_dim", [1, 6, 37, 128])
def test_layouts_of_the_caches(head_dim: int, cache: str, dtype: torch.dtype) -> None:
    make = random_bits(dtype, cache)
    k, v = (make(3, 2, 12, 2, head_dim) for _ in range(2))
    caches = CACHES[cache](make, 2, 4 * FRAME, 2, head_dim)
    expected = twins(*caches)
    where = (ints(3, 0, 1), FRAME, 2 * FRAME + 4)
    unpack(k, v, *caches, *where)
    reference.unpack_kv_write(k, v, *expected, *where)
    assert_same_memory(list(caches), expected)


@pytest.mark.parametrize("size", [(0, 15, 2, 6), (2, 0, 2, 6), (2, 15, 0, 6), (2, 15, 2, 0)])
def test_empty(size: tuple[int, ...]) -> None:
    make = normal(torch.float32)
    batch, tokens, heads, dim = size
    x, w = make(*size), make(heads * dim)
    got = pack(x, x, x, w, w, EPS, *index(2, dim, 5))
    assert got.shape == (2, 3, batch, tokens, heads // 2, dim) and got.is_contiguous()
    caches = CACHES["two_tensors"](make, batch, 2 * FRAME, heads, dim)
    before = twins(*caches)
    received = make(2, *size)
    unpack(received, received, *caches, ints(1), FRAME, min(tokens, FRAME) if tokens else 0)
    if 0 in received.shape:
        assert_same_memory(list(caches), before)


def test_no_frames_but_padding() -> None:
    """A shard of padding alone is normalised; nothing of it reaches a cache."""
    make = normal(torch.float32)
    x, w = make(1, 4, 2, 12), make(24)
    got = pack(x, None, None, w, None, EPS, *index(2, 12))
    normed = reference.norm_rope.rms_norm(x.flatten(2), w, EPS).view(x.shape)
    assert_nearly(got, reference.exchange.pack([normed], 2), got)
    caches = [make(1, FRAME, 1, 12) for _ in range(2)]
    before = twins(*caches)
    unpack(got[:, 0].contiguous(), got[:, 0].contiguous(), *caches, ints(), FRAME, 0)
    assert_same_memory(caches, before)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_offsets_past_2_31_elements(dim: int) -> None:
    make = normal(torch.bfloat16, dim)
    w = weights(make, 64)
    idx = (ints(7), *tables(32, 1, 3), 1, 3, 2)
    q, k, v = (make(2, 3, 2, 32) for _ in range(3))
    got = pack(far_apart(q, dim), k, v, *w, EPS, *idx)
    assert_same_bits(got, pack(q, k, v, *w, EPS, *idx))
    received = make(2, 2, 2, 2, 32)
    caches = [make(2, 3, 2, 32) for _ in range(2)]
    far = [far_apart(c, dim) for c in caches]
    for target in (caches, far):
        unpack(received, received, *target, ints(0), 3, 3)
    for a, b in zip(far, caches, strict=True):
        assert_same_bits(a, b)
