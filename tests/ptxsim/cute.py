"""Layouts of matrix fragments and of tiles in shared memory, as CuTe 4.x prints its own.

The strings were printed on a host by `MMA_Traits`, `Copy_Traits` and `GMMA::Layout_*_Atom`; tests
compare the simulator with them, so that a misreading of the ISA would have to be CUTLASS's too.
"""

from __future__ import annotations

import ast
import itertools

import numpy as np

# (lane, value) -> row + rows * k of A, column + columns * k of B, row + rows * column of C.
MMA = {
    "m16n8k8.f16": (
        "((4,8),(2,2)):((32,1),(16,8))",
        "((4,8),2):((16,1),8)",
        "((4,8),(2,2)):((32,1),(16,8))",
    ),
    "m16n8k16.bf16": (
        "((4,8),(2,2,2)):((32,1),(16,8,128))",
        "((4,8),(2,2)):((16,1),(8,64))",
        "((4,8),(2,2)):((32,1),(16,8))",
    ),
    "m16n8k4.tf32": (
        "((4,8),2):((16,1),8)",
        "((4,8),1):((8,1),0)",
        "((4,8),(2,2)):((32,1),(16,8))",
    ),
    "m16n8k8.tf32": (
        "((4,8),(2,2)):((16,1),(8,64))",
        "((4,8),2):((8,1),32)",
        "((4,8),(2,2)):((32,1),(16,8))",
    ),
    "m16n8k32.e4m3": (
        "((4,8),(4,2,2)):((64,1),(16,8,256))",
        "((4,8),(4,2)):((32,1),(8,128))",
        "((4,8),(2,2)):((32,1),(16,8))",
    ),
}
# (thread, value) -> row + 64 * k of A in registers, row + 64 * column of D, for n = 16.
WGMMA_A = {
    "bf16": "((4,8,4),(2,2,2)):((128,1,16),(64,8,512))",
    "e4m3": "((4,8,4),(4,2,2)):((256,1,16),(64,8,1024))",
    "tf32": "((4,8,4),(2,2)):((64,1,16),(8,256))",
}
WGMMA_D = "((4,8,4),(2,2,2)):((128,1,16),(64,8,512))"
# (x, k) -> 16-bit element, before the swizzle, of tiles of 128 x 16 or, for the first two, of
# slices along k of wider ones; with the leading and stride byte offsets of `make_gmma_desc`.
TILES = {
    ("K", 128): ("(128,16):(64,1)", 16, 1024),
    ("K", 64): ("(128,16):(32,1)", 16, 512),
    ("K", 32): ("((8,16),(16,1)):((16,128),(1,0))", 16, 256),
    ("K", None): ("((8,16),(8,2)):((8,64),(1,1024))", 2048, 128),
    ("MN", 128): ("((64,2),(8,2)):((1,512),(64,1024))", 1024, 2048),
    ("MN", 64): ("((32,4),(8,2)):((1,256),(32,1024))", 512, 2048),
    ("MN", 32): ("((16,8),(8,2)):((1,128),(16,1024))", 256, 2048),
    ("MN", None): ("((8,16),(8,2)):((1,64),(8,1024))", 2048, 128),
}
# Bits of the byte address, `Swizzle<bits, 4, 3>`.
SWIZZLE_BITS = {None: 0, 32: 1, 64: 2, 128: 3}


def offsets(layout: str) -> np.ndarray:
    """Return `[a, b]`: what a layout of two modes maps every coordinate to."""
    shape, stride = (ast.literal_eval(part) for part in layout.split(":"))
    first, second = (_mode(s, d) for s, d in zip(shape, stride, strict=True))
    return first[:, None] + second[None, :]


def _mode(shape: int | tuple[int, ...], stride: int | tuple[int, ...]) -> np.ndarray:
    shapes = shape if isinstance(shape, tuple) else (shape,)
    strides = stride if isinstance(stride, tuple) else (stride,)
    # The first coordinate of a mode runs fastest.
    points = itertools.product(*(range(n) for n in reversed(shapes)))
    return np.array([sum(i * d for i, d in zip(reversed(p), strides, strict=True)) for p in points])


def swizzle(byte: np.ndarray, width: int | None) -> np.ndarray:
    """Return the byte addresses, swizzled for rows of `width` bytes."""
    return byte ^ (((byte >> 7) & ((1 << SWIZZLE_BITS[width]) - 1)) << 4)
