"""tcgen05 (sm_100a): descriptors, scale factors and the order of asynchronous operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.ptxsim import Fault, SyntaxError, compile_cuda, cute, has_nvcc, run
from tests.ptxsim.cute_blackwell import (
    FP4_TILES,
    FP8_TILES,
    INSTRUCTION,
    SCALE_ATOM,
    SCALE_TENSOR,
    TILES,
)
from tests.ptxsim.test_block_scaled import VALUES, codes_of
from tests.ptxsim.warp_kernel import execute, registers, text

POLICIES = ["eager", "late", "random"]
THREADS = 128
# Shared memory: A, B, the scale factors of both, then barriers and the address of tensor memory.
SPAN, SCALES = 16384, 2048
B_AT, SCALE_A_AT, SCALE_B_AT = SPAN, 2 * SPAN, 2 * SPAN + SCALES
IMAGE = 2 * SPAN + 2 * SCALES
SHARED = IMAGE + 64
WORDS = IMAGE // (4 * THREADS)
# Columns of tensor memory: D from 0, then scale factors and what tests put there.
SCALE_A, SCALE_B, OTHER = 256, 272, 320
SCALE_DESCRIPTOR = 0x0000400800000000  # rows of 16 bytes, eight of them side by side

BITS = {"f16": 16, "bf16": 16, "e4m3": 8, "e5m2": 8, "e2m1": 4}
DTYPES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}
with np.errstate(invalid="ignore"):  # all codes, signalling NaNs too
    VALUES = VALUES | {
        kind: np.arange(1 << 16, dtype=np.uint16).view(dtype).astype(np.float64)
        for kind, dtype in DTYPES.items()
    }


def operand(rng: np.random.Generator, shape: tuple[int, int], kind: str) -> np.ndarray:
    """Return the codes of random values of all sizes."""
    if kind not in DTYPES:
        return codes_of(rng, shape, kind)
    values = rng.standard_normal(shape) * 2.0 ** rng.integers(-3, 4, shape)
    return values.astype(DTYPES[kind]).view(np.uint16)


def image_of(codes: np.ndarray, place: np.ndarray, bits: int, swizzle: int | None) -> np.ndarray:
    """Return SPAN bytes of noise with the elements at `place`, in elements, then swizzled."""
    image = np.random.default_rng(9).integers(0, 256, SPAN).astype(np.uint8)
    if bits == 4:
        at = cute.swizzle(place // 2, swizzle)
        shift = (place % 2 * 4).astype(np.uint8)
        for nibble in (0, 4):
            of = shift == nibble
            image[at[of]] &= 0xF0 >> nibble
            image[at[of]] |= codes[of].astype(np.uint8) << nibble
        return image
    at = cute.swizzle(place * (bits // 8), swizzle)
    for b in range(bits // 8):
        image[at + b] = (codes >> 8 * b).astype(np.uint8)
    return image


@dataclass
class Matrix:
    """An operand in shared memory: codes `[rows, k]` laid out as CuTe prints it."""

    codes: np.ndarray
    kind: str
    layout: str
    descriptor: int
    swizzle: int | None
    # From one instruction to the next along k.
    step: int = 32

    def image(self) -> np.ndarray:
        rows, k = self.codes.shape
        place = cute.offsets(self.layout)[:rows, :k]
        return image_of(self.codes, place, BITS[self.kind], self.swizzle)

    def values(self) -> np.ndarray:
        return VALUES[self.kind][self.codes]


def tile(rng: np.random.Generator, rows: int, kind: str, major: str, swizzle: int | None) -> Matrix:
    tiles = {16: TILES, 8: FP8_TILES, 4: FP4_TILES}[BITS[kind]]
    layout, descriptor = tiles[major, swizzle]
    if rows > 128:
        layout = layout.replace("(128,", f"({rows},", 1)
    k = cute.offsets(layout).shape[1]
    return Matrix(operand(rng, (rows, k), kind), kind, layout, descriptor, swizzle)


@dataclass
class Scales:
    """Factors of one operand `[128, all]` in atoms of four per row, and where they go."""

    codes: np.ndarray
    kind: str
    length: int  # elements of k that share one

    def image(self) -> np.ndarray:
        image = np.zeros(SCALES, np.uint8)
        atom = cute.offsets(SCALE_ATOM[self.length])[:, :: self.length]
        for i in range(self.codes.shape[1] // 4):
            image[512 * i + atom] = self.codes[:, 4 * i : 4 * i + 4]
        return image

    def spread(self) -> np.ndarray:
        return np.repeat(VALUES[self.kind][self.codes], self.length, axis=1)


FILL = (
    "mov.u32 %r0, buffer; add.u32 %r0, %r0, %tid4;\n"
    + "".join(f"st.shared.b32 [%r0+{4 * THREADS * i}], %a{i};\n" for i in range(WORDS))
    + "fence.proxy.async.shared::cta;\n"
)
BARRIER, SLOT = f"buffer+{IMAGE}", f"buffer+{IMAGE + 32}"
# %p1: warp 0; %p2: thread 0; %r10: the address of tensor memory; %r11: of this warp's rows.
SETUP = (
    "setp.lt.u32 %p1, %tid4, 128; setp.eq.u32 %p2, %tid4, 0;\n"
    f"@%p2 mbarrier.init.shared::cta.b64 [{BARRIER}], 1;\n"
    f"@%p2 mbarrier.init.shared::cta.b64 [{BARRIER}+8], 1;\n"
    f"@%p1 tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [{SLOT}], 512;\n"
    "bar.sync 0;\n"
    f"ld.shared.b32 %r10, [{SLOT}];\n"
    "and.b32 %r11, %tid4, 0x180; shl.b32 %r11, %r11, 14; add.u32 %r11, %r11, %r10;\n"
)
DEALLOC = "bar.sync 0;\n@%p1 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r10, 512;\n"
AFTER = "tcgen05.fence::after_thread_sync;\n"
BEFORE = "tcgen05.fence::before_thread_sync;\n"
WAIT_LD = "tcgen05.wait::ld.sync.aligned;\n"
WAIT_ST = "tcgen05.wait::st.sync.aligned;\n"


def commit(barrier: int = 0) -> str:
    return (
        "@%p2 tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 "
        f"[{BARRIER}+{8 * barrier}];\n"
    )


def wait(barrier: int = 0, phase: int = 0) -> str:
    """Every thread waits for a phase of a barrier."""
    wait.labels += 1  # type: ignore[attr-defined]
    label = f"WAIT{wait.labels}"  # type: ignore[attr-defined]
    return (
        f"{label}: mbarrier.try_wait.parity.shared::cta.b64 %p3, "
        f"[{BARRIER}+{8 * barrier}], {phase};\n@!%p3 bra {label};\n"
    )


wait.labels = 0  # type: ignore[attr-defined]


def descriptor(name: str, at: int, bits: int) -> str:
    return (
        f"mov.u32 %r1, buffer; add.u32 %r1, %r1, {at}; shr.u32 %r1, %r1, 4;\n"
        f"cvt.u64.u32 {name}, %r1; or.b64 {name}, {name}, {bits:#x};\n"
    )


def copy_scales(at: int, column: int, atoms: int) -> str:
    return "".join(
        descriptor("%rd5", at + 512 * i, SCALE_DESCRIPTOR)
        + "@%p2 tcgen05.cp.cta_group::1.32x128b.warpx4 "
        + f"[%r10+{column + 4 * i}], %rd5;\n"
        for i in range(atoms)
    )


def product(
    kind: str, idesc: int, accumulate: bool, *, d: int = 0, a: str = "%rd1", b: str = "%rd2",
    more: str = "", guard: str = "@%p2",
) -> str:  # fmt: skip
    return (
        f"mov.b32 %r2, {idesc:#x}; setp.ne.u32 %p4, {int(accumulate)}, 0;\n"
        f"{guard} tcgen05.mma.cta_group::1.{kind} [%r10+{d}], {a}, {b}, %r2, {more}%p4;\n"
    )


def load(count: int, column: int = 0, first: int = 0) -> str:
    return (
        f"tcgen05.ld.sync.aligned.32x32b.x{count}.b32 {registers('d', count, first)}, "
        f"[%r11+{column}];\n"
    )


def store(count: int, column: int, name: str = "a") -> str:
    return (
        f"tcgen05.st.sync.aligned.32x32b.x{count}.b32 [%r11+{column}], {registers(name, count)};\n"
    )


def simulate(
    body: str, images: Sequence[np.ndarray], outputs: int, **options: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """Run `body` with the images in shared memory; return `[threads, outputs]`."""
    image = np.concatenate([*images, np.zeros(IMAGE, np.uint8)])[:IMAGE]
    inputs = image.view(np.uint32).reshape(WORDS, THREADS)
    ptx = text(FILL + SETUP + body + DEALLOC, WORDS, outputs, target="sm_100a", shared=SHARED)
    words, report = execute(ptx, inputs, outputs, **options)
    return words.T, report


def read_all(n: int) -> str:
    """Load columns 0 ... n - 1 of D into %d0 ..."""
    sizes = [1 << i for i in range(7, -1, -1)]
    result, column = "", 0
    for size in sizes:
        while n - column >= size:
            result += load(size, column, column)
            column += size
    return result + WAIT_LD


@dataclass
class Product:
    kind: str
    idesc: int
    a: Matrix
    b: Matrix
    scales: tuple[Scales, Scales] | None = None
    negative: bool = False
    half: bool = False
    descriptors: list[int] = field(default_factory=list)  # one per step, if they differ

    def body(self) -> str:
        """PTX up to the moment when every warp may load D."""
        bits = BITS[self.a.kind]
        steps = self.a.codes.shape[1] * bits // 256
        result, more = "", ""
        if self.scales is not None:
            atoms = self.scales[0].codes.shape[1] // 4
            result += copy_scales(SCALE_A_AT, SCALE_A, atoms)
            result += copy_scales(SCALE_B_AT, SCALE_B, atoms)
        for i in range(steps):
            result += descriptor("%rd1", i * self.a.step, self.a.descriptor)
            result += descriptor("%rd2", B_AT + i * self.b.step, self.b.descriptor)
            if self.scales is not None:
                per = 256 // bits // self.scales[0].length  # factors of a row in one instruction
                column = i * per // 4 * 4
                more = f"[%r10+{SCALE_A + column}], [%r10+{SCALE_B + column}], "
            idesc = self.descriptors[i] if self.descriptors else self.idesc
            result += product(self.kind, idesc, i > 0, more=more)
        return result + commit() + wait() + AFTER

    def images(self) -> list[np.ndarray]:
        images = [self.a.image(), self.b.image()]
        if self.scales is not None:
            images += [self.scales[0].image(), self.scales[1].image()]
        return images

    def exact(self) -> np.ndarray:
        a, b = self.wide()
        return a @ b.T

    def wide(self) -> tuple[np.ndarray, np.ndarray]:
        a, b = self.a.values(), self.b.values()
        if self.scales is not None:
            a = a * self.scales[0].spread()[:, : a.shape[1]]
            b = b * self.scales[1].spread()[: len(b), : b.shape[1]]
        return (-a if self.negative else a), b

    def bound(self) -> np.ndarray:
        """Return the error of one rounding to f32 per instruction, for every element of D."""
        a, b = self.wide()
        steps = self.a.codes.shape[1] * BITS[self.a.kind] // 256
        result: np.ndarray = 2.0**-24 * steps * (np.abs(a) @ np.abs(b).T)
        return result

    def check(self, **options: Any) -> dict[str, Any]:
        n = len(self.b.codes)
        words, report = simulate(self.body() + read_all(n), self.images(), n, **options)
        a, b = self.wide()
        scale = np.abs(a) @ np.abs(b).T
        if self.half:
            got = words.astype(np.uint16).view(np.float16).astype(np.float64)
            assert (words < 1 << 16).all()
            bound = 2.0**-11 * scale
        else:
            got = words.view(np.float32).astype(np.float64)
            bound = self.bound()
        assert np.abs(got).max() > 1e-3
        assert (np.abs(got - a @ b.T) <= bound).all()
        assert report["matrix_flops"] == 2 * 128 * n * self.a.codes.shape[1]
        assert report["warnings"] == {}
        return report


# --- kind::f16 and kind::f8f6f4 -------------------------------------------------------------------


@pytest.mark.parametrize("b_swizzle", [None, 32, 64, 128])
@pytest.mark.parametrize("b_major", ["K", "MN"])
@pytest.mark.parametrize("a_swizzle", [None, 32, 64, 128])
@pytest.mark.parametrize("a_major", ["K", "MN"])
def test_operands_in_shared_memory(
    a_major: str, a_swizzle: int | None, b_major: str, b_swizzle: int | None
) -> None:
    rng = np.random.default_rng(1)
    a = tile(rng, 128, "bf16", a_major, a_swizzle)
    b = tile(rng, 128, "bf16", b_major, b_swizzle)
    k = min(a.codes.shape[1], b.codes.shape[1])
    a.codes, b.codes = a.codes[:, :k], b.codes[:, :k]
    idesc = INSTRUCTION["f16 f16 f32 128"] | 1 << 7 | 1 << 10
    idesc |= (a_major == "MN") << 15 | (b_major == "MN") << 16
    Product("kind::f16", idesc, a, b).check(policy="late")


@pytest.mark.parametrize("policy", POLICIES)
def test_products_accumulate_over_a_row_of_the_swizzle(policy: str) -> None:
    rng = np.random.default_rng(2)
    a, b = (tile(rng, 128, "f16", "K", 128) for _ in range(2))
    Product("kind::f16", INSTRUCTION["f16 f16 f32 128"], a, b).check(policy=policy, seed=3)


@pytest.mark.parametrize(
    ("name", "a", "b"),
    [
        ("bf16 bf16 f32 64, B along N", ("bf16", "K", 32), ("bf16", "MN", 128)),
        ("bf16 bf16 f32 256, A along M", ("bf16", "MN", 64), ("bf16", "K", 32)),
        ("f16 f16 f16 8", ("f16", "K", 32), ("f16", "K", 32)),
        ("bf16 bf16 f32 32, -A", ("bf16", "K", 32), ("bf16", "K", 32)),
        ("bf16 bf16 f32 32, -B", ("bf16", "K", 32), ("bf16", "K", 32)),
        ("e4m3 e5m2 f32 96", ("e4m3", "K", 128), ("e5m2", "K", 128)),
    ],
)
def test_instruction_descriptors(name: str, a: tuple[Any, ...], b: tuple[Any, ...]) -> None:
    rng = np.random.default_rng(3)
    n = int(name.split(",")[0].split()[3])
    kind = "kind::f8f6f4" if BITS[a[0]] == 8 else "kind::f16"
    right = tile(rng, max(n, 128), *b)
    right.codes = right.codes[:n]
    p = Product(kind, INSTRUCTION[name], tile(rng, 128, *a), right)
    p.negative, p.half = "-" in name, p.idesc >> 4 & 3 == 0
    p.check()


@pytest.mark.parametrize("swizzle", [None, 128])
def test_bytes_along_n(swizzle: int | None) -> None:
    rng = np.random.default_rng(4)
    a, b = tile(rng, 128, "e4m3", "K", 128), tile(rng, 128, "e5m2", "MN", swizzle)
    a.codes, b.codes = a.codes[:, :32], b.codes[:96]
    idesc = INSTRUCTION["e4m3 e5m2 f32 96"] | 1 << 16
    Product("kind::f8f6f4", idesc, a, b).check()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["bf16", "e4m3"])
def test_a_in_tensor_memory(kind: str, policy: str) -> None:
    rng = np.random.default_rng(5)
    a = operand(rng, (128, 256 // BITS[kind]), kind)
    b = tile(rng, 128, kind, "K", 128)
    b.codes = b.codes[:, : 256 // BITS[kind]]
    idesc = INSTRUCTION["f16 f16 f32 128"] | (1 << 7 | 1 << 10 if kind == "bf16" else 0)
    # Thread t has row t: its words are those of %a<i> as the registers of the image.
    image = np.zeros((8, THREADS), np.uint32)
    image[:] = np.ascontiguousarray(a).view(np.uint32).T
    body = (
        store(8, OTHER) + WAIT_ST + BEFORE + "bar.sync 0;\n" + AFTER
        + descriptor("%rd2", B_AT, b.descriptor)
        + product("kind::f16" if kind == "bf16" else "kind::f8f6f4", idesc, False,
                  a=f"[%r10+{OTHER}]")
        + commit() + wait() + AFTER + read_all(128)
    )  # fmt: skip
    first = np.concatenate([image.view(np.uint8).ravel(), np.zeros(SPAN, np.uint8)])[:SPAN]
    words, _ = simulate(body, [first, b.image()], 128, policy=policy, seed=1)
    exact = VALUES[kind][a] @ b.values().T
    bound = 2.0**-23 * (np.abs(VALUES[kind][a]) @ np.abs(b.values()).T)
    assert (np.abs(words.view(np.float32) - exact) <= bound).all()


def test_masked_rows_stay() -> None:
    rng = np.random.default_rng(6)
    a, b = (tile(rng, 128, "f16", "K", 32) for _ in range(2))
    mask = "mov.b32 %r5, 0x80000001; mov.b32 %r6, 0; mov.b32 %r7, 0xffff0000; mov.b32 %r8, 0;\n"
    p = Product("kind::f16", INSTRUCTION["f16 f16 f32 128"], a, b)
    again = p.body().replace("%r2, %p4", "%r2, {%r5, %r6, %r7, %r8}, %p4")
    again = again.replace("WAIT", "LAST").replace("], 0;", "], 1;").replace("4, 0, 0", "4, 1, 0")
    # The barrier keeps the slower warps' wait from seeing the second phase.
    words, _ = simulate(p.body() + "bar.sync 0;\n" + mask + again + read_all(128), p.images(), 128)
    exact = p.exact().astype(np.float32)
    twice = (2 * exact.astype(np.float64)).astype(np.float32)
    stays = [0, 31, *range(80, 96)]
    got = words.view(np.float32)
    np.testing.assert_array_equal(got[stays], exact[stays])
    rest = np.setdiff1d(np.arange(128), stays)
    np.testing.assert_allclose(got[rest], twice[rest], rtol=1e-5, atol=1e-4)


# --- block scaling --------------------------------------------------------------------------------


def scales_of(rng: np.random.Generator, kind: str, length: int, k: int) -> Scales:
    count = -(-k // length // 4) * 4
    return Scales(codes_of(rng, (128, count), kind), kind, length)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("swizzle", [32, 64, 128])
@pytest.mark.parametrize("vector", ["scale_vec::4X", "block16"])
def test_nvfp4(vector: str, swizzle: int, policy: str) -> None:
    rng = np.random.default_rng(swizzle)
    a, b = (tile(rng, 128, "e2m1", "K", swizzle) for _ in range(2))
    k = a.codes.shape[1]
    scales = (scales_of(rng, "ue4m3", 16, k), scales_of(rng, "ue4m3", 16, k))
    idesc = INSTRUCTION["e2m1 e2m1 ue4m3 128"]
    Product(f"kind::mxf4nvf4.block_scale.{vector}", idesc, a, b, scales).check(
        policy=policy, seed=2
    )


@pytest.mark.parametrize("n", [8, 64, 96])
def test_nvfp4_of_fewer_columns(n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = (tile(rng, 128, "e2m1", "K", 64) for _ in range(2))
    b.codes = b.codes[:n]
    scales = (scales_of(rng, "ue4m3", 16, 128), scales_of(rng, "ue4m3", 16, 128))
    idesc = INSTRUCTION["e2m1 e2m1 ue4m3 64"] & ~(63 << 17) | n // 8 << 17
    assert n != 64 or idesc == INSTRUCTION["e2m1 e2m1 ue4m3 64"]
    Product("kind::mxf4nvf4.block_scale.block16", idesc, a, b, scales).check()


@pytest.mark.parametrize(
    "kind",
    ["kind::mxf4.block_scale", "kind::mxf4.block_scale.block32",
     "kind::mxf4nvf4.block_scale.scale_vec::2X"],
)  # fmt: skip
def test_two_factors_per_instruction(kind: str) -> None:
    rng = np.random.default_rng(7)
    a, b = (tile(rng, 128, "e2m1", "K", 64) for _ in range(2))
    scales = (scales_of(rng, "ue8m0", 32, 128), scales_of(rng, "ue8m0", 32, 128))
    high = INSTRUCTION["e2m1 e2m1 ue8m0 128, ids 2 2"]
    low = high & ~(3 << 4 | 3 << 29)
    Product(kind, high, a, b, scales, descriptors=[low, high]).check()


def test_mxfp8() -> None:
    rng = np.random.default_rng(8)
    a, b = tile(rng, 128, "e4m3", "K", 128), tile(rng, 128, "e5m2", "K", 128)
    scales = (scales_of(rng, "ue8m0", 32, 128), scales_of(rng, "ue8m0", 32, 128))
    bare = INSTRUCTION["e4m3 e5m2 ue8m0 128, ids 1 3"] & ~(3 << 4 | 3 << 29)
    steps = [bare | i << 4 | i << 29 for i in range(4)]
    Product("kind::mxf8f6f4.block_scale", bare, a, b, scales, descriptors=steps).check()
    # The ids of A and B are their own: swap those of two steps of A.
    steps = [bare | i << 4 | (i ^ 1) << 29 for i in range(4)]
    p = Product("kind::mxf8f6f4.block_scale.block32", bare, a, b, scales, descriptors=steps)
    printed = INSTRUCTION["e4m3 e5m2 ue8m0 128, ids 1 3"]
    assert bare | 3 << 4 | 1 << 29 == printed
    swapped = scales[0].codes[:, [1, 0, 3, 2]]
    words, _ = simulate(p.body() + read_all(128), p.images(), 128)
    p.scales = (Scales(swapped, "ue8m0", 32), scales[1])
    assert (np.abs(words.view(np.float32) - p.exact()) <= p.bound()).all()


@pytest.mark.parametrize(("length", "rows"), list(SCALE_TENSOR))
def test_where_scale_factors_lie(length: int, rows: int) -> None:
    """Copies put factors where CuTe expects them, in every quarter of tensor memory."""
    rng = np.random.default_rng(9)
    parts = [scales_of(rng, "ue8m0", length, 4 * length) for _ in range(rows // 128)]
    body = "".join(copy_scales(SCALE_A_AT + SCALES * i, 4 * i, 1) for i in range(len(parts)))
    count = 4 * len(parts)
    body += commit() + wait() + AFTER + load(count) + WAIT_LD
    blank = np.zeros(SPAN, np.uint8)
    images = [blank, blank, *(p.image() for p in parts)]
    words, _ = simulate(body, images, count, policy="random", seed=1)
    tensor = np.ascontiguousarray(words).view(np.uint8)
    at = cute.offsets(flat(SCALE_TENSOR[length, rows]))
    codes = np.concatenate([p.codes for p in parts])
    for copy in range(4):
        of = slice(copy * rows, (copy + 1) * rows)
        for k in range(0, at.shape[1], length):
            row, byte = at[of, k] >> 18, at[of, k] & 0x3FFFF
            np.testing.assert_array_equal(tensor[row, byte], codes[:, k // length])


def flat(layout: str) -> str:
    """Join nested modes of the first dimension: "(((32,4),4),(16,4))" to "((32,4,4),(16,4))"."""
    shape, stride = layout.split(":")
    return ":".join("((" + part[3:].replace("),", ",", 1) for part in (shape, stride))


@pytest.mark.parametrize(("shape", "width"), [("128x128b", 16), ("128x256b", 32)])
def test_wide_copies(shape: str, width: int) -> None:
    data = np.random.default_rng(10).integers(0, 256, (128, width)).astype(np.uint8)
    image = np.zeros(SPAN, np.uint8)
    # Chunks of 16 bytes of eight rows side by side; the second column of chunks follows all rows.
    row, byte = np.arange(128)[:, None], np.arange(width)[None]
    image[row % 8 * 16 + row // 8 * 128 + byte // 16 * 2048 + byte % 16] = data
    body = (
        descriptor("%rd5", 0, SCALE_DESCRIPTOR | 2048 >> 4 << 16)
        + f"@%p2 tcgen05.cp.cta_group::1.{shape} [%r10+{OTHER}], %rd5;\n"
        + commit() + wait() + AFTER + load(width // 4, OTHER) + WAIT_LD
    )  # fmt: skip
    words, _ = simulate(body, [image], width // 4)
    np.testing.assert_array_equal(np.ascontiguousarray(words).view(np.uint8), data)


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16, 32, 64])
def test_loads_and_stores(count: int) -> None:
    rng = np.random.default_rng(count)
    data = rng.integers(0, 1 << 32, (WORDS, THREADS), np.uint32)
    body = store(count, 7) + WAIT_ST + load(count, 7) + WAIT_LD
    words, _ = simulate(body, [data.view(np.uint8).ravel()], count)
    np.testing.assert_array_equal(words, data[:count].T)


# --- order ----------------------------------------------------------------------------------------

ONE = tile(np.random.default_rng(11), 128, "f16", "K", 32)
IDESC = INSTRUCTION["f16 f16 f32 128"]
DESCRIPTORS = descriptor("%rd1", 0, ONE.descriptor) + descriptor("%rd2", B_AT, ONE.descriptor)
START = DESCRIPTORS + product("kind::f16", IDESC, False)
DONE = commit() + wait() + AFTER
FP4 = "kind::mxf4nvf4.block_scale.block16"
SCALED = INSTRUCTION["e2m1 e2m1 ue4m3 128"]
AT_SCALES = f"[%r10+{SCALE_A}], [%r10+{SCALE_B}], "
# A barrier that the other warps see this one at, with the fences that tcgen05 needs.
HANDOVER = BEFORE + "bar.sync 0;\n" + AFTER


def attempt(body: str, outputs: int = 1, **options: Any) -> dict[str, Any]:
    zero = "".join(f"mov.b32 %d{i}, 0;\n" for i in range(outputs))
    images = [ONE.image(), ONE.image(), np.full(2 * SCALES, 0x38, np.uint8)]
    _, report = simulate(zero + body, images, outputs, **options)
    return report


LEGAL = {
    "ld": START + DONE + load(1) + WAIT_LD,
    "two products, one accumulator":
        START + product("kind::f16", IDESC, True) + DONE + load(1) + WAIT_LD,
    "a later commit covers earlier products":
        START + commit(0) + product("kind::f16", IDESC, True, d=128).replace("1, 0;", "0, 0;")
        + commit(1) + wait(1) + AFTER + load(1) + WAIT_LD + wait(0),
    "a copy of a loaded register": START + DONE + load(1) + "mov.b32 %r5, %d0;\n" + WAIT_LD,
    "ld, then overwritten":
        START + DONE + load(1) + WAIT_LD + HANDOVER + product("kind::f16", IDESC, False)
        + commit() + wait(0, 1),
    "copies, then a product":
        DESCRIPTORS + copy_scales(SCALE_A_AT, SCALE_A, 1) + copy_scales(SCALE_B_AT, SCALE_B, 1)
        + product(FP4, SCALED, False, more=AT_SCALES) + DONE,
    "a copy by another thread":
        DESCRIPTORS
        + (copy_scales(SCALE_A_AT, SCALE_A, 1) + copy_scales(SCALE_B_AT, SCALE_B, 1))
        .replace("@%p2", "@%p5").replace("mov.u32 %r1", "setp.eq.u32 %p5, %tid4, 128; mov.u32 %r1")
        + commit(1).replace("@%p2", "@%p5") + HANDOVER
        + product(FP4, SCALED, False, more=AT_SCALES) + DONE + wait(1),
    "shared memory is written after the wait":
        START + DONE + "st.shared.b32 [%r0], %r0;\n",
}  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", LEGAL)
def test_what_is_in_order(name: str, policy: str) -> None:
    assert attempt(LEGAL[name], policy=policy, seed=4)["warnings"] == {}


def without(body: str, *parts: str) -> str:
    for part in parts:
        assert part in body
        body = body.replace(part, "")
    return body


# By the warp that also issues the products.
FIRST_LOADS = "@%p1 " + load(1) + "@%p1 " + WAIT_LD
OVERWRITES = "bar.sync 0;\nst.shared.b32 [%r0], %r0;\n"
UNORDERED = {
    # Loads before the product is complete, or known to be.
    "no commit": (START + FIRST_LOADS + DONE, "async"),
    "no wait": (START + commit() + AFTER + FIRST_LOADS + wait(), "async|race"),
    "no fence after the wait": (START + commit() + wait() + load(1) + WAIT_LD + AFTER, "async"),
    "the other barrier":
        (START + commit(0) + "bar.sync 0;\n@%p2 mbarrier.arrive.shared::cta.b64 %rd9, "
         f"[{BARRIER}+8];\n" + wait(1) + AFTER + load(1) + WAIT_LD + wait(), "async|race"),
    # Registers.
    "no wait::ld": (START + DONE + load(1) + "add.u32 %r5, %d0, 1;\n" + WAIT_LD, "async"),
    "written before wait::ld": (START + DONE + load(1) + "mov.b32 %d0, 1;\n" + WAIT_LD, "async"),
    # Between loads, stores and products.
    "no wait::st": (store(1, OTHER) + load(1, OTHER) + WAIT_ST + WAIT_LD, "async"),
    "wait::ld instead of wait::st":
        (store(1, OTHER) + WAIT_LD + load(1, OTHER) + WAIT_LD + WAIT_ST, "async"),
    "wait::st instead of wait::ld":
        (START + DONE + load(1) + WAIT_ST + HANDOVER + product("kind::f16", IDESC, False)
         + WAIT_LD + commit() + wait(0, 1), "async"),
    "ld not waited for":
        (START + DONE + load(1) + HANDOVER + product("kind::f16", IDESC, False) + WAIT_LD
         + commit() + wait(0, 1), "async"),
    "no fence before the barrier":
        (START + DONE + load(1) + WAIT_LD + "bar.sync 0;\n" + AFTER
         + product("kind::f16", IDESC, False) + commit() + wait(0, 1), "async"),
    "no fence after the barrier":
        (START + DONE + load(1) + WAIT_LD + BEFORE + "bar.sync 0;\n"
         + product("kind::f16", IDESC, False) + commit() + wait(0, 1), "async"),
    "no barrier":
        (START + DONE + load(1) + WAIT_LD + BEFORE + AFTER
         + product("kind::f16", IDESC, False) + commit(1) + wait(1), "async|race"),
    # Products that form no pipeline.
    "another shape":
        (START + product("kind::f16", INSTRUCTION["f16 f16 f32 128"] & ~(63 << 17) | 8 << 17, True)
         + DONE, "async"),
    "a result as an operand":
        (START + product("kind::f16", IDESC, False, d=128, a="[%r10]") + DONE, "async"),
    "copy by another thread without fences":
        (without(LEGAL["a copy by another thread"], BEFORE, AFTER), "async|race"),
    # Shared memory.
    "an operand is overwritten": (START + commit() + OVERWRITES + wait(), "async|race"),
    "an operand without a commit": (START + OVERWRITES + DONE, "async"),
    "an operand without a proxy fence":
        (OVERWRITES + "bar.sync 0;\n" + START + DONE, "proxy"),
    # The end.
    "never committed": (START, "async"),
    "deallocated too early": (START + commit(), "async"),
    "ld without a wait at the end": (START + DONE + load(1).replace("%d0", "%r6"), "async"),
}  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", UNORDERED)
def test_what_is_out_of_order(name: str, policy: str) -> None:
    body, kinds = UNORDERED[name]
    with pytest.raises(Fault, match=r"PTX line|shared byte") as fault:
        attempt(body, policy=policy, seed=5)
    assert fault.value.kind in kinds.split("|")


def test_usual_but_not_guaranteed() -> None:
    again = copy_scales(SCALE_A_AT, SCALE_A, 1)
    body = LEGAL["copies, then a product"].replace(DONE, again + DONE)
    (warning,) = attempt(body)["warnings"]
    assert "only a commit guarantees" in warning


# --- misuse ---------------------------------------------------------------------------------------

UNWRITTEN = DESCRIPTORS + product(FP4, SCALED, False, more=AT_SCALES) + DONE
BOTH_SCALES = copy_scales(SCALE_A_AT, SCALE_A, 1) + copy_scales(SCALE_B_AT, SCALE_B, 1)
MISUSE = {
    "accumulates on nothing": (START.replace("4, 0, 0", "4, 1, 0") + DONE, "uninitialised"),
    "no scale factors": (UNWRITTEN, "uninitialised"),
    "reads what nobody wrote": (load(1) + WAIT_LD, "uninitialised"),
    "scale factors differ":
        (BOTH_SCALES + commit() + wait() + AFTER + "mov.b32 %r5, 0x3a3a3a3a;\n"
         f"@%p1 tcgen05.st.sync.aligned.32x32b.x1.b32 [%r11+{SCALE_A}], {{%r5}};\n" + WAIT_ST
         + HANDOVER + DESCRIPTORS + product(FP4, SCALED, False, more=AT_SCALES) + commit()
         + wait(0, 1), "unsupported"),
    "many lanes": (DESCRIPTORS + product("kind::f16", IDESC, False, guard="@%p1") + DONE,
                   "divergence"),
    "rows of another warp": (load(1).replace("%r11", "%r10") + WAIT_LD, "bounds"),
    "beyond the columns": (load(2, 511) + WAIT_LD, "bounds"),
    "D from row 32": (START.replace("[%r10+0]", "[%r10+2097152]") + DONE, "unsupported"),
    "64 rows": (START.replace(f"{IDESC:#x}", f"{IDESC - (4 << 24):#x}") + DONE, "unsupported"),
    "sparse": (START.replace(f"{IDESC:#x}", f"{IDESC | 4:#x}") + DONE, "unsupported"),
    "N = 0": (START.replace(f"{IDESC:#x}", f"{IDESC & ~(63 << 17):#x}") + DONE, "unsupported"),
    "a wgmma descriptor":
        (START.replace(f"{ONE.descriptor:#x}", f"{ONE.descriptor & ~(1 << 46):#x}") + DONE,
         "unsupported"),
    "unequal types": (START.replace(f"{IDESC:#x}", f"{IDESC | 1 << 7:#x}") + DONE, "unsupported"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISUSE)
def test_misuse(name: str) -> None:
    body, kind = MISUSE[name]
    for policy in POLICIES:
        with pytest.raises(Fault, match="PTX line") as fault:
            images = [ONE.image(), ONE.image(), np.full(2 * SCALES, 0x38, np.uint8)]
            simulate(body, images, 2, policy=policy, seed=6)
        assert fault.value.kind == kind, fault.value


def test_undefined_cells_travel_through_tensor_memory() -> None:
    body = "@%p2 mov.b32 %r5, %a0;\n" + store(1, OTHER).replace("%a0", "%r5") + WAIT_ST
    body += load(1, OTHER) + WAIT_LD
    with pytest.raises(Fault, match="%d0") as fault:
        simulate(body, [], 1)
    assert fault.value.kind == "uninitialised"
    simulate(body + "@!%p2 mov.b32 %d0, 0;\n", [], 1)


@pytest.mark.parametrize(
    "wrong",
    [
        "tcgen05.alloc.cta_group::2.sync.aligned.shared::cta.b32 [%r1], 32;",
        "tcgen05.alloc.cta_group::1.shared::cta.b32 [%r1], 32;",
        "tcgen05.ld.sync.aligned.16x256b.x1.b32 {%r1, %r2, %r3, %r4}, [%r10];",
        "tcgen05.ld.sync.aligned.32x32b.x2.b32 {%r1}, [%r10];",
        "tcgen05.ld.sync.aligned.32x32b.x2.pack::16b.b32 {%r1, %r2}, [%r10];",
        "tcgen05.cp.cta_group::1.32x128b [%r10], %rd1;",
        "tcgen05.cp.cta_group::1.64x128b.warpx2::02_13 [%r10], %rd1;",
        "tcgen05.commit.cta_group::1.mbarrier::arrive::one.multicast::cluster.b64 [%rd1], %r1;",
        "tcgen05.mma.cta_group::1.kind::tf32 [%r10], %rd1, %rd2, %r2, %p4;",
        "tcgen05.mma.cta_group::1.kind::f16 [%r10], %rd1, %rd2, %r2, %p4, 3;",
        "tcgen05.mma.cta_group::1.kind::f16.collector::a::use [%r10], %rd1, %rd2, %r2, %p4;",
        "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale [%r10], %rd1, %rd2, %r2, [%r3], "
        "[%r4], %p4;",
        "tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.block16 [%r10], %rd1, %rd2, %r2, "
        "[%r3], [%r4], %p4;",
        "tcgen05.mma.ws.cta_group::1.kind::f16 [%r10], %rd1, %rd2, %r2, %p4;",
        "tcgen05.shift.cta_group::1.down [%r10];",
    ],
)
def test_unknown_forms_are_refused(wrong: str) -> None:
    with pytest.raises(SyntaxError, match="line"):
        attempt(wrong)


# --- allocation -----------------------------------------------------------------------------------


def alloc(columns: int, slot: int = 4, guard: str = "@%p1") -> str:
    return (
        f"{guard} tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [{SLOT}+{slot}], "
        f"{columns};\n"
    )


def dealloc(columns: int, address: str = "%r12", guard: str = "@%p1") -> str:
    return f"{guard} tcgen05.dealloc.cta_group::1.sync.aligned.b32 {address}, {columns};\n"


RELINQUISH = "@%p1 tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;\n"


def allocate(body: str, **options: Any) -> dict[str, Any]:
    """Run a kernel that begins with no allocation."""
    setup = SETUP.replace(f"[{SLOT}], 512", f"[{SLOT}], 64")
    ptx = text(FILL + setup + body + "mov.b32 %d0, 0;", WORDS, 1, target="sm_100a", shared=SHARED)
    return execute(ptx, np.zeros((WORDS, THREADS), np.uint32), 1, **options)[1]


def test_allocations() -> None:
    second = f"bar.sync 0;\nld.shared.b32 %r12, [{SLOT}+4];\n"
    allocate(alloc(64) + second + dealloc(64) + dealloc(64, "%r10") + RELINQUISH)
    for body, kind in [
        ("", "async"),  # left behind
        (alloc(64) + second + dealloc(64), "async"),
        (dealloc(32, "%r10"), "bounds"),
        (dealloc(64, "%r10") + dealloc(64, "%r10"), "bounds"),
        (alloc(48), "unsupported"),
        (alloc(16), "unsupported"),
        (alloc(128), "unsupported"),  # more than before
        (RELINQUISH + alloc(64), "unsupported"),
        (dealloc(64, "%r10") + "bar.sync 0;\n" + load(1).replace("%d0", "%r5"), "bounds"),
    ]:
        with pytest.raises(Fault) as fault:
            allocate(body)
        assert fault.value.kind == kind, (body, fault.value)


def test_a_full_tensor_memory_is_waited_for() -> None:
    body = (
        "setp.ge.u32 %p5, %tid4, 128; setp.lt.and.u32 %p5, %tid4, 256, %p5;\n"  # warp 1
        + "".join(alloc(64, 8) for _ in range(7))
    )
    with pytest.raises(Fault, match=r"tcgen05\.alloc") as fault:
        allocate(body + alloc(64))
    assert fault.value.kind == "deadlock"
    # Warp 1 waits until warp 0 has deallocated something.
    turn = "bar.sync 0;\n" + alloc(64, 4, "@%p5") + dealloc(64, "%r10") + "bar.sync 0;\n"
    rest = f"ld.shared.b32 %r12, [{SLOT}+4];\n" + dealloc(64)
    rest += "".join(dealloc(64, str(64 * i)) for i in range(1, 8))
    allocate(body + turn + rest)
    allocate(body + turn + rest, seed=3)


# --- a kernel -------------------------------------------------------------------------------------

# D[128][128] = A B^T with rows of 128 bytes: 64 bf16, or 256 e2m1 with a factor per 16.
KERNEL = r"""
#include <cstdint>

