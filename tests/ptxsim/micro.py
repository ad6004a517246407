"""One instruction, executed on arrays: the smallest kernel there is."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from . import SyntaxError as SyntaxError
from . import run

_THREADS = 128
_DTYPES = {
    "pred": np.uint8, "b8": np.uint8, "b16": np.uint16, "b32": np.uint32, "b64": np.uint64,
    "u16": np.uint16, "u32": np.uint32, "u64": np.uint64,
    "s16": np.int16, "s32": np.int32, "s64": np.int64, "f32": np.float32, "f64": np.float64,
}  # fmt: skip

# Where arithmetic goes wrong.
INTEGERS = [0, 1, 2, 3, 5, 7, 8, 15, 16, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 0x7FFF, 0x8000,
            0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFE, 0xFFFFFFFF, 1 << 32,
            (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 0x0123456789ABCDEF]  # fmt: skip
F32 = [0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007FFFFF, 0x807FFFFF, 0x00800000,
       0x80800000, 0x00800001, 0x3F800000, 0xBF800000, 0x3F7FFFFF, 0x3F800001, 0x3F000000,
       0x3FC00000, 0x40200000, 0xC0200000, 0x4B000000, 0x4B7FFFFF, 0x4F000000, 0xCF000000,
       0x4EFFFFFF, 0x5F000000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7E800000, 0x7F000000, 0x7F800000,
       0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001, 0x33800000, 0x38D1B717, 0x477FE000,
       0x477FF000, 0x33000000, 0x33000001, 0x387FC000]  # fmt: skip


def apply(
    instruction: str, in_types: Sequence[str], out_type: str, *arrays: np.ndarray
) -> np.ndarray:
    """Execute PTX text once per element and return the results.

    Parameters
    ----------
    instruction : with {a}, {b}, ... for the inputs' registers and {d} for the result's.
    in_types, out_type : "pred", "b8" or a type of 16 to 64 bits; of registers, and of the arrays in
        memory. Halves and packed values travel as bits: "b16", "b32".
    arrays : one per input, all of one length.
    """
    count = len(arrays[0])
    padded = -(-count // _THREADS) * _THREADS
    types = [*in_types, out_type]
    data = []
    for kind, array in zip(in_types, arrays, strict=True):
        full = np.zeros(padded, _DTYPES[kind])
        full[:count] = array.view(_DTYPES[kind]) if kind != "pred" else array
        data.append(full)
    data.append(np.zeros(padded, _DTYPES[out_type]))
    run(_kernel(instruction, types), "micro", padded // _THREADS, _THREADS, data)
    result: np.ndarray = data[-1][:count]
    return result.astype(bool) if out_type == "pred" else result


def _kernel(instruction: str, types: Sequence[str]) -> str:
    names = [*"abcef"[: len(types) - 1], "d"]
    lines = []
    for i, (name, kind) in enumerate(zip(names, types, strict=True)):
        size = np.dtype(_DTYPES[kind]).itemsize
        lines += [f".reg .{kind} %v_{name};", f".reg .b16 %w_{name}, %x_{name};",
                  f".reg .b64 %p_{name};", f"ld.param.u64 %p_{name}, [micro_{i}];",
                  f"mad.wide.u32 %p_{name}, %at, {size}, %p_{name};"]  # fmt: skip
        if name != "d":
            lines += _load(name, kind)
    for name in names:
        instruction = instruction.replace("{" + name + "}", f"%v_{name}")
    lines += [instruction, *_store(types[-1])]
    params = ", ".join(f".param .u64 micro_{i}" for i in range(len(types)))
    body = "\n".join(lines)
    return f"""
.version 9.0
.target sm_100a
.address_size 64
.visible .entry micro({params})
{{
.reg .b32 %at, %thread, %block;
mov.u32 %thread, %tid.x;
mov.u32 %block, %ctaid.x;
mad.lo.s32 %at, %block, {_THREADS}, %thread;
{body}
ret;
}}
"""


def _load(name: str, kind: str) -> list[str]:
    if kind == "pred":
        return [f"ld.global.u8 %w_{name}, [%p_{name}];", f"setp.ne.u16 %v_{name}, %w_{name}, 0;"]
    if kind == "b8":
        return [f"ld.global.u8 %w_{name}, [%p_{name}];",
                f"{{ .reg .b8 unused; mov.b16 {{%v_{name}, unused}}, %w_{name}; }}"]  # fmt: skip
    return [f"ld.global.{kind} %v_{name}, [%p_{name}];"]


def _store(kind: str) -> list[str]:
    if kind == "pred":
        return ["selp.u16 %w_d, 1, 0, %v_d;", "st.global.u8 [%p_d], %w_d;"]
    if kind == "b8":
        return ["mov.b16 %w_d, {%v_d, 0};", "st.global.u8 [%p_d], %w_d;"]
    return [f"st.global.{kind} [%p_d], %v_d;"]


def integers(rng: np.random.Generator, kinds: Sequence[str], count: int = 3000) -> list[np.ndarray]:
    """Return hostile values in all combinations (of up to two), then random ones, per operand."""
    edges = np.array(list(itertools.product(INTEGERS, repeat=min(2, len(kinds)))), np.uint64).T
    arrays = []
    for i, kind in enumerate(kinds):
        dtype = np.dtype(_DTYPES[kind])
        edge = edges[i] if i < 2 else rng.permutation(edges[0])
        noise = rng.integers(0, 1 << 64, count, np.uint64)
        # Small numbers too: random words are all large.
        noise >>= rng.integers(0, 64, count, np.uint64)
        mixed = np.concatenate([edge, noise])
        arrays.append(mixed.astype(f"u{dtype.itemsize}").view(dtype))
    return arrays


def floats(rng: np.random.Generator, operands: int, count: int = 3000) -> list[np.ndarray]:
    """Return f32 values per operand: hostile combinations, any bits, and numbers near one."""
    edges = np.array(list(itertools.product(F32, repeat=min(2, operands))), np.uint32).T
    arrays = []
    for i in range(operands):
        edge = edges[i] if i < 2 else rng.permutation(edges[0])
        noise = rng.integers(0, 1 << 32, count, np.uint32)
        close = rng.standard_normal(count).astype(np.float32).view(np.uint32)
        arrays.append(np.concatenate([edge, noise, close]).view(np.float32))
    return arrays


def halves(rng: np.random.Generator, operands: int, count: int = 3000) -> list[np.ndarray]:
    """Return bits of f16 or bf16 values per operand, NaNs, infinities and subnormals among them."""
    edges = [0, 0x8000, 1, 0x8001, 0x3FF, 0x400, 0x7F, 0x80, 0x3C00, 0x3F80, 0xBC00, 0xBF80, 0x7BFF,
             0x7C00, 0xFC00, 0x7E00, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0, 0xFFFF]  # fmt: skip
    grid = np.array(list(itertools.product(edges, repeat=min(2, operands))), np.uint16).T
    arrays = []
    for i in range(operands):
        edge = grid[i] if i < 2 else rng.permutation(grid[0])
        noise = rng.integers(0, 1 << 16, count, np.uint16)
        close = rng.integers(0x3000, 0x4400, count, np.uint16)
        close ^= rng.integers(0, 2, count, np.uint16) << np.uint16(15)
        arrays.append(np.concatenate([edge, noise, close]))
    return arrays
