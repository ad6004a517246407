"""What a KV cache holds for each key and value, and the two ops that write and read it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vidk.ops import _mxfp8, _received_fp4
from vidk.ops.attention import attention
from vidk.ops.exchange import unpack_kv_write
from vidk.ops.fp4_attention import fp4_attention
from vidk.ops.fp4_kv import qk_norm_rope_nvfp4_kv_write, scale_dtype
from vidk.ops.fp4_quantize import depth_unit, row_bytes, scale_columns
from vidk.ops.norm_rope import qk_norm_rope_kv_write
from vidk.reference.fp4 import RECIPES, TILE, tiles_of

KINDS = ("plain", "nvfp4", "fp8")
NVFP4_RECIPES = tuple(name for name, recipe in RECIPES.items() if recipe.scale != "mxfp8")

QUANTISED_OPS = ("qk_norm_rope_nvfp4_kv_write", "fp4_attention")
# Those that carry the rounding errors of the leading channels, so that their order matters.
SORTED_RECIPES = tuple(name for name, recipe in RECIPES.items() if recipe.cross)


@dataclass(frozen=True)
class Sizes:
    """Sizes of a cache; `dtype` is that of the model."""

    layers: int
    batch: int
    heads: int
    head_dim: int
    frames: int
    frame_tokens: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Stored:
    """A tensor of a cache: all frame slots lie one after the other along `slot_dim`."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    slot_dim: int

    @property
    def bytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


class Place(NamedTuple):
    """Where a block lies in the video and in the cache; the tail of both write ops' arguments."""

    frame_pos: Tensor
    frame_slot: Tensor
    time_freqs: Tensor
    space_freqs: Tensor
    height: int
    width: int

    @property
    def frame_tokens(self) -> int:
        """Tokens of one latent frame."""
        return self.height * self.width


class Kind(Protocol):
    """A way to keep keys and values. Tensors in `kept` are those of one layer, by name."""

    @property
    def name(self) -> str:
        """The name that `make_kind` knows."""

    @property
    def recipe(self) -> str | None:
        """How keys are quantised; None if they are not."""

    @property
    def ops(self) -> tuple[str, ...]:
        """The ops that write and read."""

    @property
    def rank_ops(self) -> tuple[str, ...]:
        """The ops that keep what ranks sent, and read."""

    def stored(self, sizes: Sizes) -> dict[str, Stored]:
        """Return what is kept, values under the name `v`."""

    def write(
        self,
        kept: Mapping[str, Tensor],
        qkv: tuple[Tensor, Tensor, Tensor],
        weights: tuple[Tensor, Tensor],
        eps: float,
        place: Place,
    ) -> tuple[Tensor, ...]:
        """Normalise and rotate q and k, keep k and v, return what `read` takes as the query."""

    def receive(
        self,
        kept: Mapping[str, Tensor],
        k: Tensor,
        v: Tensor,
        place: Place,
        slice_tokens: int | None,
    ) -> None:
        """Keep a block's k, rotated, and v, that ranks sent; see `ops.unpack_kv_write`."""

    def query(self, kept: Mapping[str, Tensor], q: Tensor) -> tuple[Tensor, ...]:
        """Return what `read` takes for rotated queries `[B, S, H, D]`."""

    def read(
        self, kept: Mapping[str, Tensor], query: tuple[Tensor, ...], kv_len: Tensor, place: Place
    ) -> Tensor:
        """Attend to the valid prefix; `[B, S, H, D]`."""


