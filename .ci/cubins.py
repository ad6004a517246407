#!/usr/bin/env python3
"""Audits the machine code of every kernel in a wheel, for every architecture, without a GPU.

    .ci/cubins.py WHEEL_OR_OBJECT [--budget .ci/cubin_budget.json] [--update]

Needs `cuobjdump` and `nvdisasm` of the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm.
What it proves: no local memory and no spills; registers and static shared memory within the
committed budget, which also names every kernel there must be; 16-byte global loads and stores in
the memory-bound kernels; the tensor-core and copy instructions that the design promises.
`--update` writes the budget anew from what it finds, and still checks everything else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

BUDGET = Path(__file__).with_name("cubin_budget.json")

_ARCH = re.compile(r"^arch = (sm_\w+)")
_USAGE_OF = re.compile(r"^ Function (\S+):")
_USAGE = re.compile(r"(REG|STACK|SHARED|LOCAL):(\d+)")
_CODE_OF = re.compile(r"^\s+Function : (\S+)")
_CODE = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")

Key = tuple[str, str]  # kernel, architecture
Budget = dict[str, dict[str, list[int]]]  # kernel -> architecture -> [registers, shared bytes]


@dataclass
class Kernel:
    """What the machine code of one kernel for one architecture uses."""

    copies: int = 0
    usage: dict[str, int] = field(default_factory=dict)
    opcodes: Counter[str] = field(default_factory=Counter)

    def count(self, pattern: str) -> int:
        """Return how many instructions match; modifiers follow the name, separated by dots."""
        return sum(n for opcode, n in self.opcodes.items() if re.fullmatch(pattern, opcode))


@dataclass(frozen=True)
class Promise:
    """Kernels for some architectures hold, or do not hold, an instruction."""

    kernels: str
    archs: str
    opcode: str
    present: bool
    why: str


# The variants of a memory-bound kernel for tensors whose rows are aligned to 16 bytes.
_WIDE = r"vidk_(kv_cache_write|rope_3d|norm_rope)\w*(?<!_[842]B)"
# Codes of 4 bits leave by narrower stores than the elements came by loads.
_WIDE_LOADS = rf"({_WIDE}|vidk_nvfp4_quantize\w*_16B)"
PROMISES = (
    Promise(r"\w+", r"\w+", r"(STL|LDL)(\.\S+)?", False, "registers spilled to local memory"),
    Promise(_WIDE_LOADS, r"\w+", r"LDG\.E\S*\.128\S*", True, "16-byte loads"),
    Promise(_WIDE, r"\w+", r"STG\.E\S*\.128\S*", True, "16-byte stores"),
    Promise(_WIDE, r"\w+", r"STG\.(?!\S*\.128)\S+", False, "stores narrower than 16 bytes"),
    Promise(r"vidk_attention_sm90_\w+", "sm_90a", r"HGMMA\.\S+", True, "WGMMA tensor cores"),
    Promise(r"vidk_attention_sm90_\w+", "sm_90a", r"UTMALDG\.\S+", True, "TMA loads"),
    Promise(r"vidk_attention_sm80_\w+", r"\w+", r"HMMA\.\S+", True, "tensor cores"),
    Promise(r"vidk_attention_sm80_\w+", r"\w+", r"LDGSTS\.\S*128\S*", True, "16-byte cp.async"),
    Promise(r"vidk_attention_sm80_\w+", r"\w+", r"LDSM\.\S+", True, "ldmatrix"),
    Promise(
        r"vidk_fp4_attention_sm120_nvfp4_\w+", "sm_120f", r"OMMA\.SF\..*", True, "FP4 products"
    ),
    Promise(r"vidk_fp4_attention_sm120_\w+_e4m3", "sm_120f", r"QMMA\.SF\..*", True, "FP8 products"),
    Promise(r"vidk_fp4_attention_sm120_\w+", "sm_120f", r"LDGSTS\.\S*128\S*", True, "cp.async"),
    Promise(
        r"vidk_fp4_attention_sm100_nvfp4_\w+",
        r"sm_10[03]a",
        r"UTCOMMA\.(4X|BLOCK16).*",
        True,
        "FP4 products",
    ),
    Promise(
        r"vidk_fp4_attention_sm100_(mxfp8_\w+|\w+_e4m3)",
        r"sm_10[03]a",
        r"UTCQMMA.*",
        True,
        "FP8 products",
    ),
    Promise(r"vidk_fp4_attention_sm100_\w+", r"sm_10[03]a", r"UTMALDG\.5D", True, "TMA loads"),
    Promise(r"vidk_fp4_attention_sm90_\w+", "sm_90a", r"HGMMA\.\S+", True, "WGMMA tensor cores"),
    Promise(r"vidk_fp4_attention_portable_\w+", r"\w+", r"HMMA\.\S+", True, "tensor cores"),
    Promise(r"vidk_fp4_attention_portable_\w+", r"\w+", r"LDSM\.\S+", True, "ldmatrix"),
)


def parse_usage(lines: Iterable[str], kernels: dict[Key, Kernel]) -> None:
    """Read `cuobjdump --dump-resource-usage`."""
    arch = name = ""
    for line in lines:
        if match := _ARCH.match(line):
            arch = match[1]
        elif match := _USAGE_OF.match(line):
            name = match[1]
        elif name and (found := _USAGE.findall(line)):
            kernel = kernels.setdefault((name, arch), Kernel())
            kernel.usage = {what: int(n) for what, n in found}
            kernel.copies += 1
            name = ""


def parse_code(lines: Iterable[str], kernels: dict[Key, Kernel]) -> None:
    """Read `cuobjdump --dump-sass`."""
    arch = name = ""
    for line in lines:
        if match := _CODE.match(line):
            kernels[name, arch].opcodes[match[1]] += 1
        elif match := _ARCH.match(line):
            arch = match[1]
        elif match := _CODE_OF.match(line):
            name = match[1]
            kernels.setdefault((name, arch), Kernel())


def complaints(kernels: dict[Key, Kernel], budget: Budget) -> Iterator[str]:
    """Yield what is wrong, one sentence each."""
    if not kernels:
        yield "no kernel was found"
    for (name, arch), kernel in sorted(kernels.items()):
        where = f"{name} for {arch}"
        if not kernel.usage or not kernel.opcodes:
            yield f"{where}: its code or its resource usage could not be read"
            continue
        if kernel.copies != 1:
            yield f"{where}: {kernel.copies} kernels of this name, expected one"
        for what in ("STACK", "LOCAL"):
            if kernel.usage[what]:
                yield f"{where}: {kernel.usage[what]} bytes of local memory ({what}), expected none"
        limits = budget.get(name, {}).get(arch)
        if limits is None:
            yield f"{where}: not in the budget; run .ci/cubins.py --update and commit it"
            continue
        for what, limit in zip(("REG", "SHARED"), limits, strict=True):
            got = kernel.usage[what]
            if got > limit:
                yield f"{where}: {what} {got}, more than the {limit} of the budget"
    for name, archs in sorted(budget.items()):
        for arch in sorted(archs):
            if (name, arch) not in kernels:
                yield f"{name} for {arch}: in the budget but not in the object"
    for promise in PROMISES:
        yield from _broken(promise, kernels)


def _broken(promise: Promise, kernels: dict[Key, Kernel]) -> Iterator[str]:
    meant = {
        key: kernel
        for key, kernel in sorted(kernels.items())
        if re.fullmatch(promise.kernels, key[0]) and re.fullmatch(promise.archs, key[1])
    }
    if not meant:
        yield f"no kernel {promise.kernels} for {promise.archs}, to hold {promise.why}"
    for (name, arch), kernel in meant.items():
        count = kernel.count(promise.opcode)
        if promise.present and not count:
            yield f"{name} for {arch}: no {promise.why} ({promise.opcode})"
        elif not promise.present and count:
            yield f"{name} for {arch}: {count} instructions: {promise.why}"


def budget_of(kernels: dict[Key, Kernel]) -> Budget:
    """Return the budget that these kernels just meet."""
    budget: Budget = {}
    for (name, arch), kernel in sorted(kernels.items()):
        budget.setdefault(name, {})[arch] = [kernel.usage["REG"], kernel.usage["SHARED"]]
    return budget


def write_budget(budget: Budget, path: Path) -> None:
    """Write one line a kernel, so that a change shows as one."""
    lines = [f" {json.dumps(name)}: {json.dumps(archs)}" for name, archs in budget.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _tool(name: str) -> str:
    # The packages put the programs below site-packages and no link to them on the path.
    folder = Path(sysconfig.get_path("purelib"), "nvidia")
    packaged = sorted(str(path) for path in folder.glob(f"*/bin/{name}"))
    path = next(iter(packaged), None) or shutil.which(name)
    if path is None:
        raise SystemExit(
            f"cubins: {name} is missing: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
        )
    return path


def _dump(option: str, target: Path) -> Iterator[str]:
    # cuobjdump finds nvdisasm on the path.
    path = os.pathsep.join([str(Path(_tool("nvdisasm")).parent), os.environ["PATH"]])
    command = [_tool("cuobjdump"), option, str(target)]
    environment = os.environ | {"PATH": path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode:
        raise SystemExit(f"cubins: {' '.join(command)}: exit code {process.returncode}")


def read(target: Path) -> dict[Key, Kernel]:
    """Return every kernel of a shared object that embeds device code."""
    kernels: dict[Key, Kernel] = {}
    parse_usage(_dump("--dump-resource-usage", target), kernels)
    parse_code(_dump("--dump-sass", target), kernels)
    return kernels


@contextlib.contextmanager
def _object_in(target: Path) -> Iterator[Path | None]:
    """Yield the object to read; nothing for a wheel that was built, and says so, without nvcc."""
    if target.suffix != ".whl":
        yield target
        return
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(target) as wheel:
        if "vidk/_cuda.so" in wheel.namelist():
            yield Path(wheel.extract("vidk/_cuda.so", folder))
        elif reason := json.loads(wheel.read("vidk/_build.json"))["cuda_reason"]:
            print(f"cubins: {target.name} holds no CUDA object: {reason}")
            yield None
        else:
            raise SystemExit(f"cubins: {target.name} holds no vidk/_cuda.so and does not say why")


def main() -> int:
    """Audit and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", type=Path, help="a wheel, or a _cuda.so")
    parser.add_argument("--budget", type=Path, default=BUDGET)
    parser.add_argument("--update", action="store_true", help="write the budget from what is found")
    args = parser.parse_args()
    with _object_in(args.target) as path:
        if path is None:
            return 0
        kernels = read(path)
    if args.update:
        write_budget(budget_of(kernels), args.budget)
    found = list(complaints(kernels, json.loads(args.budget.read_text())))
    for text in found:
        print(f"cubins: {text}", file=sys.stderr)
    archs = sorted({arch for _, arch in kernels})
    names = {name for name, _ in kernels}
    print(f"cubins: {len(names)} kernels, {len(kernels)} images for {' '.join(archs)}: ", end="")
    print(f"{len(found)} complaints" if found else "passed")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
