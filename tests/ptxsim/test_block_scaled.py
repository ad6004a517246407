"""mma.sync with block scaling and with mixed narrow formats (sm_120a)."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.ptxsim import (
    Fault,
    SyntaxError,
    compile_cuda,
    cute,
    cute_blackwell,
    has_nvcc,
    run,
)
from tests.ptxsim.warp_kernel import execute, pack, registers, text, unpack

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E2M1 = np.concatenate([E2M1, -E2M1])
VALUES = {
    "e2m1": E2M1,
    "e4m3": np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64),
    "e5m2": np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e5m2).astype(np.float64),
    "ue4m3": np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64),
    "ue8m0": np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float64),
}
# kind, scale vector, type of A, of B, of the factors
CASES = [
    ("mxf4nvf4", "4X", "e2m1", "e2m1", "ue4m3"),
    ("mxf4nvf4", "4X", "e2m1", "e2m1", "ue8m0"),
    ("mxf4nvf4", "2X", "e2m1", "e2m1", "ue8m0"),
    ("mxf4", "2X", "e2m1", "e2m1", "ue8m0"),
    ("mxf4", "", "e2m1", "e2m1", "ue8m0"),
    ("mxf8f6f4", "1X", "e4m3", "e4m3", "ue8m0"),
    ("mxf8f6f4", "1X", "e4m3", "e5m2", "ue8m0"),
    ("mxf8f6f4", "1X", "e5m2", "e2m1", "ue8m0"),
    ("mxf8f6f4", "", "e2m1", "e4m3", "ue8m0"),
]
Case = tuple[str, str, str, str, str]


def codes_of(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Return codes of finite values, all of them equally likely."""
    finite = np.flatnonzero(np.isfinite(VALUES[kind])).astype(np.uint8)
    if kind == "ue4m3":
        finite = finite[finite < 128]
    if kind == "ue8m0":  # sums stay in range
        finite = finite[(finite > 117) & (finite < 137)]
    return rng.choice(finite, shape)


def words_of(codes: np.ndarray, layout: str, kind: str, *, bytes_each: bool) -> np.ndarray:
    """Return the registers of a fragment whose codes are `[rows, k]`."""
    values = codes.ravel(order="F")[cute.offsets(layout)].astype(np.uint8)
    if bytes_each:
        return pack(values << 2 if kind == "e2m1" else values)
    return pack(values[:, 0::2] | values[:, 1::2] << 4)


