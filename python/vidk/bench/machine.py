"""The machine: what it is, and how fast it copies and multiplies."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vidk._native import build_info
from vidk.bench.timer import Clock, Stat, Thunk, summarize

COPY_BYTES = 2**28
MATMUL_SIZES = {"cpu": (256, 2048), "cuda": (4096, 8192)}
ENOUGH_S = 0.1


@dataclass(frozen=True)
class Machine:
    """Measured limits: copy bandwidth (bytes read + written per second) and FLOP/s by dtype."""

    copy: Stat
    matmul: dict[torch.dtype, Stat]

    @property
    def best_dtype(self) -> torch.dtype:
        """The dtype with the highest matmul rate; float32 where 16 bits are emulated."""
        return max(self.matmul, key=lambda dtype: self.matmul[dtype].median)

    @property
    def flops_per_s(self) -> float:
        """The highest matmul rate."""
        return self.matmul[self.best_dtype].median

    def bound(self, moved: int, flops: int) -> str:
        """Return what limits an amount of work: "copy" or "matmul"."""
        copies = moved / self.copy.median >= flops / self.flops_per_s
        return "copy" if copies else "matmul"

    def to_json(self) -> dict[str, Any]:
        """Return the limits as a JSON object."""
        return {
            "copy_bytes_per_s": self.copy.to_json(),
            "matmul_flops_per_s": {
                str(d).removeprefix("torch."): s.to_json() for d, s in self.matmul.items()
            },
        }


def copy_call(total: int, dtype: torch.dtype, device: str) -> Thunk:
    """Return a call that copies half of `total` bytes: reads and writes are `total` together."""
    source = torch.ones(max(total // 2 // dtype.itemsize, 1), dtype=dtype, device=device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def matmul_call(n: int, dtype: torch.dtype, device: str) -> Thunk:
    """Return a call that multiplies two `n x n` matrices as a linear layer does: `2 n^3` FLOPs."""
    a = torch.randn(n, n, device=device).to(dtype)
    b = torch.randn(n, n, device=device).to(dtype)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b.t(), out=out)


def matmul_size(device: str) -> int:
    """Return the side of the matrices that show the device's matmul rate."""
    return MATMUL_SIZES[torch.device(device).type][1]


def _matmul_rate(dtype: torch.dtype, device: str, clock: Clock, rounds: int) -> Stat:
    """Grow the matrices until a product takes long enough: emulated dtypes are very slow."""
    n, largest = MATMUL_SIZES[torch.device(device).type]
    while True:
        call = matmul_call(n, dtype, device)
        call()
        if clock(call) >= ENOUGH_S or n >= largest:
            return summarize([2 * n**3 / clock(call) for _ in range(rounds)])
        n *= 2


def measure(dtype: torch.dtype, device: str, clock: Clock, rounds: int = 7) -> Machine:
    """Measure the copy bandwidth, and the matmul rate in `dtype` and in float32."""
    copy = copy_call(COPY_BYTES, dtype, device)
    copy()
    dtypes = dict.fromkeys((dtype, torch.float32))
    return Machine(
        copy=summarize([COPY_BYTES / clock(copy) for _ in range(rounds)]),
        matmul={d: _matmul_rate(d, device, clock, rounds) for d in dtypes},
    )


def environment(device: str) -> dict[str, Any]:
    """Return what the figures depend on: software, hardware, threads, and the load at the time."""
    info: dict[str, Any] = {
        "vidk": build_info(),
        "torch_config": torch.__config__.show(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()),
    }
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        info["gpu"] = properties.name
        info["gpu_capability"] = f"{properties.major}.{properties.minor}"
        info["gpu_memory_bytes"] = properties.total_memory
        info["gpu_l2_bytes"] = properties.L2_cache_size
    return info


def cpu_model() -> str:
    """Return the CPU's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
