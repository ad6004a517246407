"""Write `docs/ops.md` from the op registry: `python docs/generate_ops.py [--check]`."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import torch

from vidk.ops.registry import OPS, BlockShape, Op

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "ops.md"
INTRO = """# The ops

Generated from the op registry by `docs/generate_ops.py`; the tests fail when this page is stale.

Activations are `[B, S, H, D]`, caches `[B, S_cap, H, D]`: batch, tokens, heads, head dim. Any
strides are taken as long as D is contiguous; views of a fused QKV projection are the normal case.
Tokens are ordered by frame, row and column. All arithmetic between load and store is float32, and
each result is rounded once, unless an op says otherwise. Ops that change a tensor
return nothing for it and declare it in their schema; nothing else is ever written.

Every op is called as `vidk.<op>` or as `torch.ops.vidk.<op>`. Wrong arguments raise `RuntimeError`
with one sentence, `vidk::op: argument: got X, expected Y (hint)`, in eager mode and while tracing,
before anything is written. An index that lives on a GPU cannot be read without waiting for the
GPU: there a kernel skips what is out of range and never touches memory outside its tensors.

The ops are for inference and have no backward. They are stateless: position, slot and length are
tensors (`frame_pos`, `frame_slot`, `kv_len`), which keeps a whole rollout in one compiled graph.

Floors are for one block of 3 latent frames at 480 x 832 of the 1.3B model (1 x 4680 x 12 x 128,
bfloat16) and a cache of 6 frames.
"""


def section(op: Op) -> str:
    """Return the page's section of one op."""
    shape = BlockShape(frames=3, height=30, width=52, heads=12, head_dim=128)
    cost = op.cost(shape, torch.bfloat16)
    floor = f"{op.floor}: {cost.bytes / 1e6:.1f} MB"
    if cost.flops:
        floor += f", {cost.flops / 1e9:.2f} GFLOP"
    mutates = ", ".join(f"`{name}`" for name in op.mutates) or "nothing"
    kernels = ", ".join(device for device in ("CPU", "CUDA") if _has_kernel(op, device))
    doc = inspect.cleandoc(op.function.__doc__ or "")
    return f"""## {op.name}

```
vidk::{op.schema}
```

Kernels: {kernels}. Mutates {mutates}. Floor: {floor}.

{_markdown(doc)}
"""


def _has_kernel(op: Op, device: str) -> bool:
    source = ROOT / "csrc" / op.family / f"{op.family}_{device.lower()}.cpp"
    return source.exists() and f'"{op.name}"' in source.read_text()


def _markdown(doc: str) -> str:
    """Turn a numpy-style docstring into headings and lists."""
    lines = doc.splitlines()
    out: list[str] = []
    for i, line in enumerate(lines):
        if line and set(line) == {"-"}:
            continue
        if i + 1 < len(lines) and lines[i + 1] and set(lines[i + 1]) == {"-"}:
            out += [f"**{line}**", ""]
        elif " : " in line and not line.startswith(" "):
            names, text = line.split(" : ", 1)
            out.append(f"- `{names}`: {text}")
        elif line.startswith("    "):
            out.append("  " + line.strip())
        else:
            out.append(line)
    return "\n".join(out)


def page() -> str:
    """Return the whole page."""
    return "\n".join([INTRO, *map(section, OPS.values())])


def main() -> int:
    """Write the page, or with --check compare it."""
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page())
        return 0
    if PAGE.exists() and PAGE.read_text() == page():
        return 0
    print("docs/ops.md is stale: run python docs/generate_ops.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