class Plain:
    """Keys and values in the dtype of the model."""

    name = "plain"
    recipe = None
    ops = ("qk_norm_rope_kv_write", "attention")
    rank_ops = ("unpack_kv_write", "attention")

    def stored(self, sizes: Sizes) -> dict[str, Stored]:
        tokens = sizes.frames * sizes.frame_tokens
        shape = (sizes.layers, sizes.batch, tokens, sizes.heads, sizes.head_dim)
        return {name: Stored(shape, sizes.dtype, 2) for name in "kv"}

    def write(
        self,
        kept: Mapping[str, Tensor],
        qkv: tuple[Tensor, Tensor, Tensor],
        weights: tuple[Tensor, Tensor],
        eps: float,
        place: Place,
    ) -> tuple[Tensor, ...]:
        q = qk_norm_rope_kv_write(
            *qkv,
            *weights,
            eps,
            place.frame_pos,
            place.frame_slot,
            place.time_freqs,
            place.space_freqs,
            place.height,
            place.width,
            kept["k"],
            kept["v"],
        )
        return (q,)

    def receive(
        self,
        kept: Mapping[str, Tensor],
        k: Tensor,
        v: Tensor,
        place: Place,
        slice_tokens: int | None,
    ) -> None:
        unpack_kv_write(
            k,
            v,
            kept["k"],
            kept["v"],
            place.frame_slot,
            place.frame_tokens,
            place.frame_slot.numel() * place.frame_tokens,
            slice_tokens=slice_tokens,
        )

    def query(self, kept: Mapping[str, Tensor], q: Tensor) -> tuple[Tensor, ...]:
        return (q,)

    def read(
        self, kept: Mapping[str, Tensor], query: tuple[Tensor, ...], kv_len: Tensor, place: Place
    ) -> Tensor:
        (q,) = query
        out = attention(q, kept["k"], kept["v"], kv_len)
        assert isinstance(out, Tensor)
        return out


