"""What a run depends on and what it used: compiler, kernels, memory, matmul rate."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

from vidk import _native
from vidk._native import build_info
from vidk.ops.registry import OPS

# How each op is done on the CPU; `{isa}` is the instruction set in use.
_CPU_KERNELS = {
    "rope_3d": "vidk C++, {isa}",
    "kv_cache_write": "vidk C++, memcpy",
    "qk_norm_rope_kv_write": "vidk C++, {isa}",
    "qk_norm_rope_pack": "vidk C++, {isa}",
    "unpack_kv_write": "vidk C++, memcpy",
    "all_gather_rope": "vidk C++, {isa}, and the group's all-gather",
    "attention": "ATen flash attention on the valid prefix",
    "cross_attention": "ATen flash attention, padding folded",
    "nvfp4_quantize": "vidk C++, {isa}",
    "qk_norm_rope_nvfp4_kv_write": "vidk C++, {isa}",
    "fp4_attention": "vidk C++, {isa}",
}
_ENOUGH_S = 0.05


def kernel(op: str, device: str) -> str | None:
    """Return what serves an op on `cpu` or `cuda`, or None if this build has nothing for it."""
    key = device.upper()
    if (op, key) in _native.missing:
        return None
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"vidk::{op}", key):
        return None
    if device == "cpu":
        return _CPU_KERNELS[op].format(isa=build_info()["cpu_isa"])
    return "vidk CUDA"


def kernels(device: str) -> dict[str, str | None]:
    """Return `kernel` for every op."""
    return {op: kernel(op, device) for op in OPS}


def cxx_compiler() -> tuple[str | None, str]:
    """Return the C++ compiler that torch.compile would use on the CPU, and its version.

    Without one that can work it is None and the reason.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        path = get_cpp_compiler()
    except InvalidCxxCompiler:
        return None, "no C++ compiler was found (install g++ or clang++, or set CXX)"
    try:
        shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return None, f"the C++ compiler {path} cannot be run: {error}"
    # What torch.compile generates is a Python extension.
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return None, "Python.h is missing (install the development files of this Python)"
    return shutil.which(path) or path, (shown.stdout.splitlines() or ["unknown version"])[0]


def compile_obstacle(device: torch.device) -> str | None:
    """Return why torch.compile cannot work for a device, or None."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton is missing or does not know this GPU"
    found, text = cxx_compiler()
    return text if found is None else None


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that a process can still have, or None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        # In a container the control group may allow less than the machine has.
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return free


def peak_memory() -> int:
    """Return the most memory this process has had in RAM, in bytes."""
    try:
        # ru_maxrss of a child begins with the size of its parent at the fork; this does not.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Measure the FLOP/s of a square matrix product, in at most about a second."""
    from vidk.bench.machine import MATMUL_SIZES, matmul_call
    from vidk.bench.timer import Clock

    clock = Clock(str(device))
    n, largest = MATMUL_SIZES[device.type]
    while True:
        call = matmul_call(n, dtype, str(device))
        call()
        seconds = clock(call)
        if seconds >= _ENOUGH_S or n >= largest:
            break
        n *= 2
    return 2 * n**3 / min(seconds, *(clock(call) for _ in range(3)))


def bytes_text(count: float) -> str:
    """Return a number of bytes as a person reads it."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
