"""One launch in the simulator and on the GPU, on copies of the same memory; the bytes compared."""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from tests import ptxsim

from . import driver

simulate = ptxsim.run

# Instructions whose last bits are the hardware's own; how far off its documented errors allow.
APPROXIMATE = re.compile(r"\.approx|\.full\.f32")
# The ISA bounds these only near zero.
UNBOUNDED = re.compile(r"(sin|cos)\.approx")
# Sums of nothing but zeros, whose sign the ISA leaves open.
PRODUCT = re.compile(r"\b(mma\.sync|wgmma\.mma_async)\b")
MAP = struct.Struct("<QQII5Q4Q5II")


@dataclass
class Region:
    """A piece of host memory, as it was before the launch, and its twin on the GPU."""

    name: str
    address: int
    before: bytes
    twin: torch.Tensor

    @classmethod
    def of(cls, name: str, address: int, size: int) -> Region:
        """Copy a region; its twin has the same alignment."""
        before = ctypes.string_at(address, size)
        room = torch.zeros(size + 1024, dtype=torch.uint8, device="cuda")
        start = (address - room.data_ptr()) % 1024
        twin = room[start : start + size]
        if size:
            twin.copy_(torch.frombuffer(bytearray(before), dtype=torch.uint8))
        return cls(name, address, before, twin)

    def translate(self, pointer: int) -> int | None:
        """Return the GPU address of a host address in the region."""
        offset = pointer - self.address
        return self.twin.data_ptr() + offset if 0 <= offset <= len(self.before) else None


def run(
    ptx: str, entry: str | None, grid: Any, block: Any, args: Any, **options: Any
) -> dict[str, Any]:
    """Do what `tests.ptxsim.run` does, and the same on the GPU; assert the same memory.

    What the simulator refuses never gets to the GPU: it raises first. Nor does what it lets pass
    with a warning or without its checks, since the outcome is then not defined.
    """
    memory = options.get("memory")
    if memory is None and not isinstance(args, bytes):
        kinds = (np.ndarray, torch.Tensor, ptxsim.Output)
        memory = [ptxsim.memory_of(str(i), a) for i, a in enumerate(args) if isinstance(a, kinds)]
    regions = [Region.of(name, address, size) for name, address, size, *_ in memory or ()]
    report = simulate(ptx, entry, grid, block, args, **options)
    defined = options.get("checks", True) and not report["warnings"]
    if not defined or isinstance(args, bytes) or options.get("truncate_products"):
        return report
    text = ptxsim.source(ptx)
    (name,) = text.entries() if entry is None else (entry,)
    moved = [_argument(a, regions) for a in args]
    parameters = ptxsim._pack(moved, text.params(name))
    here = re.sub(r"\.target\s+sm_\w+", f".target {driver.target()}", ptx)
    shared = options.get("shared_bytes", 0)
    try:
        driver.launch(here, name, _three(grid), _three(block), parameters, shared)
    except driver.DriverError as error:
        if not error.log:
            raise
        # Other devices have it, or the simulator is more lenient than the assembler.
        pytest.skip(f"refused by the assembler for {driver.target()}: {error.log.splitlines()[0]}")
    torch.cuda.synchronize()
    arrays = [a.array if isinstance(a, ptxsim.Output) else a for a in args]
    for region in regions:
        kinds = [a.dtype for a in arrays if _address(a) == region.address]
        compare(region, ptx, kinds[0] if kinds else np.dtype(np.uint8))
    return report


def _three(n: int | Sequence[int]) -> tuple[int, int, int]:
    sizes = (n,) if isinstance(n, int) else tuple(n)
    x, y, z = (*sizes, 1, 1)[:3]
    return x, y, z


def _address(x: Any) -> int | None:
    if isinstance(x, torch.Tensor):
        return x.data_ptr()
    return x.ctypes.data if isinstance(x, np.ndarray) else None


def _argument(x: Any, regions: Sequence[Region]) -> Any:
    """Return an argument with the host addresses in it replaced."""
    if isinstance(x, ptxsim.Output):
        x = x.array
    address = _address(x)
    if address is not None:
        return np.uint64(_translated(address, regions))
    if isinstance(x, bytes) and len(x) == 128:
        magic, base, rank, size, *rest = MAP.unpack_from(x)
        if magic == ptxsim._TENSOR_MAP_MAGIC:
            dims, strides, box, swizzle = rest[:5], rest[5:9], rest[9:14], rest[14]
            there = _translated(base, regions)
            return driver.tensor_map(
                there, size, dims[:rank], strides[: rank - 1], box[:rank], swizzle
            )
    return x


def _translated(address: int, regions: Sequence[Region]) -> int:
    """Return the GPU address of a host address; 0, which faults, for memory not to be touched."""
    found = (region.translate(address) for region in regions)
    return next((there for there in found if there is not None), 0)


def compare(region: Region, ptx: str, dtype: Any) -> None:
    """Compare a region after both launches: bits, or values where the hardware rounds its way."""
    want = np.frombuffer(ctypes.string_at(region.address, len(region.before)), np.uint8)
    got = region.twin.cpu().numpy()
    if UNBOUNDED.search(ptx):
        return
    if APPROXIMATE.search(ptx):
        compare_values(got, want, half_type(ptx) if dtype.itemsize == 2 else np.float32)
        return
    if PRODUCT.search(ptx) and len(want) % 4 == 0:
        got, want = (
            np.where(x.view(np.uint32) == 1 << 31, 0, x.view(np.uint32)) for x in (got, want)
        )
    different = np.flatnonzero(got != want)
    assert not len(different), (
        f"argument {region.name}: {len(different)} of {len(want)} differ, the first at "
        f"{different[0]}: {got[different[0]]:#x} on the GPU, {want[different[0]]:#x} simulated"
    )


def half_type(ptx: str) -> Any:
    """Return the 16-bit type that an approximation is of."""
    import ml_dtypes

    return ml_dtypes.bfloat16 if ".bf16" in ptx else np.float16


def compare_values(got: np.ndarray, want: np.ndarray, dtype: Any) -> None:
    """Compare what approximations give: specials at the same places, and the leading bits."""
    a, b = (x[: len(x) // 4 * 4].view(dtype).astype(np.float64) for x in (got, want))
    assert np.array_equal(np.isnan(a), np.isnan(b)), "NaNs at other places"
    finite = np.isfinite(b)
    assert np.array_equal(a[~finite], b[~finite], equal_nan=True), "infinities at other places"
    allowed = 2.0 ** (-9 if dtype is np.float32 else -6) * np.maximum(np.abs(b[finite]), 2.0**-10)
    assert (np.abs(a[finite] - b[finite]) <= allowed).all()