class Problem:
    """Random operands of one instruction, its registers and its exact result."""

    def __init__(self, case: Case, seed: int, select: tuple[int, int, int, int] = (0, 0, 0, 0)):
        kind, _, a_type, b_type, scale_type = case
        rng = np.random.default_rng(seed)
        self.case, self.select = case, select
        self.k = 32 if kind == "mxf8f6f4" else 64
        self.factors = {"mxf8f6f4": 1, "mxf4": 2}.get(kind, int((case[1] or "2X")[0]))
        self.a = codes_of(rng, (16, self.k), a_type)
        self.b = codes_of(rng, (8, self.k), b_type)
        self.c = rng.standard_normal((16, 8)).astype(np.float32)
        self.scale_a = codes_of(rng, (16, self.factors), scale_type)
        self.scale_b = codes_of(rng, (8, self.factors), scale_type)
        self.layouts = cute_blackwell.BLOCK_SCALED[f"m16n8k{self.k}"]
        wide = self.k == 32
        self.registers = [
            words_of(self.a, self.layouts[0], a_type, bytes_each=wide),
            words_of(self.b, self.layouts[1], b_type, bytes_each=wide),
            pack(self.c.ravel(order="F")[cute.offsets(self.layouts[2])]),
            self.scale_words(rng, self.scale_a, self.layouts[3], select[0], select[1]),
            self.scale_words(rng, self.scale_b, self.layouts[4], select[2], select[3]),
        ]

    def scale_words(
        self, rng: np.random.Generator, scales: np.ndarray, layout: str, byte: int, thread: int
    ) -> np.ndarray:
        """Return one register: noise, but for the bytes that the selector names."""
        noise = rng.integers(0, 256, (32, 4)).astype(np.uint8)
        rows = cute.offsets(layout)[:, 0]  # of every lane, as it would be for selector {0, 0}
        per = 2 if len(scales) == 16 else 1  # lanes of a quad that take part
        for lane in range(32):
            if lane % 4 // per == thread:
                noise[lane, byte : byte + self.factors] = scales[rows[lane]]
        return noise.view(np.uint32).T

    def text(self, **options: Any) -> str:
        kind, vector, a_type, b_type, scale_type = self.case
        name = f".scale_vec::{vector}" if vector else ""
        byte_a, thread_a, byte_b, thread_b = self.select
        body = (
            f"mma.sync.aligned.m16n8k{self.k}.row.col.kind::{kind}.block_scale{name}"
            f".f32.{a_type}.{b_type}.f32.{scale_type} {registers('d', 4)}, {registers('a', 4)}, "
            f"{registers('a', 2, 4)}, {registers('a', 4, 6)}, {{%a10}}, {{{byte_a}, {thread_a}}}, "
            f"%a11, {{{byte_b}, {thread_b}}};"
        )
        return text(body, 12, 4, target="sm_120a", **options)

    def inputs(self) -> np.ndarray:
        return np.concatenate(self.registers)

    def result(self, words: np.ndarray) -> np.ndarray:
        """Return D `[16, 8]` from its registers."""
        d = np.empty(128, np.float32)
        d[cute.offsets(self.layouts[2])] = unpack(words, np.float32)
        return d.reshape(16, 8, order="F")

    def exact(self) -> np.ndarray:
        a, b = self.wide()
        return (a @ b.T + self.c).astype(np.float32)

    def wide(self) -> tuple[np.ndarray, np.ndarray]:
        """Return A and B with their factors multiplied in."""
        _, _, a_type, b_type, scale_type = self.case
        length = self.k // self.factors
        scale_a = np.repeat(VALUES[scale_type][self.scale_a], length, axis=1)
        scale_b = np.repeat(VALUES[scale_type][self.scale_b], length, axis=1)
        return VALUES[a_type][self.a] * scale_a, VALUES[b_type][self.b] * scale_b


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_product_of_scaled_matrices(case: Case) -> None:
    for seed in range(5):
        p = Problem(case, seed)
        words, report = execute(p.text(), p.inputs(), 4)
        np.testing.assert_array_equal(p.result(words), p.exact())
        assert report["matrix_flops"] == 2 * 16 * 8 * p.k


@pytest.mark.parametrize("in_registers", [False, True])
@pytest.mark.parametrize(
    ("case", "bytes_"),
    [(CASES[0], [0]), (CASES[2], [0, 2]), (CASES[3], [0, 2]), (CASES[5], [0, 1, 2, 3])],
    ids=["4X", "2X", "mxf4", "1X"],
)
def test_selectors(case: Case, bytes_: list[int], in_registers: bool) -> None:
    for i, byte_a in enumerate(bytes_):
        for thread_a in range(2):
            for thread_b in range(4):
                byte_b = bytes_[(i + thread_b) % len(bytes_)]
                p = Problem(case, 10 * thread_a + thread_b, (byte_a, thread_a, byte_b, thread_b))
                ptx = p.text()
                if in_registers:
                    ptx = in_named_registers(ptx, p)
                words, _ = execute(ptx, p.inputs(), 4)
                np.testing.assert_array_equal(p.result(words), p.exact())


def in_named_registers(ptx: str, p: Problem) -> str:
    names = ["byte_a", "thread_a", "byte_b", "thread_b"]
    moves = f".reg .u16 {', '.join(names)};\n"
    for name, value in zip(names, p.select, strict=True):
        moves += f"mov.b16 {name}, {value};\n"
    before = f"{{%a10}}, {{{p.select[0]}, {p.select[1]}}}, %a11, {{{p.select[2]}, {p.select[3]}}}"
    assert before in ptx
    after = "{%a10}, {byte_a, thread_a}, %a11, {byte_b, thread_b}"
    return ptx.replace(before, after).replace("mma.sync", moves + "mma.sync")


