"""wgmma: descriptors, fragments, and the order of asynchronous products."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.ptxsim import Fault, SyntaxError, cute
from tests.ptxsim.test_matrix import TYPES, random
from tests.ptxsim.warp_kernel import execute, pack, registers, text, unpack

POLICIES = ["eager", "late", "random"]
THREADS = 128
SPAN = 16384  # bytes of an operand in shared memory, at 0 (A) and SPAN (B)
IMAGE = 2 * SPAN // (4 * THREADS)  # registers that hold both
SWIZZLE_CODE = {None: 0, 128: 1, 64: 2, 32: 3}


def image_of(tile: np.ndarray, place: np.ndarray, swizzle: int | None, start: int) -> np.ndarray:
    """Return SPAN bytes with the elements of `tile` at the swizzled bytes `start + place`."""
    image = np.random.default_rng(9).integers(0, 256, SPAN).astype(np.uint8)
    size = tile.itemsize
    at = cute.swizzle(start + place, swizzle)
    for b in range(size):
        image[at + b] = np.ascontiguousarray(tile).view(np.uint8).reshape(*tile.shape, size)[..., b]
    return image


def descriptor(name: str, operand: int, start: int, lbo: int, sbo: int, swizzle: int | None) -> str:
    """Return PTX that puts the descriptor of an operand into 64-bit register `name`."""
    high = SWIZZLE_CODE[swizzle] << 62 | sbo >> 4 << 32 | lbo >> 4 << 16
    return (
        f"mov.u32 %r1, buffer; add.u32 %r1, %r1, {operand * SPAN + start}; shr.u32 %r1, %r1, 4;\n"
        f"cvt.u64.u32 {name}, %r1; or.b64 {name}, {name}, {high:#x};\n"
    )


# %a0 ... fill the buffer, as the generic proxy.
FILL = (
    "mov.u32 %r0, buffer; add.u32 %r0, %r0, %tid4;\n"
    + "".join(f"st.shared.b32 [%r0+{4 * THREADS * i}], %a{i};\n" for i in range(IMAGE))
    + "fence.proxy.async.shared::cta;\nbar.sync 0;\n"
)
WAIT = "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n"


def product(
    shape: str, types: str, d: int, a: str, *, b: str = "%rd2", scale: str = "1",
    tail: str = "1, 1, 0, 0",
) -> str:  # fmt: skip
    operands = f"{registers('d', d)}, {a}, {b}, %p1, {tail}"
    return (
        f"setp.ne.b32 %p1, {scale}, 0;\nwgmma.mma_async.sync.aligned.{shape}.{types} {operands};\n"
    )


def execute_products(
    body: str, image_a: np.ndarray, image_b: np.ndarray, more: np.ndarray, outputs: int,
    *, clear: bool = True, **options: Any,
) -> tuple[np.ndarray, dict[str, Any]]:  # fmt: skip
    """Run `body` with both images in shared memory and `more` in %a<IMAGE> and up."""
    image = np.concatenate([image_a, image_b]).view(np.uint32).reshape(IMAGE, THREADS)
    inputs = np.concatenate([image, more.reshape(-1, THREADS)])
    zero = "".join(f"mov.b32 %d{i}, 0;\n" for i in range(outputs)) if clear else ""
    ptx = text(FILL + zero + body, len(inputs), outputs, shared=2 * SPAN)
    return execute(ptx, inputs, outputs, **options)


def result_of(words: np.ndarray, n: int, dtype: Any = np.float32) -> np.ndarray:
    """Return D `[64, n]` from the registers of the group, by CuTe's layout."""
    layout = cute.WGMMA_D.replace("(2,2,2)", f"(2,2,{n // 8})")
    d = np.empty(64 * n, dtype)
    d[cute.offsets(layout)] = unpack(words, dtype)
    return d.reshape(64, n, order="F")


def exact(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a.astype(np.float64) @ b.astype(np.float64).T).astype(np.float32)


NONE = np.zeros((0, THREADS), np.uint32)


