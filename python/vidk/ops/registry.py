"""The table of ops: what each is called with, what it costs, and what it is held against.

Tests, benchmarks and `docs/ops.md` are driven by `OPS`. An op that lacks a field here, a kernel, a
test or a docs entry fails `tests/ops/test_registry.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vidk import reference
from vidk.ops import (
    all_gather,
    attention,
    exchange,
    fp4_attention,
    fp4_kv,
    kv_cache,
    norm_rope,
    nvfp4,
    rope,
)
from vidk.rope import band_pairs, freq_table

Args = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class BlockShape:
    """Sizes of one call; `kv_frames` of the cache's `cache_frames` are valid."""

    frames: int
    height: int
    width: int
    heads: int
    head_dim: int
    cache_frames: int = 6
    kv_frames: int = 6
    batch: int = 1
    text_len: int = 512
    text_tokens: int = 70

    @property
    def frame_tokens(self) -> int:
        """Tokens of one latent frame."""
        return self.height * self.width

    @property
    def tokens(self) -> int:
        """Tokens of the block."""
        return self.frames * self.frame_tokens


@dataclass(frozen=True)
class Cost:
    """What an op must at least move and compute: its floor."""

    read: int
    written: int
    flops: int

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return self.read + self.written


@dataclass(frozen=True)
class Op:
    """One operator of `torch.ops.vidk`.

    `sample(shape, dtype, device, generator)` returns `(args, kwargs)`; `cost(shape, dtype)` is the
    floor; `reference` takes the same arguments as the op.
    """

    name: str
    family: str
    schema: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    sample: Callable[[BlockShape, torch.dtype, str, torch.Generator], Args]
    cost: Callable[[BlockShape, torch.dtype], Cost]
    floor: str
    mutates: tuple[str, ...] = ()