def test_the_order_of_modifiers_is_free() -> None:
    p = Problem(CASES[0], 3)
    before = "m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X."
    assert before in p.text()
    after = "kind::mxf4nvf4.block_scale.scale_vec::4X.m16n8k64.row.col."
    words, _ = execute(p.text().replace(before, after), p.inputs(), 4)
    np.testing.assert_array_equal(p.result(words), p.exact())


@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[6]], ids="-".join)
def test_truncated_products_stay_within_the_stated_error(case: Case) -> None:
    worst = 0.0
    for seed in range(5):
        p = Problem(case, 20 + seed)
        words, _ = execute(p.text(), p.inputs(), 4, truncate_products=True)
        a, b = p.wide()
        scale = np.abs(a) @ np.abs(b).T + np.abs(p.c)
        error = np.abs(p.result(words) - (a @ b.T + p.c)) / scale
        assert (error <= 2.0**-22 * (p.k // 16 + 1)).all()
        worst = max(worst, float(error.max()))
    assert worst > 2.0**-25


def test_extreme_factors() -> None:
    p = Problem(CASES[3], 4)
    p.registers[0][:] = 0x22222222  # ones
    p.registers[1][:] = 0x22222222
    p.registers[2][:] = 0
    for code_a, code_b, expected in [
        (0, 254, 64.0),  # 2^-127 * 2^127
        (0, 0, 0.0),  # below every f32
        (254, 254, np.inf),
        (255, 127, np.nan),
        (254, 0, 64.0),
    ]:
        p.registers[3][:] = code_a * 0x01010101
        p.registers[4][:] = code_b * 0x01010101
        words, _ = execute(p.text(), p.inputs(), 4)
        np.testing.assert_array_equal(p.result(words), np.full((16, 8), expected, np.float32))


def test_a_signed_scale_factor_is_refused() -> None:
    p = Problem(CASES[0], 5)
    p.registers[3][:] |= 0x80
    with pytest.raises(Fault, match="top bit") as fault:
        execute(p.text(), p.inputs(), 4)
    assert fault.value.kind == "unsupported"


# The lane that does not define its factors, the first value that depends on it, all of these, and
# which lanes hold them: lane 5 has row 9 of A (g = 1), lane 4 column 1 of B (t = 0).
@pytest.mark.parametrize(
    ("operand", "lane", "first", "spoilt", "holders"),
    [
        ("{%a10}", 5, "%d2", ["%d2", "%d3"], "shr.u32 %r2, %tid4, 4; setp.eq.u32 %p3, %r2, 1;"),
        ("%a11", 4, "%d1", ["%d1", "%d3"], "and.b32 %r2, %tid4, 12; setp.eq.u32 %p3, %r2, 0;"),
    ],
    ids=["A", "B"],
)
def test_undefined_factors_spoil_their_row_or_column_only(
    operand: str, lane: int, first: str, spoilt: list[str], holders: str
) -> None:
    p = Problem(CASES[0], 6)
    move = f"setp.ne.u32 %p1, %tid4, {4 * lane};\n@%p1 mov.b32 %r1, {operand.strip('{}')};\n"
    ptx = p.text().replace("mma.sync", move + holders + "\nmma.sync")
    ptx = ptx.replace(f", {operand},", ", %r1,")
    with pytest.raises(Fault, match=first) as fault:
        execute(ptx, p.inputs(), 4)
    assert fault.value.kind == "uninitialised"
    for d in spoilt:
        ptx = ptx.replace(f"st.global.b32 [%dst], {d}", f"@!%p3 st.global.b32 [%dst], {d}")
    words, _ = execute(ptx, p.inputs(), 4)
    got, exact = p.result(words), p.exact()
    row, column = (9, slice(None)) if operand == "{%a10}" else (slice(None), 1)
    exact[row, column] = 0
    np.testing.assert_array_equal(got, exact)


@pytest.mark.parametrize(
    "move",
    ["mov.u32 %r1, 8;", "shr.u32 %r1, %tid4, 2;", "mov.u32 %r1, 1;"],
    ids=["too large", "differs", "not for 4X"],
)
def test_selectors_that_are_not_allowed(move: str) -> None:
    p = Problem(CASES[0], 7)
    ptx = p.text().replace("{%a10}, {0, 0}", "{%a10}, {%r1, 0}")
    with pytest.raises(Fault) as fault:
        execute(ptx.replace("mma.sync", move + "\nmma.sync"), p.inputs(), 4)
    assert fault.value.kind == ("divergence" if "tid" in move else "unsupported")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (".scale_vec::4X", ""),
        (".scale_vec::4X", ".scale_vec::1X"),
        (".scale_vec::4X", ".block16"),
        (".scale_vec::4X", ".scale_vec::2X"),  # not with ue4m3
        ("kind::mxf4nvf4", "kind::mxf4"),
        ("kind::mxf4nvf4", "kind::f8f6f4"),
        (".block_scale", ""),
        (".kind::mxf4nvf4", ""),
        ("m16n8k64", "m16n8k32"),
        (".f32.e2m1.e2m1.f32.", ".f16.e2m1.e2m1.f16."),
        (".e2m1.e2m1.", ".e2m1.e4m3."),
        (".ue4m3", ".e4m3"),
        (".ue4m3", ""),
        ("%a11, {0, 0}", "%a11, {0, 4}"),
        ("{%a10}, {0, 0}", "{%a10}, {0, 2}"),
        ("{%a10}, {0, 0}", "{%a10}, {2, 0}"),
        ("{%a10}, {0, 0}", "{%a10}, {0}"),
        ("{%a10}, {0, 0}", "{%a10, %a10}, {0, 0}"),
        (", %a11, {0, 0}", ""),
    ],
)
def test_unknown_forms_are_refused(before: str, after: str) -> None:
    p = Problem(CASES[0], 8)
    assert before in p.text()
    with pytest.raises(SyntaxError, match="line"):
        execute(p.text().replace(before, after), p.inputs(), 4)