def tile_case(
    major: str, swizzle: int | None, seed: int
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Return a bf16 tile [128, 16], its place in bytes, and its descriptor's offsets."""
    layout, lbo, sbo = cute.TILES[major, swizzle]
    tile = random(np.random.default_rng(seed), (128, 16), "bf16")
    return tile, 2 * cute.offsets(layout), lbo, sbo


@pytest.mark.parametrize("b_swizzle", [None, 32, 64, 128])
@pytest.mark.parametrize("b_major", ["K", "MN"])
@pytest.mark.parametrize("a_swizzle", [None, 32, 64, 128])
@pytest.mark.parametrize("a_major", ["K", "MN"])
def test_operands_in_shared_memory(
    a_major: str, a_swizzle: int | None, b_major: str, b_swizzle: int | None
) -> None:
    a, a_place, a_lbo, a_sbo = tile_case(a_major, a_swizzle, 1)
    b, b_place, b_lbo, b_sbo = tile_case(b_major, b_swizzle, 2)
    # The second slice along k starts inside of the atom, where there is one.
    a_start = 32 if a_major == "K" and a_swizzle in (64, 128) else 0
    b_start = 96 if b_major == "K" and b_swizzle == 128 else 0
    body = (
        descriptor("%rd1", 0, a_start, a_lbo, a_sbo, a_swizzle)
        + descriptor("%rd2", 1, b_start, b_lbo, b_sbo, b_swizzle)
        + "wgmma.fence.sync.aligned;\n"
        + product("m64n128k16", "f32.bf16.bf16", 64, "%rd1",
                  tail=f"1, 1, {int(a_major == 'MN')}, {int(b_major == 'MN')}")
        + WAIT
    )  # fmt: skip
    words, report = execute_products(
        body,
        image_of(a, a_place, a_swizzle, a_start),
        image_of(b, b_place, b_swizzle, b_start),
        NONE,
        64,
        policy="late",
    )
    np.testing.assert_array_equal(result_of(words, 128), exact(a[:64], b))
    assert report["matrix_flops"] == 2 * 64 * 128 * 16
    assert report["warnings"] == {}


@pytest.mark.parametrize("n", [8, 24, 96, 128])
@pytest.mark.parametrize("kind", ["f16", "bf16", "tf32", "e4m3", "e5m2"])
def test_types_sizes_and_a_in_registers(kind: str, n: int) -> None:
    rng = np.random.default_rng(n)
    size = np.dtype(TYPES[kind]).itemsize
    k = 32 // size
    a, b = random(rng, (64, k), kind), random(rng, (n, k), kind)
    # 32-byte rows, K-major, no swizzle: core matrices of 8 x 16 bytes.
    x, byte = np.arange(n)[:, None], size * np.arange(k)[None]
    place = x % 8 * 16 + x // 8 * 256 + byte // 16 * 128 + byte % 16
    name = {"f16": "bf16", "e5m2": "e4m3"}.get(kind, kind)
    a_words = pack(a.ravel(order="F")[cute.offsets(cute.WGMMA_A[name])])
    tail = "1, 1, 0" if size == 2 else "1, 1"
    body = (
        descriptor("%rd2", 1, 0, 128, 256, None)
        + "wgmma.fence.sync.aligned;\n"
        + product(f"m64n{n}k{k}", f"f32.{kind}.{kind}", n // 2, registers("a", 4, IMAGE), tail=tail)
        + WAIT
    )
    words, _ = execute_products(
        body, np.zeros(SPAN, np.uint8), image_of(b, place, None, 0), a_words, n // 2
    )
    np.testing.assert_array_equal(result_of(words, n), exact(a, b))


# One K-major tile for both operands: A = its first 64 rows, B = its first 32.
SETUP = (
    descriptor("%rd1", 0, 0, 16, 256, 32)
    + descriptor("%rd2", 0, 0, 16, 256, 32)
    + "wgmma.fence.sync.aligned;\n"
)


def simple(body: str, outputs: int = 16, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return D of m64n32 products of one tile with itself, and the expected product."""
    tile, place, _, _ = tile_case("K", 32, 3)
    image = image_of(tile, place, 32, 0)
    words, _ = execute_products(
        SETUP + body, image, np.zeros(SPAN, np.uint8), NONE, outputs, **options
    )
    return words, tile


ONE = product("m64n32k16", "f32.bf16.bf16", 16, "%rd1")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("body", "factor"),
    [
        (ONE, 1),
        (ONE + ONE + ONE, 3),
        # scale-d false forgets what was there.
        (ONE + ONE + product("m64n32k16", "f32.bf16.bf16", 16, "%rd1", scale="0"), 1),
        (product("m64n32k16", "f32.bf16.bf16", 16, "%rd1", tail="-1, 1, 0, 0"), -1),
        (product("m64n32k16", "f32.bf16.bf16", 16, "%rd1", tail="1, -1, 0, 0"), -1),
        (product("m64n32k16", "f32.bf16.bf16", 16, "%rd1", tail="-1, -1, 0, 0"), 1),
        (ONE + "wgmma.commit_group.sync.aligned;" + ONE, 2),
    ],
)
def test_accumulation(body: str, factor: int, policy: str) -> None:
    words, tile = simple(body + WAIT, policy=policy, seed=5)
    expected = exact(tile[:64], tile[:32]) * np.float32(factor)
    np.testing.assert_allclose(result_of(words, 32), expected, rtol=1e-6, atol=1e-4)


def test_half_accumulators() -> None:
    a = np.random.default_rng(1).integers(-8, 9, (64, 16)).astype(np.float16)
    place = 2 * cute.offsets(cute.TILES["K", 32][0])[:64]
    body = SETUP + product("m64n32k16", "f16.f16.f16", 8, "%rd1") + WAIT
    words, _ = execute_products(body, image_of(a, place, 32, 0), np.zeros(SPAN, np.uint8), NONE, 8)
    np.testing.assert_array_equal(result_of(words, 32, np.float16), exact(a, a[:32]))


def test_undefined_accumulators() -> None:
    fresh = product("m64n32k16", "f32.bf16.bf16", 16, "%rd1", scale="0")
    words, tile = simple(fresh + WAIT, clear=False)
    np.testing.assert_array_equal(result_of(words, 32), exact(tile[:64], tile[:32]))
    with pytest.raises(Fault, match="%d0") as fault:
        simple(ONE + WAIT, clear=False)
    assert fault.value.kind == "uninitialised"


GROUPS = (ONE + "wgmma.commit_group.sync.aligned;\n") * 2


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (ONE + "wgmma.commit_group.sync.aligned; add.f32 %f1, %d3, %d3;" + WAIT, "async"),
        (ONE + "wgmma.commit_group.sync.aligned; add.f32 %d3, %f1, %f1;" + WAIT, "async"),
        (GROUPS + "wgmma.wait_group.sync.aligned 1; add.f32 %f1, %d3, %d3;" + WAIT, "async"),
        # wait_group without commit_group covers nothing.
        (ONE + "wgmma.wait_group.sync.aligned 0; add.f32 %f1, %d3, %d3;" + WAIT, "async"),
        # The operands belong to the product until then.
        (ONE + "wgmma.commit_group.sync.aligned; st.shared.b32 [%r0], %r0;" + WAIT, "async"),
        (ONE, "async"),  # the block ends
        ("st.shared.b32 [%r0], %a0; bar.sync 0;" + ONE + WAIT, "proxy"),
    ],
)
def test_misuse(body: str, kind: str) -> None:
    with pytest.raises(Fault) as fault:
        simple("mov.f32 %f1, 0f00000000;" + body, outputs=16)
    assert fault.value.kind == kind


FENCE = "wgmma.fence.sync.aligned;\n"
A_REGISTERS = registers("a", 4, IMAGE)
FROM_REGISTERS = product("m64n32k16", "f32.bf16.bf16", 16, A_REGISTERS, tail="1, 1, 0")
NARROW = product("m64n24k16", "f32.bf16.bf16", 12, "%rd1")
CHANGED_A = f"mov.b32 %a{IMAGE}, 0x3f803f80;\n"
CHANGED_D = "mov.b32 %d0, 0;\n"


def with_a_in_registers(body: str, **options: Any) -> dict[str, Any]:
    """Execute `body` after SETUP with A in registers; return the report."""
    tile, place, _, _ = tile_case("K", 32, 3)
    _, report = execute_products(
        SETUP + body, image_of(tile, place, 32, 0), np.zeros(SPAN, np.uint8),
        np.zeros((4, THREADS), np.uint32), 16, **options,
    )  # fmt: skip
    return report


@pytest.mark.parametrize(
    ("between", "products"),
    [
        (CHANGED_D, (ONE, ONE)),
        (CHANGED_A, (FROM_REGISTERS, FROM_REGISTERS)),
        (CHANGED_D, ("", ONE)),
    ],
)
def test_a_fence_follows_every_write_of_a_register(between: str, products: tuple[str, str]) -> None:
    first, second = products
    first += WAIT if first else ""
    with_a_in_registers(first + between + FENCE + second + WAIT)
    with pytest.raises(Fault, match="written after the last") as fault:
        with_a_in_registers(first + FENCE + between + second + WAIT)
    assert fault.value.kind == "async"


def test_a_product_that_forgets_d_needs_no_fence_behind_its_writes() -> None:
    fresh = product("m64n32k16", "f32.bf16.bf16", 16, "%rd1", scale="0")
    with_a_in_registers(CHANGED_D + fresh + WAIT)


@pytest.mark.parametrize(
    ("second", "text"),
    [
        # The result of the first as A of the second, and D of another shape.
        (product("m64n8k16", "f32.bf16.bf16", 4, registers("d", 4, 4), tail="1, 1, 0").replace(
            registers("d", 4), registers("a", 4)), "A is the result"),
        (NARROW, "another shape"),
    ],
)  # fmt: skip
def test_only_accumulators_of_one_shape_chain(second: str, text: str) -> None:
    with_a_in_registers(ONE + WAIT + FENCE + second + WAIT)
    with pytest.raises(Fault, match=text) as fault:
        with_a_in_registers(ONE + second + WAIT)
    assert fault.value.kind == "async"


def test_d_may_not_be_an_operand_of_an_open_product() -> None:
    over_a = product("m64n8k16", "f32.bf16.bf16", 4, "%rd1", scale="0").replace(
        registers("d", 4), A_REGISTERS
    )
    with_a_in_registers(FROM_REGISTERS + WAIT + over_a + WAIT)
    with pytest.raises(Fault, match="D is an operand") as fault:
        with_a_in_registers(FROM_REGISTERS + over_a + WAIT)
    assert fault.value.kind == "async"


def test_operands_in_registers_that_are_written_before_the_wait() -> None:
    # A copy makes the compiler serialise; arithmetic has no such excuse.
    report = with_a_in_registers(FROM_REGISTERS + CHANGED_A + WAIT, policy="late")
    assert any("copied before its wait" in warning for warning in report["warnings"])
    with pytest.raises(Fault, match="nobody waited for is used") as fault:
        with_a_in_registers(FROM_REGISTERS + f"add.u32 %a{IMAGE}, %r1, 1;\n" + WAIT)
    assert fault.value.kind == "async"


# Thread 0 loads 128 bytes into the tile that the product reads.
LOAD_OVER_A = """
mov.u32 %r4, buffer; setp.eq.u32 %p3, %tid4, 0; ld.param.u64 %rd3, [in];
@%p3 mbarrier.init.shared::cta.b64 [%r4+16384], 1;
fence.mbarrier_init.release.cluster;
bar.sync 0;
@%p3 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r4+16384], 128;
"""
BULK_LOAD = (
    "@%p3 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
    " [%r4], [%rd3], 128, [%r4+16384];\n"
)
FULL = "W: mbarrier.try_wait.parity.shared::cta.b64 %p4, [%r4+16384], 0;\n@!%p4 bra W;\n"


@pytest.mark.parametrize("policy", POLICIES)
def test_a_load_into_a_tile_that_a_product_reads(policy: str) -> None:
    right = LOAD_OVER_A + ONE + WAIT + "bar.sync 0;\n" + BULK_LOAD + FULL
    with_a_in_registers(right, policy=policy)
    with pytest.raises(Fault) as fault:
        with_a_in_registers(LOAD_OVER_A + ONE + BULK_LOAD + FULL + WAIT, policy=policy)
    assert fault.value.kind == "async"


def test_an_operand_that_another_warp_writes_again() -> None:
    # Warp 0 writes its 128 bytes, which all four warps read as B.
    last = "setp.lt.u32 %p3, %tid4, 128;\n@%p3 st.shared.b32 [%r0], %r0;\n"
    with_a_in_registers(ONE + WAIT + "bar.sync 0;\n" + last)
    with pytest.raises(Fault, match="not ordered against the read") as fault:
        with_a_in_registers(ONE + WAIT + last)
    assert fault.value.kind == "race"


def test_waiting_for_all_but_one_group_frees_the_older() -> None:
    other = "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 " + (
        registers("d", 16, 16) + ", %rd1, %rd2, %p1, 1, 1, 0, 0;\n"
    )
    body = (
        ONE + "wgmma.commit_group.sync.aligned;\n" + other + "wgmma.commit_group.sync.aligned;\n"
        "wgmma.wait_group.sync.aligned 1; add.f32 %d0, %d0, %d0;\n"
        "wgmma.wait_group.sync.aligned 0;\n"
    )
    for policy in POLICIES:
        words, tile = simple(body, outputs=32, policy=policy)
        expected = exact(tile[:64], tile[:32])
        np.testing.assert_array_equal(result_of(words[16:], 32), expected)
        np.testing.assert_array_equal(words[0].view(np.float32), 2 * words[16].view(np.float32))


def test_copies_of_accumulators_serialise() -> None:
    body = (
        ONE
        + "wgmma.commit_group.sync.aligned; mov.b32 %r5, %d0;\n"
        + ("wgmma.wait_group.sync.aligned 0; mov.b32 %d1, %r5;")
    )
    tile, place, _, _ = tile_case("K", 32, 3)
    words, report = execute_products(
        SETUP + body,
        image_of(tile, place, 32, 0),
        np.zeros(SPAN, np.uint8),
        NONE,
        16,
        policy="late",
    )
    np.testing.assert_array_equal(words[0], words[1])
    assert any("copied before its wait" in warning for warning in report["warnings"])


def test_a_fence_comes_first() -> None:
    with pytest.raises(Fault, match="fence") as fault:
        execute_products(
            SETUP.replace("wgmma.fence.sync.aligned;", "") + ONE + WAIT,
            np.zeros(SPAN, np.uint8), np.zeros(SPAN, np.uint8), NONE, 16,
        )  # fmt: skip
    assert fault.value.kind == "async"


def test_the_warps_of_a_group_stay_together() -> None:
    only_first = "setp.lt.u32 %p2, %tid4, 128;\n@%p2 bra X;\n" + ONE + "X:\n" + ONE + WAIT
    with pytest.raises(Fault, match="another warp") as fault:
        simple(only_first)
    assert fault.value.kind == "divergence"
    elsewhere = "setp.lt.u32 %p2, %tid4, 128;\n@%p2 add.u64 %rd2, %rd2, 16;\n" + ONE + WAIT
    with pytest.raises(Fault, match="another warp") as fault:
        simple(elsewhere)
    assert fault.value.kind == "divergence"


def test_operands_must_be_written() -> None:
    body = FILL.replace("st.shared.b32 [%r0+1024], %a2;\n", "")
    assert body != FILL
    ptx = text(body + SETUP + ONE + WAIT, IMAGE, 16, shared=2 * SPAN)
    with pytest.raises(Fault) as fault:
        execute(ptx, np.zeros((IMAGE, THREADS), np.uint32), 16)
    assert fault.value.kind == "uninitialised"


@pytest.mark.parametrize(
    "wrong",
    [
        ONE.replace("m64n32k16", "m64n32k8"),
        ONE.replace("m64n32k16", "m64n36k16"),
        ONE.replace("f32.bf16.bf16", "f32.bf16.f16"),
        ONE.replace("f32.bf16.bf16", "f16.bf16.bf16"),
        ONE.replace("1, 1, 0, 0", "2, 1, 0, 0"),
        ONE.replace("1, 1, 0, 0", "1, 1, 0"),
        ONE.replace("aligned.m64", "aligned.sp.m64"),
        "wgmma.wait_group.sync.aligned %r1;",
    ],
)
def test_unknown_forms_are_refused(wrong: str) -> None:
    with pytest.raises(SyntaxError, match="line"):
        simple(wrong)


def test_e4m3_products_keep_thirteen_bits_below_the_largest() -> None:
    a, b = np.zeros((64, 32)), np.zeros((8, 32))
    a[:, :3], b[:, :3] = [1, 2.0**-6, -1], [1, 1, 1]
    b[:, 1] = 2.0 ** -np.arange(5, 13).clip(max=9)  # the second product is 2**-11 ... 2**-15
    x, byte = np.arange(8)[:, None], np.arange(32)[None]
    place = x % 8 * 16 + byte // 16 * 128 + byte % 16
    kind = TYPES["e4m3"]
    words_a = pack(a.astype(kind).ravel(order="F")[cute.offsets(cute.WGMMA_A["e4m3"])])
    body = (
        descriptor("%rd2", 1, 0, 128, 256, None)
        + FENCE
        + product("m64n8k32", "f32.e4m3.e4m3", 4, registers("a", 4, IMAGE), tail="1, 1")
        + WAIT
    )
    words, _ = execute_products(
        body, np.zeros(SPAN, np.uint8), image_of(b.astype(kind), place, None, 0), words_a, 4,
        truncate_products=True,
    )  # fmt: skip
    second = 2.0**-6 * b[:, 1]
    expected = np.where(second >= 2.0**-13, second, 0)
    assert {2.0**-13, 2.0**-14} <= set(second)
    np.testing.assert_array_equal(result_of(words, 8), np.tile(expected, (64, 1)))


def test_truncated_products_differ_and_stay_close() -> None:
    exact_words, tile = simple(ONE + WAIT)
    cut_words, _ = simple(ONE + WAIT, truncate_products=True)
    a, b = (x.astype(np.float64) for x in (tile[:64], tile[:32]))
    error = np.abs(result_of(cut_words, 32) - a @ b.T)
    assert (error <= 2.0**-21 * (np.abs(a) @ np.abs(b).T)).all()
    assert (exact_words != cut_words).any()
