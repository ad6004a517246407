"""Count what FP4 attention does per tile and what bounds it: `python bench/fp4_roofline.py`.

Executes the kernels of each Blackwell architecture in the simulator of `tests/ptxsim` with two
lengths of the cache; the difference, over the tiles that one has more than the other, is what a
tile takes, in multiprocessor clocks at published rates. The numbers are the same wherever this
runs. `--write` renews the tables of docs/fp4_roofline.md.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.ptxsim import ops  # noqa: E402
from tests.ptxsim.fp4_problem import random_problem  # noqa: E402

PAGE = ROOT / "docs" / "fp4_roofline.md"
BEGIN, END = "<!-- begin: bench/fp4_roofline.py -->", "<!-- end -->"
BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn
TILE, QUERIES = 128, 256
TILE_FLOPS = 2 * TILE**3  # of one product of 128 x 128 x 128


@dataclass(frozen=True)
class Gpu:
    """Rates of one multiprocessor, per clock."""

    name: str
    arch: str
    fp4: float  # FLOPs of the products by type of the operands, block-scaled where they are 4 bits
    fp8: float
    bf16: float
    exponentials: int


GPUS = (
    Gpu("B200", "sm_100a", 32768, 16384, 8192, 16),
    Gpu("B300", "sm_103a", 32768, 16384, 8192, 32),
    Gpu("RTX 5090", "sm_120a", 4096, 2048, 512, 16),
)
CASES = [("plain", BF16), ("default", BF16), ("default", E4M3), ("accurate", E4M3),
         ("accurate256", E4M3), ("mxfp8", E4M3)]  # fmt: skip
ISSUES = 4  # warp instructions
CACHE_BYTES = 64  # from the second-level cache


def counts(gpu: Gpu, recipe: str, values: torch.dtype, tiles: int) -> dict[str, float]:
    """Execute the kernel on 256 queries and some tiles of keys."""
    on = ops.Sim(gpu.arch, {"checks": False})
    random_problem(recipe, QUERIES, tiles * TILE, 1, values).run(tiles * TILE, on)
    (r,) = on.reports
    return {
        "flops": r["matrix_flops"],
        "exponentials": r["special"],
        # Moves make and split pairs of registers, which machine code has no instructions for; waits
        # are as long as they happen to be.
        "instructions": r["warp_instructions"]
        - sum(r["classes"][name] for name in ("move", "control", "barrier", "predicate")),
        "bytes": r["bulk_read_bytes"] + 32 * r["global_load"]["sectors"],
    }


def clocks(gpu: Gpu, recipe: str, values: torch.dtype) -> dict[str, float]:
    """Return what a tile of 128 queries and 128 keys takes of each resource."""
    less, more = (counts(gpu, recipe, values, tiles) for tiles in (4, 8))
    tile = {name: (more[name] - less[name]) / (4 * QUERIES / TILE) for name in less}
    return {
        "QK": (tile["flops"] - TILE_FLOPS) / (gpu.fp8 if recipe == "mxfp8" else gpu.fp4),
        "PV": TILE_FLOPS / (gpu.fp8 if values == E4M3 else gpu.bf16),
        "exp": tile["exponentials"] / gpu.exponentials,
        "issue": tile["instructions"] / ISSUES,
        "bytes": tile["bytes"] / CACHE_BYTES,
    }


def table(gpu: Gpu) -> str:
    """Return the rows of one GPU as Markdown."""
    lines = [
        f"**{gpu.name}** ({gpu.arch})",
        "",
        "| recipe | V | QK | PV | exp | issue | L2 | bound |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for recipe, values in CASES:
        c = clocks(gpu, recipe, values)
        work = {"tensor cores": c["QK"] + c["PV"], "exp": c["exp"], "issue": c["issue"]}
        bound = max(work, key=lambda name: work[name])
        cells = " | ".join(f"{c[name]:.0f}" for name in ("QK", "PV", "exp", "issue", "bytes"))
        v = "e4m3" if values == E4M3 else "bf16"
        lines.append(f"| {recipe} | {v} | {cells} | {work[bound]:.0f}, {bound} |")
    return "\n".join(lines)


def main() -> int:
    """Print the tables, or write or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="renew docs/fp4_roofline.md")
    parser.add_argument("--check", action="store_true", help="fail if they are stale")
    options = parser.parse_args()
    tables = "\n\n".join(table(gpu) for gpu in GPUS)
    if not (options.write or options.check):
        print(tables)
        return 0
    old = PAGE.read_text()
    head, rest = old.split(BEGIN)
    new = f"{head}{BEGIN}\n\n{tables}\n\n{END}{rest.split(END)[1]}"
    if options.write:
        PAGE.write_text(new)
    elif new != old:
        print("docs/fp4_roofline.md is stale: run python bench/fp4_roofline.py --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
