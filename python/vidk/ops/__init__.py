"""The ops, one file a family: schema, fake and public function. `vidk.rope_3d` and so on."""

from vidk.ops import attention, exchange, fp4_attention, fp4_kv, kv_cache, norm_rope, nvfp4, rope

__all__ = [
    "attention",
    "exchange",
    "fp4_attention",
    "fp4_kv",
    "kv_cache",
    "norm_rope",
    "nvfp4",
    "rope",
]