def _quantised(sizes: Sizes, recipe: str) -> dict[str, Stored]:
    """Return what all recipes keep; `fp4_attention` has the layout."""
    lead = (sizes.layers, sizes.batch, sizes.heads)
    tokens = sizes.frames * sizes.frame_tokens
    tiles = sizes.frames * tiles_of(sizes.frame_tokens)
    codes = (*lead, tokens, row_bytes(sizes.head_dim, recipe))
    scales = (*lead, tiles, scale_columns(sizes.head_dim, recipe) // 4, TILE // 4, 4, 4)
    values = (*lead[:2], tokens, sizes.heads, sizes.head_dim)
    kept = {
        "k_codes": Stored(codes, torch.uint8, 3),
        "k_scales": Stored(scales, scale_dtype(recipe), 3),
        "v": Stored(values, sizes.dtype, 2),
    }
    if RECIPES[recipe].mean:
        kept["k_mean"] = Stored((*lead, tiles, sizes.head_dim), torch.bfloat16, 3)
    return kept


def _receive(
    kept: Mapping[str, Tensor],
    k: Tensor,
    v: Tensor,
    place: Place,
    slice_tokens: int | None,
    recipe: str,
) -> None:
    """Quantise and keep what ranks sent."""
    _received_fp4.kv_write(
        k,
        v,
        kept["k_codes"],
        kept["k_scales"],
        kept.get("k_mean"),
        kept["v"],
        place.frame_slot,
        place.frame_tokens,
        slice_tokens,
        recipe,
        kept.get("perm"),
    )


class NVFP4:
    """Keys in NVFP4, quantised once, when they are written; values in the dtype of the model."""

    name = "nvfp4"
    ops = QUANTISED_OPS
    rank_ops = ("unpack_kv_write", "nvfp4_quantize", "fp4_attention")

    def __init__(self, recipe: str) -> None:
        self.recipe = recipe
        self.mean = RECIPES[recipe].mean

    def stored(self, sizes: Sizes) -> dict[str, Stored]:
        return _quantised(sizes, self.recipe)

    def write(
        self,
        kept: Mapping[str, Tensor],
        qkv: tuple[Tensor, Tensor, Tensor],
        weights: tuple[Tensor, Tensor],
        eps: float,
        place: Place,
    ) -> tuple[Tensor, ...]:
        query = qk_norm_rope_nvfp4_kv_write(
            *qkv,
            *weights,
            eps,
            place.frame_pos,
            place.frame_slot,
            place.time_freqs,
            place.space_freqs,
            place.height,
            place.width,
            kept["k_codes"],
            kept["k_scales"],
            kept.get("k_mean"),
            kept["v"],
            recipe=self.recipe,
            perm=kept.get("perm"),
        )
        return query if self.mean else query[1:]

    def receive(
        self,
        kept: Mapping[str, Tensor],
        k: Tensor,
        v: Tensor,
        place: Place,
        slice_tokens: int | None,
    ) -> None:
        _receive(kept, k, v, place, slice_tokens, self.recipe)

    def query(self, kept: Mapping[str, Tensor], q: Tensor) -> tuple[Tensor, ...]:
        query = _received_fp4.query(q, self.recipe, kept.get("perm"))
        return (q, *query) if self.mean else query

    def read(
        self, kept: Mapping[str, Tensor], query: tuple[Tensor, ...], kv_len: Tensor, place: Place
    ) -> Tensor:
        *rotated, codes, scales = query
        out = fp4_attention(
            codes,
            scales,
            kept["k_codes"],
            kept["k_scales"],
            kept["v"],
            kv_len,
            place.frame_tokens,
            q=rotated[0] if self.mean else None,
            k_mean=kept.get("k_mean"),
        )
        assert isinstance(out, Tensor)
        return out


class FP8:
    """Keys in MXFP8 and values in float8_e4m3fn; scales are kept as bytes, see `ops._mxfp8`."""

    name = "fp8"
    recipe = "mxfp8"
    ops = QUANTISED_OPS
    rank_ops = ("unpack_kv_write", "fp4_attention")

    def stored(self, sizes: Sizes) -> dict[str, Stored]:
        kept = _quantised(sizes, self.recipe)
        kept["k_scales"] = replace(kept["k_scales"], dtype=torch.uint8)
        kept["v"] = replace(kept["v"], dtype=torch.float8_e4m3fn)
        return kept

    def write(
        self,
        kept: Mapping[str, Tensor],
        qkv: tuple[Tensor, Tensor, Tensor],
        weights: tuple[Tensor, Tensor],
        eps: float,
        place: Place,
    ) -> tuple[Tensor, ...]:
        caches = (kept["k_codes"], kept["k_scales"], kept["v"])
        return _mxfp8.kv_write(*qkv, *weights, eps, *place, *caches)

    def receive(
        self,
        kept: Mapping[str, Tensor],
        k: Tensor,
        v: Tensor,
        place: Place,
        slice_tokens: int | None,
    ) -> None:
        _receive(kept, k, v, place, slice_tokens, self.recipe)

    def query(self, kept: Mapping[str, Tensor], q: Tensor) -> tuple[Tensor, ...]:
        return _received_fp4.query(q, self.recipe, None)

    def read(
        self, kept: Mapping[str, Tensor], query: tuple[Tensor, ...], kv_len: Tensor, place: Place
    ) -> Tensor:
        caches = (kept["k_codes"], kept["k_scales"], kept["v"])
        return _mxfp8.attention(*query, *caches, kv_len, place.frame_tokens)


def make_kind(kind: str, recipe: str, head_dim: int) -> Kind:
    """Return a kind by name; raise ValueError unless there is one for such heads.

    Parameters
    ----------
    kind : "plain", "nvfp4" or "fp8".
    recipe : of "nvfp4" keys: "plain", "default", "accurate" or "accurate256".
    head_dim : channels of a head.
    """
    if kind not in KINDS:
        raise ValueError(f"vidk.KVCache: kind: got '{kind}', expected one of {', '.join(KINDS)}")
    if kind == "plain":
        return Plain()
    if recipe not in NVFP4_RECIPES:
        raise ValueError(
            f"vidk.KVCache: recipe: got '{recipe}', expected one of {', '.join(NVFP4_RECIPES)}"
        )
    chosen = "mxfp8" if kind == "fp8" else recipe
    unit = depth_unit(chosen)
    if head_dim % unit:
        raise ValueError(
            f"vidk.KVCache: head_dim: got {head_dim}, expected a multiple of {unit} for kind "
            f"'{kind}' (a tile of scales has 4 columns)"
        )
    return FP8() if kind == "fp8" else NVFP4(recipe)


def key_row_bytes(stored: Mapping[str, Stored], sizes: Sizes) -> float:
    """Return the bytes of a cached key row of one head, scales and means included."""
    rows = sizes.layers * sizes.batch * sizes.heads * sizes.frames * sizes.frame_tokens
    return sum(s.bytes for name, s in stored.items() if name != "v") / rows


def channel_order(q_energy: Tensor, k_energy: Tensor) -> Tensor:
    """Return the channels of each head by falling energy, `[H, D]` int32.

    What a channel adds to the error of a logit goes with the product of its mean squares in q and
    in k, both `[H, D]`. RoPE mixes the two channels of a pair, so a pair has one energy.
    """
    q, k = (
        x.unflatten(-1, (-1, 2)).mean(-1).repeat_interleave(2, -1) for x in (q_energy, k_energy)
    )
    # Stable: the channels of a head without differences stay where they are.
    return (q * k).argsort(dim=-1, descending=True, stable=True).int()