__device__ uint32_t shared_offset(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// K-major, 128-byte swizzle, atoms of eight rows.
__device__ uint64_t matrix(uint32_t at) {
  return at >> 4 | 1ull << 16 | 1024ull >> 4 << 32 | 1ull << 46 | 2ull << 61;
}

// Rows of 16 bytes, eight of them side by side.
__device__ uint64_t factors(uint32_t at) { return at >> 4 | 128ull >> 4 << 32 | 1ull << 46; }

__device__ void copy_factors(uint32_t column, uint64_t from) {
  asm volatile("tcgen05.cp.cta_group::1.32x128b.warpx4 [%0], %1;" ::"r"(column), "l"(from)
               : "memory");
}

template <bool kScaled>
__device__ void multiply(const uint4* a, const uint4* b, const uint4* scale_a,
                         const uint4* scale_b, float* d) {
  __shared__ __align__(1024) uint4 tile_a[1024], tile_b[1024];
  __shared__ __align__(128) uint4 factors_a[128], factors_b[128];
  __shared__ uint64_t done;
  __shared__ uint32_t slot;
  const int thread = threadIdx.x, warp = thread / 32;
  for (int c = 0; c < 8; ++c) {
    tile_a[8 * thread + (c ^ thread % 8)] = a[8 * thread + c];
    tile_b[8 * thread + (c ^ thread % 8)] = b[8 * thread + c];
  }
  if (kScaled) {
    factors_a[thread] = scale_a[thread];
    factors_b[thread] = scale_b[thread];
  }
  const uint32_t barrier = shared_offset(&done);
  if (thread == 0) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier));
  if (warp == 0) {
    asm volatile("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], 256;" ::"r"(
                     shared_offset(&slot))
                 : "memory");
    asm volatile("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;");
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  const uint32_t tensor = *reinterpret_cast<volatile uint32_t*>(&slot);
  if (thread == 0) {
    const uint32_t at_a = shared_offset(tile_a), at_b = shared_offset(tile_b);
    for (uint32_t i = 0; i < 4; ++i) {
      if (kScaled) {
        copy_factors(tensor + 128 + 4 * i, factors(shared_offset(factors_a) + 512 * i));
        copy_factors(tensor + 144 + 4 * i, factors(shared_offset(factors_b) + 512 * i));
        asm volatile(
            "{ .reg .pred p; setp.ne.u32 p, %4, 0;\n"
            "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16 [%0], %1, %2, %3, [%5], "
            "[%6], p; }" ::"r"(tensor), "l"(matrix(at_a + 32 * i)), "l"(matrix(at_b + 32 * i)),
            "r"(1u << 7 | 1u << 10 | 16u << 17 | 1u << 27), "r"(i), "r"(tensor + 128 + 4 * i),
            "r"(tensor + 144 + 4 * i)
            : "memory");
      } else {
        asm volatile(
            "{ .reg .pred p; setp.ne.u32 p, %4, 0;\n"
            "tcgen05.mma.cta_group::1.kind::f16 [%0], %1, %2, %3, p; }" ::"r"(tensor),
            "l"(matrix(at_a + 32 * i)), "l"(matrix(at_b + 32 * i)),
            "r"(1u << 4 | 1u << 7 | 1u << 10 | 16u << 17 | 8u << 24), "r"(i)
            : "memory");
      }
    }
    asm volatile(
        "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(barrier)
        : "memory");
  }
  uint32_t completed = 0;
  while (!completed) {
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0;\n"
        "selp.u32 %0, 1, 0, p; }"
        : "=r"(completed)
        : "r"(barrier)
        : "memory");
  }
  asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
  for (uint32_t n = 0; n < 128; n += 8) {
    uint32_t v[8];
    asm volatile(
        "tcgen05.ld.sync.aligned.32x32b.x8.b32 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8];"
        : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]), "=r"(v[4]), "=r"(v[5]), "=r"(v[6]),
          "=r"(v[7])
        : "r"(tensor + (warp << 21) + n));
    asm volatile("tcgen05.wait::ld.sync.aligned;" ::: "memory");
    for (int i = 0; i < 8; ++i) d[128 * thread + n + i] = __uint_as_float(v[i]);
  }
  __syncthreads();
  if (warp == 0) {
    asm volatile("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, 256;" ::"r"(tensor));
  }
}