class _Sampler:
    """Random tensors of one call, shaped as a model hands them over."""

    def __init__(
        self, shape: BlockShape, dtype: torch.dtype, device: str, generator: torch.Generator
    ) -> None:
        self.shape, self.dtype, self.device, self.generator = shape, dtype, device, generator

    def randn(self, *size: int) -> Tensor:
        x = torch.randn(*size, generator=self.generator)
        return x.to(device=self.device, dtype=self.dtype)

    def ints(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        """Three strided views of one fused projection, the normal case in a compiled model."""
        s = self.shape
        fused = self.randn(s.batch, s.tokens, 3, s.heads, s.head_dim)
        q, k, v = fused.unbind(2)
        return q, k, v

    def caches(self) -> tuple[Tensor, Tensor]:
        s = self.shape
        size = (s.batch, s.cache_frames * s.frame_tokens, s.heads, s.head_dim)
        return self.randn(*size), self.randn(*size)

    def tables(self) -> tuple[Tensor, Tensor]:
        s = self.shape
        time_pairs, space_pairs = band_pairs(s.head_dim)
        time = freq_table(torch.arange(64), time_pairs)
        space = freq_table(torch.arange(max(s.height, s.width)), space_pairs)
        return time.to(self.device), space.to(self.device)

    def frame_pos(self) -> Tensor:
        return self.ints(list(range(3, 3 + self.shape.frames)))

    def frame_slot(self) -> Tensor:
        """Slots in reverse order at the end of the cache: no kernel may assume a run."""
        s = self.shape
        return self.ints(list(range(s.cache_frames - 1, s.cache_frames - 1 - s.frames, -1)))


def _rope_sample(*args: Any) -> Args:
    s = _Sampler(*args)
    grid = (s.shape.height, s.shape.width)
    return (s.qkv()[0], s.frame_pos(), *s.tables(), *grid), {}


def _kv_cache_write_sample(*args: Any) -> Args:
    s = _Sampler(*args)
    _, k, v = s.qkv()
    return (k, v, *s.caches(), s.frame_slot(), s.shape.frame_tokens), {}


def _norm_rope_sample(*args: Any) -> Args:
    s = _Sampler(*args)
    channels = s.shape.heads * s.shape.head_dim
    weights = (s.randn(channels), s.randn(channels))
    index = (s.frame_pos(), s.frame_slot(), *s.tables(), s.shape.height, s.shape.width)
    return (*s.qkv(), *weights, 1e-6, *index, *s.caches()), {}


def _ranks(heads: int) -> int:
    """Return a number of ranks, up to four, that divides the heads."""
    return next(n for n in (4, 3, 2, 1) if heads % n == 0)


def _pack_sample(*args: Any) -> Args:
    """The shard of rank 1 in a block that gives every rank as many frames as the shape has."""
    s = _Sampler(*args)
    shape = s.shape
    channels = shape.heads * shape.head_dim
    weights = (s.randn(channels), s.randn(channels))
    ranks = _ranks(shape.heads)
    frame_pos = s.ints(list(range(3, 3 + ranks * shape.frames)))
    index = (frame_pos, *s.tables(), shape.height, shape.width, ranks)
    return (*s.qkv(), *weights, 1e-6, *index), {"token_offset": shape.tokens if ranks > 1 else 0}


def _unpack_sample(*args: Any) -> Args:
    """A block of contiguous shards, the last one padded; the heads are those of one rank."""
    s = _Sampler(*args)
    shape = s.shape
    ranks = _ranks(shape.heads)
    size = (ranks, shape.batch, -(-shape.tokens // ranks), shape.heads, shape.head_dim)
    kv = (s.randn(*size), s.randn(*size))
    return (*kv, *s.caches(), s.frame_slot(), shape.frame_tokens, shape.tokens), {}


def _all_gather_sample(*args: Any) -> Args:
    """A group of one rank, which needs no other process."""
    s = _Sampler(*args)
    x = s.qkv()[0]
    grid = (s.shape.height, s.shape.width)
    return (x, s.frame_pos(), *s.tables(), *grid, torch.zeros_like(x)[None].contiguous(), 0, ""), {}


def _attention_sample(*args: Any) -> Args:
    s = _Sampler(*args)
    kv_len = s.ints([s.shape.kv_frames * s.shape.frame_tokens])
    return (s.qkv()[0], *s.caches(), kv_len), {}


def _cross_attention_sample(*args: Any) -> Args:
    s = _Sampler(*args)
    shape = s.shape
    text = (shape.batch, shape.text_len, shape.heads, shape.head_dim)
    k, v = s.randn(*text), s.randn(*text)
    n = min(shape.text_tokens, shape.text_len)
    for x in (k, v):
        x[:, n:] = x[:, n : n + 1]
    return (s.qkv()[0], k, v, s.ints([n] * shape.batch)), {}


def _whole_scales(shape: BlockShape) -> BlockShape:
    """Return the shape with a head dim of whole NVFP4 blocks."""
    return replace(shape, head_dim=-(-shape.head_dim // nvfp4.BLOCK) * nvfp4.BLOCK)


def _nvfp4_quantize_sample(shape: BlockShape, *args: Any) -> Args:
    return (_Sampler(_whole_scales(shape), *args).qkv()[0],), {}


def _fp4_kv_sample(shape: BlockShape, *args: Any) -> Args:
    shape = _heads_of_128(shape)
    values, _ = _norm_rope_sample(shape, *args)
    *rest, _, v_cache = values
    b, capacity, h, dim = v_cache.shape
    tiles = shape.cache_frames * -(-shape.frame_tokens // 128)
    codes = v_cache.new_zeros((b, h, capacity, dim // 2), dtype=torch.uint8)
    scales = v_cache.new_zeros((b, h, tiles, dim // 64, 32, 4, 4), dtype=torch.float8_e4m3fn)
    mean = v_cache.new_zeros((b, h, tiles, dim), dtype=torch.bfloat16)
    return (*rest, codes, scales, mean, v_cache), {}


def _heads_of_128(shape: BlockShape) -> BlockShape:
    """Return the shape with a head dim that the CUDA kernels of FP4 attention take."""
    return replace(shape, head_dim=-(-shape.head_dim // 128) * 128)


def _fp4_attention_sample(shape: BlockShape, *args: Any) -> Args:
    """Codes of random bits under the default recipe, with scales that make them about normal."""
    s = _Sampler(_heads_of_128(shape), *args)
    shape = s.shape
    b, h, dim, rows = shape.batch, shape.heads, shape.head_dim, shape.frame_tokens

    def quantized(slots: int, rows: int) -> tuple[Tensor, Tensor]:
        size = (b, h, slots * rows, dim // 2)
        codes = torch.randint(256, size, dtype=torch.uint8, generator=s.generator)
        scales = 0.2 + 0.25 * torch.rand(b, h, slots, rows, dim // 16, generator=s.generator)
        tiles = reference.nvfp4.swizzle_scales(scales.to(torch.float8_e4m3fn)).flatten(2, 3)
        return codes.to(s.device), tiles.contiguous().to(s.device)

    keys = quantized(shape.cache_frames, rows)
    mean = s.randn(b, h, keys[1].size(2), dim).bfloat16()
    kv_len = s.ints([shape.kv_frames * rows])
    args_ = (*quantized(1, shape.tokens), *keys, s.caches()[1], kv_len, rows)
    return args_, {"q": s.qkv()[0], "k_mean": 0.1 * mean}


def _block_bytes(shape: BlockShape, dtype: torch.dtype) -> int:
    return shape.batch * shape.tokens * shape.heads * shape.head_dim * dtype.itemsize


def _rope_cost(shape: BlockShape, dtype: torch.dtype) -> Cost:
    n = _block_bytes(shape, dtype)
    return Cost(n, n, 3 * n // dtype.itemsize)


def _kv_cache_write_cost(shape: BlockShape, dtype: torch.dtype) -> Cost:
    n = _block_bytes(shape, dtype)
    return Cost(2 * n, 2 * n, 0)


def _norm_rope_cost(shape: BlockShape, dtype: torch.dtype) -> Cost:
    n = _block_bytes(shape, dtype)
    return Cost(3 * n, 3 * n, 2 * 7 * n // dtype.itemsize)


def _attention_cost(shape: BlockShape, dtype: torch.dtype) -> Cost:
    n = _block_bytes(shape, dtype)
    keys = shape.kv_frames * shape.frame_tokens
    kv = 2 * n * keys // shape.tokens
    lse = 4 * shape.batch * shape.heads * shape.tokens
    return Cost(n + kv, n + lse, 4 * n // dtype.itemsize * keys)


def _cross_attention_cost(shape: BlockShape, dtype: torch.dtype) -> Cost:
    n = _block_bytes(shape, dtype)
    keys = min(shape.text_tokens + 1, shape.text_len)
    return Cost(n + 2 * n * keys // shape.tokens, n, 4 * n // dtype.itemsize * keys)


def _nvfp4_quantize_cost(shape: BlockShape, dtype: torch.dtype) -> Cost:
    n = _block_bytes(_whole_scales(shape), dtype)
    elements = n // dtype.itemsize
    return Cost(n, elements // 2 + elements // nvfp4.BLOCK, 0)


def _fp4_kv_cost(shape: BlockShape, dtype: torch.dtype) -> Cost:
    """Return the floor of the default recipe: q is returned, and keys have means."""
    shape = _heads_of_128(shape)
    n = _block_bytes(shape, dtype)
    elements = n // dtype.itemsize
    rows = 2 * (elements // 2 + elements // nvfp4.BLOCK)
    tiles = shape.batch * shape.heads * shape.frames * -(-shape.frame_tokens // 128)
    return Cost(3 * n, 2 * n + rows + 2 * tiles * shape.head_dim, 14 * elements)


def _fp4_attention_cost(shape: BlockShape, dtype: torch.dtype) -> Cost:
    """Return the floor of the default recipe: q is read as it was, too."""
    shape = _heads_of_128(shape)
    n = _block_bytes(shape, dtype)
    elements = n // dtype.itemsize
    keys = shape.kv_frames * shape.frame_tokens
    codes = shape.batch * shape.heads * (shape.head_dim // 2 + shape.head_dim // nvfp4.BLOCK)
    means = shape.batch * shape.heads * shape.kv_frames * -(-shape.frame_tokens // 128)
    lse = 4 * shape.batch * shape.heads * shape.tokens
    read = n + n * keys // shape.tokens + codes * (shape.tokens + keys) + 2 * means * shape.head_dim
    return Cost(read, n + lse, 4 * elements * keys)


OPS: dict[str, Op] = {
    op.name: op
    for op in (
        Op(
            name="rope_3d",
            family="rope",
            schema=rope.SCHEMA,
            function=rope.rope_3d,
            reference=reference.rope_3d,
            sample=_rope_sample,
            cost=_rope_cost,
            floor="read x + write y",
        ),
        Op(
            name="kv_cache_write",
            family="kv_cache",
            schema=kv_cache.SCHEMA,
            function=kv_cache.kv_cache_write,
            reference=reference.kv_cache_write,
            sample=_kv_cache_write_sample,
            cost=_kv_cache_write_cost,
            floor="read k, v + write k, v",
            mutates=("k_cache", "v_cache"),
        ),
        Op(
            name="qk_norm_rope_kv_write",
            family="norm_rope",
            schema=norm_rope.SCHEMA,
            function=norm_rope.qk_norm_rope_kv_write,
            reference=reference.qk_norm_rope_kv_write,
            sample=_norm_rope_sample,
            cost=_norm_rope_cost,
            floor="read q, k, v + write q, k, v, once",
            mutates=("k_cache", "v_cache"),
        ),
        Op(
            name="qk_norm_rope_nvfp4_kv_write",
            family="fp4_kv",
            schema=fp4_kv.SCHEMA,
            function=fp4_kv.qk_norm_rope_nvfp4_kv_write,
            reference=reference.qk_norm_rope_nvfp4_kv_write,
            sample=_fp4_kv_sample,
            cost=_fp4_kv_cost,
            floor="read q, k, v + write q and v, and the codes, scales and means of q and k, once",
            mutates=("k_codes", "k_scales", "k_mean", "v_cache"),
        ),
        Op(
            name="qk_norm_rope_pack",
            family="exchange",
            schema=exchange.PACK_SCHEMA,
            function=exchange.qk_norm_rope_pack,
            reference=reference.qk_norm_rope_pack,
            sample=_pack_sample,
            cost=_norm_rope_cost,
            floor="read q, k, v + write q, k, v, once",
        ),
        Op(
            name="unpack_kv_write",
            family="exchange",
            schema=exchange.UNPACK_SCHEMA,
            function=exchange.unpack_kv_write,
            reference=reference.unpack_kv_write,
            sample=_unpack_sample,
            cost=_kv_cache_write_cost,
            floor="read k, v + write k, v",
            mutates=("k_cache", "v_cache"),
        ),
        Op(
            name="all_gather_rope",
            family="all_gather",
            schema=all_gather.SCHEMA,
            function=all_gather.all_gather_rope,
            reference=reference.all_gather_rope,
            sample=_all_gather_sample,
            cost=_rope_cost,
            floor="read the rank's x + write it once to each of the P ranks (here P is 1)",
            mutates=("out",),
        ),
        Op(
            name="attention",
            family="attention",
            schema=attention.SCHEMA,
            function=attention.attention,
            reference=reference.attention,
            sample=_attention_sample,
            cost=_attention_cost,
            floor="4 S kv_len H D FLOPs at the library's best rate",
        ),
        Op(
            name="cross_attention",
            family="attention",
            schema=attention.CROSS_SCHEMA,
            function=attention.cross_attention,
            reference=reference.cross_attention,
            sample=_cross_attention_sample,
            cost=_cross_attention_cost,
            floor="4 S (text tokens + 1) H D FLOPs at the library's best rate",
        ),
        Op(
            name="fp4_attention",
            family="fp4_attention",
            schema=fp4_attention.SCHEMA,
            function=fp4_attention.fp4_attention,
            reference=reference.fp4_attention,
            sample=_fp4_attention_sample,
            cost=_fp4_attention_cost,
            floor="4 S kv_len H D FLOPs, half of them at the rate of FP4",
        ),
        Op(
            name="nvfp4_quantize",
            family="nvfp4",
            schema=nvfp4.SCHEMA,
            function=nvfp4.nvfp4_quantize,
            reference=reference.nvfp4_quantize,
            sample=_nvfp4_quantize_sample,
            cost=_nvfp4_quantize_cost,
            floor="read x + write half a byte an element and a byte a scale",
        ),
    )
}
