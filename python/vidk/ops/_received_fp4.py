"""What ranks sent, into a cache of quantised keys: private ops, composed of vidk's and torch's.

Keys are quantised after the exchange, since those of a tile, which may come from several ranks,
share a mean. These are ops, and not torch code in the graph, because Inductor makes a copy of a
cache that `index_copy_` writes to. MXFP8 scales are bytes, see `_mxfp8`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vidk.ops.exchange import unpack_kv_write
from vidk.ops.fp4_quantize import fp4_quantize, row_bytes, scale_columns
from vidk.reference.fp4 import tiles_of
from vidk.reference.nvfp4 import e4m3_encode

LIBRARY = torch.library.Library("vidk_received", "DEF")


def _define(schema: str, function: Any, fake: Any) -> None:
    name = schema.split("(", 1)[0]
    # Inductor must hand over the strides that the ops inside check.
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
    LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vidk_received::{name}", fake, lib=LIBRARY)


def _put(cache: Tensor, dim: int, slots: int, frame_slot: Tensor, block: Tensor) -> None:
    """Overwrite frame slots, which lie one after the other along `dim`, with a block's frames."""
    if cache.dtype.itemsize == 1:  # not all of these types can be indexed
        cache, block = cache.view(torch.uint8), block.view(torch.uint8)
    frames = block.unflatten(dim, (frame_slot.numel(), -1))
    cache.unflatten(dim, (slots, -1)).index_copy_(dim, frame_slot, frames)


def _kv_write(
    k: Tensor,
    v: Tensor,
    k_codes: Tensor,
    k_scales: Tensor,
    k_mean: Tensor | None,
    v_cache: Tensor,
    frame_slot: Tensor,
    frame_tokens: int,
    slice_tokens: int | None,
    recipe: str,
    perm: Tensor | None,
) -> None:
    _, batch, _, heads, dim = k.shape
    frames, tokens = frame_slot.numel(), frame_slot.numel() * frame_tokens
    keys, values = k.new_empty((2, batch, tokens, heads, dim))
    in_order = torch.arange(frames, dtype=frame_slot.dtype, device=k.device)
    unpack_kv_write(k, v, keys, values, in_order, frame_tokens, tokens, slice_tokens=slice_tokens)
    codes, scales, mean = fp4_quantize(
        keys, role="k", recipe=recipe, frame_tokens=frame_tokens, perm=perm
    )
    if v_cache.dtype == torch.float8_e4m3fn:
        values = e4m3_encode(values.float())
    slots, chosen = v_cache.size(1) // frame_tokens, frame_slot.long()
    _put(k_codes, 2, slots, chosen, codes)
    _put(k_scales, 2, slots, chosen, scales)
    _put(v_cache, 1, slots, chosen, values)
    if k_mean is not None and mean is not None:
        _put(k_mean, 2, slots, chosen, mean)


def _query(q: Tensor, recipe: str, perm: Tensor | None) -> tuple[Tensor, Tensor]:
    codes, scales, _ = fp4_quantize(q, role="q", recipe=recipe, perm=perm)
    return codes, scales.view(torch.uint8) if recipe == "mxfp8" else scales


def _fake_kv_write(*args: Any) -> None:
    pass


def _fake_query(q: Tensor, recipe: str, perm: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, dim = q.shape
    scales = (batch, heads, tiles_of(tokens), scale_columns(dim, recipe) // 4, 32, 4, 4)
    dtype = torch.uint8 if recipe == "mxfp8" else torch.float8_e4m3fn
    return (
        q.new_empty((batch, heads, tokens, row_bytes(dim, recipe)), dtype=torch.uint8),
        q.new_empty(scales, dtype=dtype),
    )


_define(
    "kv_write(Tensor k, Tensor v, Tensor(a!) k_codes, Tensor(b!) k_scales, Tensor(c!)? k_mean, "
    "Tensor(d!) v_cache, Tensor frame_slot, SymInt frame_tokens, SymInt? slice_tokens, "
    "str recipe, Tensor? perm) -> ()",
    _kv_write,
    _fake_kv_write,
)
_define("query(Tensor q, str recipe, Tensor? perm) -> (Tensor, Tensor)", _query, _fake_query)
kv_write = torch.ops.vidk_received.kv_write
query = torch.ops.vidk_received.query
