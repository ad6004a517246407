"""Kernels for causal (autoregressive) video diffusion on PyTorch.

`torch.ops.vidk.*` and the functions below are the kernels; `vidk.models`, `vidk.cache` and
`vidk.rollout` are a causal Wan model that runs on them.
"""

from __future__ import annotations

from vidk import _native
from vidk._native import build_info
from vidk._version import __version__
from vidk.ops import all_gather as _all_gather
from vidk.ops._library import LIBRARY
from vidk.ops.all_gather import all_gather_rope
from vidk.ops.attention import attention, cross_attention
from vidk.ops.exchange import qk_norm_rope_pack, unpack_kv_write
from vidk.ops.fp4_attention import fp4_attention
from vidk.ops.fp4_kv import qk_norm_rope_nvfp4_kv_write
from vidk.ops.fp4_quantize import fp4_quantize
from vidk.ops.kv_cache import kv_cache_write
from vidk.ops.norm_rope import qk_norm_rope_kv_write
from vidk.ops.nvfp4 import nvfp4_quantize
from vidk.ops.registry import OPS
from vidk.ops.rope import rope_3d

_native.load()
_all_gather.register()
_native.explain_missing_kernels(LIBRARY, OPS)

__all__ = [
    "__version__",
    "all_gather_rope",
    "attention",
    "build_info",
    "cross_attention",
    "fp4_attention",
    "fp4_quantize",
    "kv_cache_write",
    "nvfp4_quantize",
    "qk_norm_rope_kv_write",
    "qk_norm_rope_nvfp4_kv_write",
    "qk_norm_rope_pack",
    "rope_3d",
    "unpack_kv_write",
]