# --- a kernel -------------------------------------------------------------------------------------

# One warp: C[32][32] = A[32][k] B[32][k]^T. The factors lie as in the atoms of 128 rows that matrix
# libraries use, and one word of them per lane serves two tiles of A, or four of B.
KERNEL = r"""
#include <cstdint>
extern "C" __global__ void product(const uint32_t* a, const uint32_t* b, const uint32_t* scale_a,
                                   const uint32_t* scale_b, float* c, int k) {
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4, pitch = k / 8;
  float d[2][4][4] = {};
  for (int chunk = 0; chunk < k / 64; ++chunk) {
    const uint32_t sa = scale_a[chunk * 128 + (8 * t + g) * 4];
    const uint32_t sb = scale_b[chunk * 128 + (8 * t + g) * 4];
#pragma unroll
    for (uint16_t i = 0; i < 2; ++i) {
      const uint32_t* x = a + (16 * i + g) * pitch + 8 * chunk + t;
#pragma unroll
      for (uint16_t j = 0; j < 4; ++j) {
        const uint32_t* y = b + (8 * j + g) * pitch + 8 * chunk + t;
        float* z = d[i][j];
        const uint16_t zero = 0;
        asm volatile(
            "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X"
            ".f32.e2m1.e2m1.f32.ue4m3 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3}, {%10}, {%12, %13}, {%11}, {%12, %14};"
            : "+f"(z[0]), "+f"(z[1]), "+f"(z[2]), "+f"(z[3])
            : "r"(x[0]), "r"(x[8 * pitch]), "r"(x[4]), "r"(x[8 * pitch + 4]), "r"(y[0]),
              "r"(y[4]), "r"(sa), "r"(sb), "h"(zero), "h"(i), "h"(j));
      }
    }
  }
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 4; ++j)
      for (int v = 0; v < 4; ++v)
        c[(16 * i + g + 8 * (v / 2)) * 32 + 8 * j + 2 * t + v % 2] = d[i][j][v];
}
"""


