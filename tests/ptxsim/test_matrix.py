"""mma.sync, ldmatrix, stmatrix and movmatrix."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tests.ptxsim import Fault, SyntaxError, cute
from tests.ptxsim.warp_kernel import execute, pack, registers, text, unpack

TYPES = {
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "tf32": np.float32,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "f32": np.float32,
}
# shape, type of A, of B, of C and D, the layouts they must have
CASES = [
    ("m16n8k8", "f16", "f16", "f32", "m16n8k8.f16"),
    ("m16n8k8", "f16", "f16", "f16", "m16n8k8.f16"),
    ("m16n8k8", "bf16", "bf16", "f32", "m16n8k8.f16"),
    ("m16n8k16", "f16", "f16", "f32", "m16n8k16.bf16"),
    ("m16n8k16", "f16", "f16", "f16", "m16n8k16.bf16"),
    ("m16n8k16", "bf16", "bf16", "f32", "m16n8k16.bf16"),
    ("m16n8k4", "tf32", "tf32", "f32", "m16n8k4.tf32"),
    ("m16n8k8", "tf32", "tf32", "f32", "m16n8k8.tf32"),
    ("m16n8k32", "e4m3", "e4m3", "f32", "m16n8k32.e4m3"),
    ("m16n8k32", "e5m2", "e4m3", "f32", "m16n8k32.e4m3"),
    ("m16n8k32", "e4m3", "e5m2", "f16", "m16n8k32.e4m3"),
]


def random(rng: np.random.Generator, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Return values of the type with exponents of all sizes, a few zeros and both signs."""
    values = rng.standard_normal(shape) * 2.0 ** rng.integers(-3, 4, shape)
    values[rng.random(shape) < 0.05] = 0
    result = values.astype(TYPES[name])
    if name == "tf32":  # the operand may have more bits: they are ignored
        result = (result.view(np.uint32) & 0xFFFFE000).view(np.float32)
    return result


def mma_text(shape: str, a: str, b: str, c: str, counts: tuple[int, ...], **options: str) -> str:
    n_a, n_b, n_c = counts
    body = (
        f"mma.sync.aligned.{shape}.row.col.{c}.{a}.{b}.{c} {registers('d', n_c)}, "
        f"{registers('a', n_a)}, {registers('a', n_b, n_a)}, {registers('a', n_c, n_a + n_b)};"
    )
    return text(body, n_a + n_b + n_c, n_c, **options)


def fragments(
    case: tuple[str, ...], a: np.ndarray, b: np.ndarray, c: np.ndarray
) -> list[np.ndarray]:
    """Return the registers of A `[16, k]`, B `[8, k]` and C `[16, 8]` by CuTe's layouts."""
    layouts = cute.MMA[case[4]]
    whole = [x.ravel(order="F") for x in (a, b, c)]
    return [pack(x[cute.offsets(layout)]) for x, layout in zip(whole, layouts, strict=True)]


@pytest.mark.parametrize("case", CASES, ids=lambda c: ".".join(c[:4]))
def test_mma_is_the_matrix_product(case: tuple[str, ...]) -> None:
    shape, a_type, b_type, c_type, name = case
    k = int(shape.split("k")[1])
    rng = np.random.default_rng(len(name) + k)
    a, b = random(rng, (16, k), a_type), random(rng, (8, k), b_type)
    c = random(rng, (16, 8), c_type)
    parts = fragments(case, a, b, c)
    ptx = mma_text(shape, a_type, b_type, c_type, tuple(len(p) for p in parts))
    words, report = execute(ptx, np.concatenate(parts), len(parts[2]))
    got = np.empty(128, TYPES[c_type])
    got[cute.offsets(cute.MMA[name][2])] = unpack(words, TYPES[c_type])
    exact = a.astype(np.float64) @ b.astype(np.float64).T + c.astype(np.float64)
    np.testing.assert_array_equal(got.reshape(16, 8, order="F"), exact.astype(TYPES[c_type]))
    assert report["matrix_flops"] == 2 * 16 * 8 * k


