"""The ops in plain PyTorch: the oracle of the tests and the baseline of the benchmarks.

Each family has a clear form (`rope_3d`, ...), which computes in float64 where the op rounds once,
and the op sequence of the public causal Wan code (`*_public`), which the benchmarks time. Nothing
here imports the rest of vidk.
"""

from vidk.reference.all_gather import all_gather_rope, all_gather_rope_public
from vidk.reference.attention import (
    attention,
    attention_public,
    cross_attention,
    cross_attention_public,
)
from vidk.reference.exchange import (
    qk_norm_rope_pack,
    qk_norm_rope_pack_public,
    unpack_kv_write,
    unpack_kv_write_public,
)
from vidk.reference.fp4_attention import fp4_attention, fp4_attention_public
from vidk.reference.fp4_kv import (
    qk_norm_rope_nvfp4_kv_write,
    qk_norm_rope_nvfp4_kv_write_public,
)
from vidk.reference.kv_cache import kv_cache_write, kv_cache_write_public
from vidk.reference.norm_rope import qk_norm_rope_kv_write, qk_norm_rope_kv_write_public
from vidk.reference.nvfp4 import nvfp4_quantize, nvfp4_quantize_public
from vidk.reference.rope import rope_3d, rope_3d_public

__all__ = [
    "all_gather_rope",
    "all_gather_rope_public",
    "attention",
    "attention_public",
    "cross_attention",
    "cross_attention_public",
    "fp4_attention",
    "fp4_attention_public",
    "kv_cache_write",
    "kv_cache_write_public",
    "nvfp4_quantize",
    "nvfp4_quantize_public",
    "qk_norm_rope_kv_write",
    "qk_norm_rope_kv_write_public",
    "qk_norm_rope_nvfp4_kv_write",
    "qk_norm_rope_nvfp4_kv_write_public",
    "qk_norm_rope_pack",
    "qk_norm_rope_pack_public",
    "rope_3d",
    "rope_3d_public",
    "unpack_kv_write",
    "unpack_kv_write_public",
]