extern "C" __global__ void bf16(const uint4* a, const uint4* b, float* d) {
  multiply<false>(a, b, nullptr, nullptr, d);
}
extern "C" __global__ void nvfp4(const uint4* a, const uint4* b, const uint4* scale_a,
                                 const uint4* scale_b, float* d) {
  multiply<true>(a, b, scale_a, scale_b, d);
}
"""


@pytest.mark.skipif(not has_nvcc(), reason="needs nvcc")
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["bf16", "e2m1"])
def test_a_compiled_product(kind: str, policy: str) -> None:
    rng = np.random.default_rng(12)
    a, b = (tile(rng, 128, kind, "K", 128) for _ in range(2))
    p = Product("", 0, a, b)
    if kind == "e2m1":
        p.scales = (scales_of(rng, "ue4m3", 16, 256), scales_of(rng, "ue4m3", 16, 256))
    args: list[Any] = []
    for m in (a, b):
        packed = m.codes[:, 0::2] | m.codes[:, 1::2] << 4 if kind == "e2m1" else m.codes
        args.append(np.ascontiguousarray(packed))
    args += [s.image() for s in p.scales or ()]
    d = np.empty((128, 128), np.float32)
    entry = "nvfp4" if kind == "e2m1" else "bf16"
    ptx = compile_cuda(KERNEL, "sm_100a")
    report = run(ptx, entry, 1, THREADS, [*args, d], policy=policy, seed=1)
    assert (np.abs(d - p.exact()) <= p.bound()).all()
    assert report["warnings"] == {}
    assert report["matrix_flops"] == 2 * 128 * 128 * a.codes.shape[1]