@pytest.mark.parametrize(
    ("target", "k", "kind", "bits"),
    [("sm_80", 16, "bf16", 22), ("sm_90a", 16, "f16", 22), ("sm_89", 32, "e4m3", 12)],
)
def test_truncated_products_stay_within_the_stated_error(
    target: str, k: int, kind: str, bits: int
) -> None:
    rng = np.random.default_rng(k)
    a, b, c = random(rng, (16, k), kind), random(rng, (8, k), kind), random(rng, (16, 8), "f32")
    name = "m16n8k32.e4m3" if k == 32 else "m16n8k16.bf16"
    parts = fragments((f"m16n8k{k}", kind, kind, "f32", name), a, b, c)
    ptx = mma_text(f"m16n8k{k}", kind, kind, "f32", (4, 2, 4), target=target)
    words, _ = execute(ptx, np.concatenate(parts), 4, truncate_products=True)
    got = np.empty(128, np.float32)
    got[cute.offsets(cute.MMA[name][2])] = unpack(words, np.float32)
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64).T
    exact = wide_a @ wide_b + c
    scale = np.abs(wide_a) @ np.abs(wide_b) + np.abs(c)
    error = np.abs(got.reshape(16, 8, order="F") - exact)
    assert (error <= 2.0**-bits * (k // 16 + 1) * scale).all()
    assert (error > 2.0**-25 * scale).any()  # it is not the exact mode


def test_truncation_drops_what_the_largest_product_hides() -> None:
    a, b, c = np.zeros((16, 16)), np.zeros((8, 16)), np.zeros((16, 8), np.float32)
    a[:, :3], b[:, :3] = [1, 2.0**-13, -1], [1, 2.0**-13, 1]
    case = ("m16n8k16", "f16", "f16", "f32", "m16n8k16.bf16")
    parts = fragments(case, a.astype(np.float16), b.astype(np.float16), c)
    ptx = mma_text(*case[:4], (4, 2, 4))
    exact, _ = execute(ptx, np.concatenate(parts), 4)
    cut, _ = execute(ptx, np.concatenate(parts), 4, truncate_products=True)
    assert (exact.view(np.float32) == 2.0**-26).all()
    assert (cut.view(np.float32) == 0).all()


def test_special_values() -> None:
    a, b = np.ones((16, 8), np.float16), np.ones((8, 8), np.float16)
    c = np.zeros((16, 8), np.float32)
    a[0, 0], a[1, 0], a[2, :], b[:, 1] = np.inf, np.nan, 2.0**-24, 2.0**-24
    case = ("m16n8k8", "f16", "f16", "f32", "m16n8k8.f16")
    words, _ = execute(mma_text(*case[:4], (2, 1, 4)), np.concatenate(fragments(case, a, b, c)), 4)
    bits = np.empty(128, np.uint32)
    bits[cute.offsets(cute.MMA[case[4]][2])] = unpack(words, np.uint32)
    bits = bits.reshape(16, 8, order="F")
    assert (bits[0] == 0x7F800000).all()
    assert (bits[1] == 0x7FFFFFFF).all()
    # Subnormal operands count.
    assert (bits[2].view(np.float32) == 7 * 2.0**-24 + 2.0**-48).all()


def test_undefined_operands_spoil_their_row_and_column_only() -> None:
    body = (
        # Lanes 0-3 leave row 0 of A undefined.
        "setp.lt.u32 %p1, %tid4, 16;\n@!%p1 mov.b32 %r1, %a0;\n"
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%d0, %d1, %d2, %d3}, {%r1, %a0}, {%a0},"
        " {%a0, %a0, %a0, %a0};"
    )
    ptx = text(body, 1, 4)
    lines = ptx.replace("st.global.b32 [%dst], %d0", "@!%p1 st.global.b32 [%dst], %d0")
    data = np.full((1, 32), 0x3C003C00, np.uint32)
    with pytest.raises(Fault, match="%d1") as fault:
        execute(lines, data, 4)
    assert fault.value.kind == "uninitialised"
    execute(lines.replace("[%dst], %d1", "[%dst], %a0"), data, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32",
        "mma.sync.aligned.m16n8k8.row.col.f16.bf16.bf16.f16",
        "mma.sync.aligned.m16n8k16.col.col.f32.f16.f16.f32",
        "mma.sync.aligned.m16n8k16.row.col.satfinite.f32.f16.f16.f32",
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16",
    ],
)
def test_unknown_products_are_refused(wrong: str) -> None:
    d = registers("d", 4)
    body = f"{wrong} {d}, {registers('a', 4)}, {registers('a', 2)}, {d};"
    with pytest.raises(SyntaxError, match="line"):
        execute(text(body, 4, 4), np.zeros((4, 32), np.uint32), 4)


def test_the_whole_warp_must_take_part() -> None:
    body = (
        "setp.eq.u32 %p1, %tid4, 0;\n@%p1 exit;\n"
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%d0, %d1, %d2, %d3}, {%a0, %a0}, {%a0},"
        " {%a0, %a0, %a0, %a0};"
    )
    with pytest.raises(Fault) as fault:
        execute(text(body, 1, 4), np.zeros((1, 32), np.uint32), 4)
    assert fault.value.kind == "divergence"


# --- ldmatrix, stmatrix, movmatrix ----------------------------------------------------------------

# Row r of matrix j lies at byte 16 * PLACE[8 j + r] of the buffer: in no order at all.
PLACE = np.random.default_rng(5).permutation(32)


def row_address() -> str:
    """%r1 = buffer + 16 * %a0."""
    return "shl.b32 %r2, %a0, 4; mov.u32 %r1, buffer; add.u32 %r1, %r1, %r2;\n"


