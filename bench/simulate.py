"""Count what the GPU kernels do and predict their floors: `python bench/simulate.py [--write]`.

Executes each CUDA kernel of the wheel as PTX in the simulator of `tests/ptxsim`, for one block of
3 latent frames at 480 x 832 in bfloat16, and prints a table per architecture: bytes, instructions,
tensor-core FLOPs, and the least time each of these takes on a machine of that architecture. The
numbers are the same wherever this runs. `--write` renews docs/simulated.md, `--check` compares it.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.ptxsim import ops  # noqa: E402

from vidk.bench.cases import SHAPES  # noqa: E402
from vidk.ops.registry import OPS, Args, BlockShape, Cost  # noqa: E402

PAGE = ROOT / "docs" / "simulated.md"
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Gpu:
    """Peak rates as NVIDIA publishes them; `clock` in GHz is the highest of a multiprocessor."""

    name: str
    arch: str
    sms: int
    clock: float
    bandwidth: float  # GB/s
    tensor: float  # TFLOP/s, dense, 16-bit operands, float32 accumulation
    fp4: float | None = None  # the same of block-scaled FP4, where it exists


GPUS = (
    Gpu("A100 80 GB SXM", "sm_80", 108, 1.41, 2039, 312),
    Gpu("H200 SXM", "sm_90a", 132, 1.98, 4800, 989),
    Gpu("B200", "sm_100a", 148, 1.97, 8000, 2250, 9000),
    Gpu("RTX 5090", "sm_120a", 170, 2.41, 1792, 210, 1676),
)
SCHEDULERS = 4  # of a multiprocessor: each issues one warp instruction a clock
SPECIAL_LANES = 16  # of a multiprocessor: ex2, rcp, rsqrt a clock


QUERIES = 256  # of one head, that the attentions are executed on: two or four tiles


@dataclass(frozen=True)
class Case:
    """An op at a model's size, and what is executed of it: attentions are scaled up."""

    op: str
    model: str
    shape: BlockShape
    simulated: BlockShape

    @property
    def cost(self) -> Cost:
        """The op's floor at full size."""
        return OPS[self.op].cost(self.shape, DTYPE)

    @property
    def factor(self) -> float:
        """Full size over simulated size, in heads, queries and keys."""
        full, part = self.shape, self.simulated
        return full.heads * full.tokens * _keys(full) / (part.heads * part.tokens * _keys(part))


def _keys(shape: BlockShape) -> float:
    return shape.kv_frames * shape.frame_tokens


def cases() -> Iterator[Case]:
    """Yield every op at the sizes of the 1.3B and the 14B model."""
    for model in ("1.3b-480p", "14b-480p"):
        shape = SHAPES[model].block
        for name in OPS:
            part = shape
            if OPS[name].family in ("attention", "fp4_attention"):
                # The grid is queries x heads, all blocks alike: two tiles of queries of one head.
                # FP4 keys come in frames, all alike: one of them.
                keys = shape.frame_tokens if name == "fp4_attention" else int(_keys(shape))
                part = replace(
                    shape, heads=1, frames=1, height=1, width=QUERIES, kv_frames=keys / QUERIES
                )
            elif OPS[name].family == "fp4_kv":
                part = replace(shape, frames=1)
            yield Case(name, model, shape, part)


@dataclass(frozen=True)
class Row:
    """What one kernel does at full size, and what that takes at least, in microseconds."""

    case: Case
    gpu: Gpu
    kernel: str
    traffic: float  # sectors and bulk bytes over the op's minimum
    unique: int  # bytes of all sectors touched, each counted once
    efficiency: float  # bytes asked for over bytes of sectors
    conflicts: float  # shared-memory wavefronts over those without conflicts
    local: int  # bytes of local memory
    instructions: float  # of warps
    flops: float
    times: dict[str, float]

    @property
    def floor(self) -> tuple[float, str]:
        """The longest of the times, and what it is owed to."""
        what = max(self.times, key=lambda name: self.times[name])
        return self.times[what], what


