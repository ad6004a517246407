"""What runs under compute-sanitizer: `python -m tests.gpu.sanitized`. Hostile calls of every op."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tests.ops.samples import KINDS, overload
from vidk.ops.registry import OPS, Args, BlockShape

from .helpers import gpu_call, sample

ODD = BlockShape(3, 3, 5, heads=3, head_dim=128, cache_frames=6, kv_frames=5, text_len=70)
INDICES = {
    "frame_pos": 10**6, "frame_slot": 6, "kv_len": 10**6, "context_lens": 10**6,
}  # fmt: skip


def calls(op: str) -> list[Args]:
    """Return calls of odd sizes, all dtypes and widths of access, and indices out of range."""
    shapes = [ODD, replace(ODD, batch=2), replace(ODD, head_dim=66), replace(ODD, head_dim=64)]
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    made = [sample(op, dtype, shape) for shape in shapes for dtype in dtypes]
    made += [kind(op, torch.bfloat16) for kind in KINDS.values()]
    wrong, kwargs = sample(op, torch.bfloat16, ODD)
    names = [a.name for a in overload(op)._schema.arguments]
    for name, x in zip(names, wrong, strict=False):
        if name in INDICES:
            x[0] = INDICES[name]
    return [*made, (wrong, kwargs)]


def main() -> None:
    """Run them all, each on memory of its own."""
    count = 0
    for op in OPS:
        for call in calls(op):
            args, kwargs = gpu_call(call)
            out = overload(op)(*args, **kwargs)
            torch.cuda.synchronize()
            assert out is None or isinstance(out, (Tensor, tuple))
            count += 1
    print(f"sanitized: {count} calls")


if __name__ == "__main__":
    main()