@pytest.mark.parametrize("order", ["x{n}{t}.m8n8", "m8n8.x{n}{t}", "m8n8{t}.x{n}"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("matrices", [1, 2, 4])
def test_ldmatrix(matrices: int, transposed: bool, order: str) -> None:
    modifiers = order.format(n=matrices, t=".trans" if transposed else "")
    # %a1 ... %a4 fill the buffer: register i of thread t is word 32 i + t.
    stores = "mov.u32 %r3, buffer; add.u32 %r3, %r3, %tid4;\n" + "".join(
        f"st.shared.b32 [%r3+{128 * i}], %a{1 + i};\n" for i in range(4)
    )
    body = (
        stores + row_address() + "bar.warp.sync 0xffffffff;\n"
        f"ldmatrix.sync.aligned.{modifiers}.shared.b16 {registers('d', matrices)}, [%r1];"
    )
    data = np.random.default_rng(1).integers(0, 1 << 16, (32, 8), np.uint16)
    rows = PLACE.copy()
    rows[8 * matrices :] = 1 << 20  # addresses that nobody looks at
    inputs = np.concatenate([rows[None].astype(np.uint32), data.view(np.uint32).reshape(4, 32)])
    words, report = execute(text(body, 5, matrices, shared=512), inputs, matrices)
    for j in range(matrices):
        matrix = data[PLACE[8 * j : 8 * j + 8]]
        expected = (matrix.T if transposed else matrix).reshape(32, 2)
        np.testing.assert_array_equal(words[j].view(np.uint16).reshape(32, 2), expected)
    assert report["matrix_load"]["ideal"] == matrices


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("matrices", [1, 2, 4])
def test_stmatrix(matrices: int, transposed: bool) -> None:
    t = ".trans" if transposed else ""
    values = registers("a", matrices, 1)
    clear = "mov.u32 %r3, buffer; add.u32 %r3, %r3, %tid4; mov.b32 %r4, 0;\n" + "".join(
        f"st.shared.b32 [%r3+{128 * i}], %r4;\n" for i in range(4)
    )
    body = (
        clear + row_address() + "bar.warp.sync 0xffffffff;\n"
        f"stmatrix.sync.aligned.m8n8.x{matrices}{t}.shared.b16 [%r1], {values};\n"
        "bar.warp.sync 0xffffffff;\n"
        + "".join(f"ld.shared.b32 %d{i}, [%r3+{128 * i}];\n" for i in range(4))
    )
    data = np.random.default_rng(2).integers(0, 1 << 16, (4, 32, 2), np.uint16)
    inputs = np.concatenate([PLACE[None].astype(np.uint32), data.view(np.uint32)[..., 0]])
    words, _ = execute(text(body, 5, 4, shared=512), inputs, 4)
    expected = np.zeros((32, 8), np.uint16)
    for j in range(matrices):
        matrix = data[j].reshape(8, 8)
        expected[PLACE[8 * j : 8 * j + 8]] = matrix.T if transposed else matrix
    np.testing.assert_array_equal(words.view(np.uint16).reshape(32, 8), expected)


def test_movmatrix_transposes() -> None:
    data = np.arange(64, dtype=np.uint16).reshape(8, 8)
    body = "movmatrix.sync.aligned.m8n8.trans.b16 %d0, %a0;"
    words, _ = execute(text(body, 1, 1), data.reshape(1, 64).view(np.uint32), 1)
    np.testing.assert_array_equal(words.view(np.uint16).reshape(8, 8), data.T)


def test_ldmatrix_counts_bank_conflicts() -> None:
    body = row_address() + "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%d0}, [%r1];"
    ptx = text(body, 1, 1, shared=8192)
    for step, wavefronts in ((1, 1), (4, 4), (8, 8), (9, 1)):
        rows = (np.arange(32) % 8 * step).astype(np.uint32)[None]
        _, report = execute(ptx, rows, 1, checks=False)
        assert report["matrix_load"]["wavefronts"] == wavefronts


@pytest.mark.parametrize(
    ("address", "kind"),
    [("add.u32 %r1, %r1, 8;", "alignment"), ("mov.u32 %r1, 1 << 20;", "bounds")],
)
def test_ldmatrix_faults(address: str, kind: str) -> None:
    body = row_address() + address + "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%d0}, [%r1];"
    with pytest.raises(Fault) as fault:
        execute(text(body, 1, 1, shared=512), np.zeros((1, 32), np.uint32), 1)
    assert fault.value.kind == kind


def test_ldmatrix_of_unwritten_rows_is_undefined() -> None:
    body = row_address() + "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%d0}, [%r1];"
    with pytest.raises(Fault, match="%d0") as fault:
        execute(text(body, 1, 1, shared=512), np.zeros((1, 32), np.uint32), 1)
    assert fault.value.kind == "uninitialised"