def _arguments(op: str, part: BlockShape, frame_tokens: int) -> Args:
    """Return the arguments of what is executed; attentions get their keys and few queries."""
    generator = torch.Generator().manual_seed(0)

    def sample(shape: BlockShape) -> Args:
        return OPS[op].sample(shape, DTYPE, "cpu", generator)

    keys = int(_keys(part))
    if op == "attention":
        frames = keys // QUERIES + 1
        args, kwargs = sample(replace(part, cache_frames=frames, kv_frames=frames - 1))
        args[3].fill_(keys)
    elif op == "fp4_attention":
        one_frame = {"cache_frames": 1, "kv_frames": 1}
        args, kwargs = sample(replace(part, width=frame_tokens, **one_frame))
        q_codes, q_scales, *rest = args
        tiles = q_scales[:, :, : QUERIES // 128]
        args = (q_codes[:, :, :QUERIES].contiguous(), tiles.contiguous(), *rest)
        kwargs = kwargs | {"q": kwargs["q"][:, :QUERIES]}
    else:
        args, kwargs = sample(part)
    return args, kwargs


@functools.cache
def _executed(
    op: str, part: BlockShape, frame_tokens: int, arch: str
) -> tuple[str, dict[str, Any]]:
    """Execute an op and return its kernels and what was counted in all of them."""
    args, kwargs = _arguments(op, part, frame_tokens)
    on = ops.Sim(arch, {"checks": False})
    getattr(ops, op)(on, *args, **kwargs)
    names = [name.removeprefix("vidk_") for name in on.kernels]
    return ", ".join(names), functools.reduce(_added, on.reports)


def _added(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """Return the counts of two launches, one after the other."""
    added = {
        name: _added(x, two[name]) if isinstance(x, dict) else x + two[name]
        for name, x in one.items()
        if name in two and x is not None
    }
    return one | two | added


@functools.cache
def simulate(case: Case, gpu: Gpu) -> Row:
    """Execute a case's kernel for a GPU's architecture."""
    executed = _executed(case.op, case.simulated, case.shape.frame_tokens, gpu.arch)
    return _row(case, gpu, *executed)


def _tensor_time(case: Case, gpu: Gpu, flops: float) -> float:
    """Return microseconds at peak; the default recipe has half of its FLOPs in FP4."""
    fp4 = 0.5 if case.op == "fp4_attention" and gpu.fp4 else 0.0
    return flops * (fp4 / (gpu.fp4 or gpu.tensor) + (1 - fp4) / gpu.tensor) / 1e6


def _row(case: Case, gpu: Gpu, kernel: str, r: dict[str, Any]) -> Row:
    scale = case.factor
    part = OPS[case.op].cost(case.simulated, DTYPE)
    sectors = 32 * (r["global_load"]["sectors"] + r["global_store"]["sectors"])
    asked = r["global_load"]["bytes"] + r["global_store"]["bytes"]
    bulk = r["bulk_read_bytes"] + r["bulk_written_bytes"]
    shared = [r[k] for k in ("shared_load", "shared_store", "matrix_load", "matrix_store")]
    wavefronts, ideal = sum(s["wavefronts"] for s in shared), sum(s["ideal"] for s in shared)
    # Every input and output once: what several blocks read stays in the second-level cache.
    unique = case.cost.bytes if scale != 1 else r["unique_read_bytes"] + r["unique_written_bytes"]
    warps = scale * r["warp_instructions"]
    flops = scale * r["matrix_flops"]
    per_clock = 1e3 * gpu.sms * gpu.clock  # multiprocessor clocks in a microsecond
    times = {
        "memory": unique / gpu.bandwidth / 1e3,
        "tensor cores": _tensor_time(case, gpu, flops),
        "issue": warps / SCHEDULERS / per_clock,
        "special functions": scale * r["special"] / SPECIAL_LANES / per_clock,
        "shared memory": scale * wavefronts / per_clock,
    }
    return Row(
        case=case,
        gpu=gpu,
        kernel=kernel,
        traffic=(sectors + bulk) / part.bytes,
        unique=unique,
        efficiency=(asked + bulk) / (sectors + bulk),
        conflicts=wavefronts / ideal if ideal else 1.0,
        local=r["local_bytes"],
        instructions=warps,
        flops=flops,
        times=times,
    )


INTRO = """# What the GPU kernels do, counted

Written by `python bench/simulate.py --write`: the PTX of each kernel in the wheel is executed by
the simulator in `tests/ptxsim` at full size (one block of 3 latent frames at 480 x 832, bfloat16, a
cache of 6 frames) and everything is counted. Attention is run on one head and 256 queries, the one
on FP4 keys on one frame of them, the write of FP4 keys on one frame, and scaled: thread blocks, and
frames, are all alike.

- *traffic*: bytes that leave the first-level cache for global memory (32-byte sectors of every warp
  access, and bulk copies), over the op's minimum: each input read once, each output written once.
  The minimum of an attention counts keys and values once for the 256 queries simulated.
- *sectors*: share of the sectors' bytes that the kernel asked for.
- *banks*: shared-memory wavefronts over what they would be without bank conflicts.
- *instructions*: warp instructions of PTX, in millions.
- *TFLOP*: of the tensor cores.
- *floor*: the longest of five times, each at a peak rate, and its cause: memory (each byte once),
  tensor cores, issue (four warp instructions a clock and multiprocessor), special functions (16 a
  clock and multiprocessor), shared memory (one wavefront a clock; the operands that `wgmma` reads
  there are not counted).

A floor is a prediction, no measurement: caches, latency and launch come on top. Issue is an
estimate, because PTX is not machine code: ptxas fuses some instructions and adds others. Attention
reads keys and values once for every tile of queries; its memory time supposes that the second-level
cache serves all but the first. `fp4_attention` is of the default recipe; half of its FLOPs are at
the peak of block-scaled FP4 where a GPU has that. Where the `sm80` attention kernel runs on a newer
GPU, the tensor time is still at the peak of the newer instructions, which that kernel cannot reach.
"""


def table(rows: list[Row]) -> str:
    """Return the rows of one GPU as Markdown."""
    gpu = rows[0].gpu
    lines = [
        f"## {gpu.name} ({gpu.arch})",
        "",
        f"{gpu.sms} multiprocessors at {gpu.clock} GHz, {gpu.bandwidth} GB/s, "
        f"{gpu.tensor} TFLOP/s.",
        "",
        "| op | model | kernel | traffic | sectors | banks | instructions | TFLOP | floor |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        time, cause = row.floor
        lines.append(
            f"| `{row.case.op}` | {row.case.model.split('-')[0].upper()} | `{row.kernel}` | "
            f"{_digits(row.traffic)} | {100 * row.efficiency:.1f} % | {row.conflicts:.2f} | "
            f"{_digits(row.instructions / 1e6)} | {row.flops / 1e12:.2f} | "
            f"{_digits(time)} µs, {cause} |"
        )
    return "\n".join(lines) + "\n"


def _digits(x: float) -> str:
    """Return three significant digits, or more where the integer part has more."""
    return f"{x:.{max(0, 2 - math.floor(math.log10(x)))}f}" if x else "0"


def page() -> str:
    """Return the whole page."""
    tables = [table([simulate(case, gpu) for case in cases()]) for gpu in GPUS]
    return "\n".join([INTRO, *tables])


def main() -> int:
    """Print the tables, or write or compare the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="renew docs/simulated.md")
    parser.add_argument("--check", action="store_true", help="fail if docs/simulated.md is stale")
    options = parser.parse_args()
    text = page()
    if options.write:
        PAGE.write_text(text)
    elif options.check:
        if PAGE.read_text() != text:
            print("docs/simulated.md is stale: run python bench/simulate.py --write")
            return 1
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
