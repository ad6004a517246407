"""Small samples of every op, from the registry: as a model calls it, dense, empty, with options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vidk.ops.registry import OPS, Args, BlockShape

from .helpers import ints, seeded


def block(frames: int = 2, **sizes: int) -> BlockShape:
    """Return a shape with 2 x 3 tokens a frame."""
    text = {"text_len": 9, "text_tokens": 4}
    return BlockShape(frames, 2, 3, 2, 12, **({"cache_frames": 4, "kv_frames": 3} | text | sizes))


def fused(op: str, dtype: torch.dtype = torch.float32) -> Args:
    """Return the registry's sample: strided views of one projection."""
    return OPS[op].sample(block(batch=2), dtype, "cpu", seeded(op, dtype))


def dense(op: str, dtype: torch.dtype = torch.float32) -> Args:
    """Return the same with every tensor contiguous."""
    return with_tensors(fused(op, dtype), Tensor.contiguous)


def empty(op: str, dtype: torch.dtype = torch.float32) -> Args:
    """Return a call with a block of no tokens, and a cache of which none is valid."""
    shape = block(frames=0, kv_frames=0, text_tokens=0, batch=2)
    return OPS[op].sample(shape, dtype, "cpu", seeded(op, dtype))


def stacked(op: str, dtype: torch.dtype = torch.float32) -> Args:
    """Return a call on caches that are one layer of a stack."""
    args, kwargs = fused(op, dtype)
    make = seeded(op)

    def cache(x: Any) -> bool:
        return isinstance(x, Tensor) and x.dim() == 4 and x.shape[:3] == (2, 24, 2)

    shape = next((x.shape for x in args if cache(x)), ())
    views = iter(torch.empty(3, 2, *shape, dtype=dtype).normal_(generator=make)[1])
    return tuple(next(views) if cache(x) else x for x in args), kwargs


def options(op: str, dtype: torch.dtype = torch.float32) -> Args:
    """Return a call with every optional argument given."""
    args, kwargs = fused(op, dtype)
    return args, kwargs | {
        "rope_3d": {"token_offset": 1, "slice_tokens": 4},
        "qk_norm_rope_pack": {"token_offset": 1, "slice_tokens": 4},
        "unpack_kv_write": {"slice_tokens": 3},
        "all_gather_rope": {"slice_tokens": 4},
        "qk_norm_rope_nvfp4_kv_write": {
            "perm": torch.arange(128, dtype=torch.int32).flip(0).repeat(2, 1)
        },
        "attention": {"scale": 0.3},
        "fp4_attention": {"scale": 0.3},
        "cross_attention": {"pad": "mask", "scale": 0.3},
        "nvfp4_quantize": {"recipe": "search"},
    }.get(op, {})


def one_key(op: str, dtype: torch.dtype = torch.float32) -> Args:
    """Return a call on the shortest prefix that is not empty."""
    args, kwargs = fused(op, dtype)
    if op in ("attention", "cross_attention"):
        args = (*args[:-1], ints(*[1] * len(args[-1])))
    if op == "fp4_attention":
        args = (*args[:-2], ints(1), args[-1])
    return args, kwargs


KINDS: dict[str, Callable[..., Args]] = {
    f.__name__: f for f in (fused, dense, empty, stacked, options, one_key)
}


def with_tensors(args: Args, change: Callable[[Tensor], Any]) -> Args:
    """Apply a function to every tensor of a call."""

    def one(x: Any) -> Any:
        return change(x) if isinstance(x, Tensor) else x

    return tuple(one(x) for x in args[0]), {name: one(x) for name, x in args[1].items()}


def overload(op: str) -> Any:
    return getattr(torch.ops.vidk, op).default


def outputs(result: Any) -> list[Tensor]:
    """Return an op's results as a list."""
    if result is None:
        return []
    return [result] if isinstance(result, Tensor) else list(result)
