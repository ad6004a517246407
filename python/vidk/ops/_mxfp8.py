"""The two FP4 ops on MXFP8 keys, with scales in uint8: for graphs that torch.compile makes.

Inductor cannot functionalise an op that takes or returns float8_e8m0fnu: its pass leaves out nodes
with that type, and compilation stops. The bytes are the same, and outside these ops no other type
is seen. They are no part of vidk's ops: kernels and checks are those of `fp4_kv`, `fp4_attention`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vidk.ops.fp4_kv import qk_norm_rope_nvfp4_kv_write

LIBRARY = torch.library.Library("vidk_mxfp8", "DEF")
_BYTES, _SCALES = torch.uint8, torch.float8_e8m0fnu


def _define(schema: str, function: Any) -> None:
    name = schema.split("(", 1)[0]
    # Inductor must hand over the strides that the ops inside check.
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
    LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    # On fake tensors the ops inside are fake themselves.
    torch.library.register_fake(f"vidk_mxfp8::{name}", function, lib=LIBRARY)


def _kv_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    frame_pos: Tensor,
    frame_slot: Tensor,
    time_freqs: Tensor,
    space_freqs: Tensor,
    height: int,
    width: int,
    k_codes: Tensor,
    k_scales: Tensor,
    v_cache: Tensor,
) -> tuple[Tensor, Tensor]:
    _, codes, scales = qk_norm_rope_nvfp4_kv_write(
        q,
        k,
        v,
        q_weight,
        k_weight,
        eps,
        frame_pos,
        frame_slot,
        time_freqs,
        space_freqs,
        height,
        width,
        k_codes,
        k_scales.view(_SCALES),
        None,
        v_cache,
        recipe="mxfp8",
    )
    return codes, scales.view(_BYTES)


def _attention(
    q_codes: Tensor,
    q_scales: Tensor,
    k_codes: Tensor,
    k_scales: Tensor,
    v_cache: Tensor,
    kv_len: Tensor,
    frame_tokens: int,
) -> Tensor:
    scales = (q_scales.view(_SCALES), k_scales.view(_SCALES))
    out, _ = torch.ops.vidk.fp4_attention(
        q_codes, scales[0], k_codes, scales[1], v_cache, kv_len, frame_tokens
    )
    return out


_define(
    "kv_write(Tensor q, Tensor k, Tensor v, Tensor q_weight, Tensor k_weight, float eps, "
    "Tensor frame_pos, Tensor frame_slot, Tensor time_freqs, Tensor space_freqs, SymInt height, "
    "SymInt width, Tensor(a!) k_codes, Tensor(b!) k_scales, Tensor(c!) v_cache) "
    "-> (Tensor, Tensor)",
    _kv_write,
)
_define(
    "attention(Tensor q_codes, Tensor q_scales, Tensor k_codes, Tensor k_scales, Tensor v_cache, "
    "Tensor kv_len, SymInt frame_tokens) -> Tensor",
    _attention,
)
kv_write = torch.ops.vidk_mxfp8.kv_write
attention = torch.ops.vidk_mxfp8.attention
