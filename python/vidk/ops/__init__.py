"""The ops, one file a family: schema, fake and public function. `vidk.rope_3d` and so on."""

from vidk.ops import attention, exchange, kv_cache, norm_rope, nvfp4, rope

__all__ = ["attention", "exchange", "kv_cache", "norm_rope", "nvfp4", "rope"]
