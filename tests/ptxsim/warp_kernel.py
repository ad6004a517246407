"""Tiny kernels in PTX text: registers in, some instructions, registers out."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.ptxsim import run


def text(body: str, inputs: int, outputs: int, *, target: str = "sm_90a", shared: int = 0) -> str:
    """Return a kernel that loads %a0 ..., executes `body` and stores %d0 ..., 32 bits each.

    `in` and `out` are `[registers, threads]`. The body may use %r, %rd, %p and %f, the byte offset
    %tid4 of the thread, and `buffer`, `shared` bytes of shared memory.
    """
    lines = [
        ".version 8.7",
        f".target {target}",
        ".address_size 64",
        ".visible .entry k(.param .u64 in, .param .u64 out, .param .u32 threads)",
        "{",
        f".reg .b32 %a<{inputs + 1}>;",
        f".reg .b32 %d<{outputs + 1}>;",
        ".reg .b32 %r<32>; .reg .b64 %rd<32>; .reg .pred %p<8>; .reg .f32 %f<8>;",
        ".reg .b32 %tid4; .reg .b32 %pitch; .reg .b64 %src; .reg .b64 %dst; .reg .b64 %step;",
    ]
    if shared:
        lines.append(f".shared .align 1024 .b8 buffer[{shared}];")
    lines += [
        "ld.param.u64 %src, [in]; ld.param.u64 %dst, [out]; ld.param.u32 %pitch, [threads];",
        "mov.u32 %tid4, %tid.x; shl.b32 %tid4, %tid4, 2; shl.b32 %pitch, %pitch, 2;",
        "cvt.u64.u32 %step, %tid4; add.s64 %src, %src, %step; add.s64 %dst, %dst, %step;",
        "cvt.u64.u32 %step, %pitch;",
    ]
    for i in range(inputs):
        lines.append(f"ld.global.b32 %a{i}, [%src]; add.s64 %src, %src, %step;")
    lines.append(body)
    for i in range(outputs):
        lines.append(f"st.global.b32 [%dst], %d{i}; add.s64 %dst, %dst, %step;")
    lines += ["ret;", "}"]
    return "\n".join(lines)


def execute(
    ptx: str, inputs: np.ndarray, outputs: int, **options: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """Run the kernel on `[registers, threads]` 32-bit inputs; return `[outputs, threads]`."""
    threads = inputs.shape[1]
    result = np.zeros((outputs, threads), np.uint32)
    data = np.ascontiguousarray(inputs).view(np.uint32)
    report = run(ptx, "k", 1, threads, [data, result, np.uint32(threads)], **options)
    return result, report


def registers(name: str, count: int, first: int = 0) -> str:
    """Return "{%a0, %a1}"."""
    return "{" + ", ".join(f"%{name}{i}" for i in range(first, first + count)) + "}"


def pack(values: np.ndarray) -> np.ndarray:
    """Return `[registers, lanes]` uint32 from `[lanes, values]`, the lower bits first."""
    return np.ascontiguousarray(np.ascontiguousarray(values).view(np.uint32).T)


def unpack(words: np.ndarray, dtype: Any) -> np.ndarray:
    """Return `[lanes, values]` from `[registers, lanes]`."""
    return np.ascontiguousarray(words.T).view(dtype)
