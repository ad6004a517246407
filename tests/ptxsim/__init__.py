"""A simulator of PTX: executes the GPU kernels of the wheel on the CPU, checks and counts.

`run` executes one launch of a kernel given as PTX text on NumPy arrays or torch tensors, in place.
A kernel that does something wrong raises `Fault`; its `kind` says what: "bounds", "alignment",
"uninitialised", "race", "async", "proxy", "divergence", "deadlock", "barrier", "cross-block",
"assert", "trap", "runaway", "launch", "unsupported".
"""

from __future__ import annotations

import functools
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .build import load

_native = load("_ptxsim")
SyntaxError = _native.SyntaxError
parse = _native.parse

SWIZZLES = {None: 0, 32: 1, 64: 2, 128: 3}
_TENSOR_MAP_MAGIC = 0x70616D726F736E74


class Fault(Exception):
    """What a kernel did wrong, and where: block, warp, lanes, PTX line, source line."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class Output:
    """Marks an array whose contents are undefined until the kernel writes them."""

    def __init__(self, array: Any) -> None:
        self.array = array


@functools.lru_cache(maxsize=64)
def source(ptx: str) -> Any:
    """Return PTX text, parsed; kernels are decoded when they first run."""
    return _native.Source(ptx)


def memory_of(name: str, array: Any) -> tuple[str, int, int, bool, bool]:
    """Describe the memory of an array or tensor: name, address, bytes, writable, defined."""
    defined = not isinstance(array, Output)
    if isinstance(array, Output):
        array = array.array
    if isinstance(array, torch.Tensor):
        storage = array.untyped_storage()
        return name, storage.data_ptr(), storage.nbytes(), True, defined
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    return name, base.ctypes.data, base.nbytes, bool(array.flags.writeable), defined


def run(
    ptx: str,
    entry: str | None,
    grid: int | Sequence[int],
    block: int | Sequence[int],
    args: Sequence[Any],
    *,
    memory: Sequence[tuple[str, int, int, bool, bool]] | None = None,
    shared_bytes: int = 0,
    policy: str = "eager",
    seed: int = 0,
    checks: bool = True,
    coresident: bool = False,
    truncate_products: bool = False,
    max_instructions: int = 4_000_000_000,
    multicast: Sequence[tuple[int, int, Sequence[int]]] = (),
) -> dict[str, Any]:
    """Execute one launch and return what was counted.

    Parameters
    ----------
    ptx, entry : text and the kernel in it; None if it has only one.
    grid, block : blocks and threads, up to three dimensions.
    args : NumPy arrays, torch tensors and `Output` (passed as pointers), NumPy scalars (by value)
        and bytes (by value). Or one `bytes` of all parameters, with `memory` given.
    memory : what the kernel may touch; default: the arrays among `args`.
    shared_bytes : dynamic shared memory.
    policy : when asynchronous operations move their data: "eager", "late" or "random".
    seed : of the order of warps and of "random"; 0 keeps warps in order.
    checks : races, uninitialised reads, ownership of global bytes; bounds are always checked.
    coresident : run all blocks at once, for kernels whose blocks wait for each other.
    truncate_products : round matrix products as tensor cores are believed to.
    max_instructions : what a launch may execute, so that one that never ends does.
    multicast : (address, bytes, places): a range of addresses for `multimem` alone, and the
        addresses of the memory behind it.

    Raises
    ------
    Fault
        If the kernel does something wrong.
    SyntaxError
        If the text, or an instruction of the kernel, is not known.
    """
    text = source(ptx)
    if entry is None:
        (entry,) = text.entries()
    params = text.params(entry)
    if isinstance(args, bytes):
        blob = args
    else:
        if len(args) != len(params):
            raise ValueError(f"{entry}: got {len(args)} arguments, expected {len(params)}")
        blob = _pack(args, params)
    if memory is None:
        memory = [
            memory_of(f"argument {i}", a)
            for i, a in enumerate(args)
            if isinstance(a, (np.ndarray, torch.Tensor, Output))
        ]
    report: dict[str, Any] = text.run(
        entry, _three(grid), _three(block), shared_bytes, blob, list(memory), policy, seed, checks,
        coresident, truncate_products, max_instructions, list(multicast),
    )  # fmt: skip
    if report["fault"] is not None:
        raise Fault(*report["fault"])
    return report


def _three(n: int | Sequence[int]) -> tuple[int, int, int]:
    sizes = (n,) if isinstance(n, int) else tuple(n)
    x, y, z = (*sizes, 1, 1)[:3]
    return x, y, z


def _pack(args: Sequence[Any], params: Sequence[tuple[int, int]]) -> bytes:
    blob = bytearray(max((at + size for at, size in params), default=0))
    for value, (at, size) in zip(args, params, strict=True):
        if isinstance(value, Output):
            value = value.array
        if isinstance(value, np.ndarray):
            data = struct.pack("<Q", value.ctypes.data)
        elif isinstance(value, torch.Tensor):
            data = struct.pack("<Q", value.data_ptr())
        else:
            data = value if isinstance(value, bytes) else value.tobytes()
        if len(data) != size:
            raise ValueError(f"parameter at {at}: got {len(data)} bytes, expected {size}")
        blob[at : at + size] = data
    return bytes(blob)


def tensor_map(
    array: Any,
    dims: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
    swizzle: int | None = None,
    element_bytes: int | None = None,
) -> bytes:
    """Return a TMA descriptor in the simulator's encoding, as a kernel parameter of 128 bytes.

    Parameters
    ----------
    array : the memory; its first byte is the base.
    dims, box : elements, innermost first.
    strides : bytes, of dimensions 1 and up.
    swizzle : None, 32, 64 or 128 bytes.
    """
    base = array.data_ptr() if isinstance(array, torch.Tensor) else array.ctypes.data
    size = element_bytes or array.itemsize
    return encode_map(base, size, dims, strides, box, SWIZZLES[swizzle])


def encode_map(
    base: int, size: int, dims: Sequence[int], strides: Sequence[int], box: Sequence[int], mode: int
) -> bytes:
    """Return the 128 bytes of a tensor map from its fields; see `tensor_map`."""
    pad = [0] * 5
    record = struct.pack(
        "<QQII5Q4Q5II", _TENSOR_MAP_MAGIC, base, len(dims), size, *[*dims, *pad][:5],
        *[*strides, *pad][:4], *[*box, *pad][:5], mode,
    )  # fmt: skip
    return record.ljust(128, b"\0")


@functools.lru_cache(maxsize=64)
def compile_cuda(code: str, arch: str = "sm_80", *flags: str) -> str:
    """Return the PTX of CUDA C++ source text, or of the file whose name ends in `.cu`.

    Raises
    ------
    FileNotFoundError
        If there is no nvcc; tests ask `has_nvcc()` first.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(code) if code.endswith(".cu") else Path(folder) / "kernel.cu"
        if not code.endswith(".cu"):
            path.write_text(code)
        out = Path(folder) / "kernel.ptx"
        done = subprocess.run(
            ["nvcc", "-ptx", "-std=c++17", "-lineinfo", f"-arch={arch}", *flags, path, "-o", out],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeError(f"nvcc failed:\n{done.stderr}")
        return out.read_text()


def has_nvcc() -> bool:
    """Whether CUDA sources can be compiled here."""
    return shutil.which("nvcc") is not None