@pytest.mark.skipif(not has_nvcc(), reason="needs nvcc")
def test_a_compiled_product_with_swizzled_factors() -> None:
    k = 192
    rng = np.random.default_rng(12)
    a, b = (rng.integers(0, 256, (32, k // 2)).astype(np.uint8) for _ in range(2))
    scales = [codes_of(rng, (128, k // 16), "ue4m3") for _ in range(2)]
    atom = cute.offsets(cute_blackwell.SCALE_ATOM[16])[:, ::16]
    images = []
    for scale in scales:
        image = np.empty((k // 64, 512), np.uint8)
        for chunk in range(k // 64):
            image[chunk, atom] = scale[:, 4 * chunk : 4 * chunk + 4]
        images.append(image)
    c = np.empty((32, 32), np.float32)
    run(compile_cuda(KERNEL, "sm_120a"), "product", 1, 32, [a, b, *images, c, np.int32(k)])
    wide = []
    for codes, scale in zip((a, b), scales, strict=True):
        elements = E2M1[np.stack([codes & 15, codes >> 4], -1).reshape(32, k)]
        wide.append(elements * np.repeat(VALUES["ue4m3"][scale[:32]], 16, axis=1))
    exact = wide[0] @ wide[1].T
    bound = 2.0**-23 * (k // 64) * (np.abs(wide[0]) @ np.abs(wide[1]).T)
    assert (np.abs(c - exact) <= bound).all()


# --- kind::f8f6f4, without factors ----------------------------------------------------------------


@pytest.mark.parametrize("c_type", ["f32", "f16"])
@pytest.mark.parametrize("b_type", ["e4m3", "e5m2", "e2m1"])
@pytest.mark.parametrize("a_type", ["e4m3", "e5m2", "e2m1"])
def test_mixed_formats(a_type: str, b_type: str, c_type: str) -> None:
    layouts = cute_blackwell.BLOCK_SCALED["m16n8k32"]
    rng = np.random.default_rng(11)
    dtype = np.dtype({"f32": np.float32, "f16": np.float16}[c_type])
    a, b = codes_of(rng, (16, 32), a_type), codes_of(rng, (8, 32), b_type)
    c = rng.standard_normal((16, 8)).astype(dtype)
    parts = [
        words_of(a, layouts[0], a_type, bytes_each=True),
        words_of(b, layouts[1], b_type, bytes_each=True),
        pack(c.ravel(order="F")[cute.offsets(layouts[2])]),
    ]
    # The bits of a byte around an e2m1 are not looked at.
    for part, kind in zip(parts, (a_type, b_type), strict=False):
        if kind == "e2m1":
            part |= rng.integers(0, 1 << 32, part.shape, np.uint32) & 0xC3C3C3C3
    n = dtype.itemsize
    body = (
        f"mma.sync.aligned.kind::f8f6f4.m16n8k32.row.col.{c_type}.{a_type}.{b_type}.{c_type} "
        f"{registers('d', n)}, {registers('a', 4)}, {registers('a', 2, 4)}, {registers('a', n, 6)};"
    )
    words, _ = execute(text(body, 6 + n, n, target="sm_120a"), np.concatenate(parts), n)
    got = np.empty(128, dtype)
    got[cute.offsets(layouts[2])] = unpack(words, dtype)
    exact = VALUES[a_type][a] @ VALUES[b_type][b].T + c
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got.reshape(16, 8, order="F"), exact.astype(dtype))


@pytest.mark.parametrize(
    "form",
    [
        "kind::f8f6f4.m16n8k16.row.col.f32.e4m3.e4m3.f32",
        "kind::f8f6f4.m16n8k32.row.col.f32.e4m3.e4m3.f16",
        "kind::f8f6f4.m16n8k32.row.col.f32.e3m2.e4m3.f32",
        "m16n8k32.row.col.f32.e2m1.e4m3.f32",
        "m16n8k64.row.col.f32.e2m1.e2m1.f32",
        "kind::f8f6f4.m16n8k16.row.col.f32.f16.f16.f32",
    ],
)
def test_unknown_mixes_are_refused(form: str) -> None:
    d = registers("d", 4)
    body = f"mma.sync.aligned.{form} {d}, {registers('a', 4)}, {registers('a', 2)}, {d};"
    with pytest.raises(SyntaxError, match="line"):
        execute(text(body, 4, 4), np.zeros((4, 32), np.uint32), 4)
