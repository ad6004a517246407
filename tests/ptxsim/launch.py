"""Launches the wheel's kernels in the simulator, by the plans that launch them on a GPU."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from . import Output, compile_cuda, encode_map, memory_of, run, source
from .build import ROOT, load

plans = load("_plans")

# Targets of the wheel (CMakeLists.txt) and the devices that stand for them.
SM_COUNT = {
    "sm_80": 108,
    "sm_89": 128,
    "sm_90a": 132,
    "sm_100a": 148,
    "sm_103a": 160,
    "sm_120a": 170,
}
ARCHS = tuple(SM_COUNT)


def device_info(arch: str) -> Any:
    """Return what a plan may know of a device of this architecture."""
    return plans.DeviceInfo(int(re.sub(r"\D", "", arch)), SM_COUNT[arch])


def view(x: Tensor) -> tuple[int, list[int], list[int], int]:
    """Describe a `[B, S, H, D]` tensor to a plan."""
    return x.data_ptr(), list(x.shape), [s * x.itemsize for s in x.stride()], x.itemsize


@functools.cache
def entries() -> dict[str, list[Path]]:
    """Return every kernel of the wheel with the files that hold its code."""
    found: dict[str, list[Path]] = {}
    for path in sorted(ROOT.glob("csrc/*/*.cu")):
        for name in re.findall(r"^VIDK_KERNEL\((\w+),", path.read_text(), re.M):
            found.setdefault(name, []).append(path)
    for path in sorted(ROOT.glob("kernels/ptx/*.ptx")):
        for name in re.findall(r"\.entry (\w+)", path.read_text()):
            found.setdefault(name, []).append(path)
    return found


@functools.cache
def target_of(path: Path, arch: str) -> str | None:
    """Return what a CUDA source is compiled for, to run on `arch`; None if it is left out.

    As in cmake/device_code.cmake: a source may name targets, exact ones (100a) or families (120f).
    """
    line = re.search(r"^// VIDK_ARCHS (.*)$", path.read_text(), re.M)
    if line is None:
        return arch
    own = int(re.sub(r"\D", "", arch))
    for target in re.findall(r"\d+[af]", line[1]):
        first = int(target[:-1])
        if arch == f"sm_{target}":
            return arch
        if target.endswith("f") and first <= own < first // 10 * 10 + 10:
            return f"sm_{target}"
    return None


def has_code(kernel: str, arch: str) -> bool:
    """Whether the wheel's CUDA C++ has code of a kernel for an architecture; PTX always may."""
    return any(p.suffix == ".ptx" or target_of(p, arch) for p in entries()[kernel])


@functools.cache
def ptx_of(kernel: str, arch: str) -> str:
    """Return the PTX of a kernel as the wheel's build makes it for an architecture."""
    (path,) = entries()[kernel]
    if path.suffix == ".ptx":
        return path.read_text()
    target = target_of(path, arch)
    assert target is not None, f"{kernel} has no code for {arch}"
    return compile_cuda(str(path), target, f"-I{ROOT / 'csrc'}")


def execute(
    plan: Mapping[str, Any],
    arch: str,
    tensors: Mapping[str, Any],
    mutated: Collection[str] = (),
    **options: Any,
) -> dict[str, Any]:
    """Run one planned launch on CPU tensors.

    `tensors` names all that the kernel may touch; it may write to those of `mutated` and to
    `Output`s.
    """
    args = bytearray(plan["args"])
    for at, fields in zip(plan["map_at"], plan["maps"], strict=True):
        args[at : at + 128] = encode_map(**fields)
    ptx = ptx_of(plan["kernel"], arch)
    # The plan packs what the kernel takes: the same offsets and sizes, so the same number of bytes.
    params = source(ptx).params(plan["kernel"])
    assert len(args) == max(at + size for at, size in params)
    memory: dict[int, Any] = {}
    for name, x in tensors.items():
        _, begin, size, _, defined = memory_of(name, x)
        # Views of one storage are one entry; it may be written to if one of them may.
        shared = begin in memory and memory[begin][3]
        writable = shared or name in mutated or isinstance(x, Output)
        memory[begin] = (name, begin, size, writable, defined)
    return run(
        ptx, plan["kernel"], plan["grid"], plan["block"], bytes(args), memory=list(memory.values()),
        shared_bytes=plan["shared_bytes"], **options,
    )  # fmt: skip
