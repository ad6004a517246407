"""cp.async, bulk copies and tensor copies."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.ptxsim import Fault, SyntaxError, cute, memory_of, run, tensor_map
from tests.ptxsim.warp_kernel import execute, text

POLICIES = ["eager", "late", "random"]

# --- cp.async -----------------------------------------------------------------------------------

# %r1: 16 bytes of shared memory of the thread; %rd1: 16 bytes of `in` of the thread, which is an
# array of [4, threads] words.
SETUP = """
shl.b32 %r0, %tid4, 2;
mov.u32 %r1, buffer; add.u32 %r1, %r1, %r0;
ld.param.u64 %rd1, [in]; cvt.u64.u32 %rd2, %r0; add.s64 %rd1, %rd1, %rd2;
mov.b32 %r9, 0xffffffff;
st.shared.v4.b32 [%r1], {%r9, %r9, %r9, %r9};
"""
LOAD = "ld.shared.v4.b32 {%d0, %d1, %d2, %d3}, [%r1];"


def words(threads: int = 32) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 1 << 32, (4, threads), np.uint32)


def copied(body: str, data: np.ndarray | None = None, **options: Any) -> np.ndarray:
    """Return `[threads, 16]` bytes of shared memory."""
    data = words() if data is None else data
    got, _ = execute(text(SETUP + body, 0, 4, shared=4096), data, 4, **options)
    return np.ascontiguousarray(got.T).view(np.uint8)


def sources(data: np.ndarray) -> np.ndarray:
    return data.view(np.uint8).reshape(-1, 16)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("form", "bytes_", "zeros"),
    [
        ("cg.shared.global [%r1], [%rd1], 16", 16, 0),
        ("cg.shared::cta.global.L2::128B [%r1], [%rd1], 16", 16, 0),
        ("ca.shared.global [%r1], [%rd1], 8", 8, 0),
        ("ca.shared.global [%r1], [%rd1], 4", 4, 0),
        ("ca.shared.global [%r1], [%rd1], 16, 5", 5, 11),
        ("cg.shared.global [%r1], [%rd1], 16, 0", 0, 16),
        ("cg.shared.global.L2::cache_hint [%r1], [%rd1], 16, 12, %rd2", 12, 4),
        ("cg.shared.global.L2::cache_hint [%r1], [%rd1], 16, %rd2", 16, 0),
    ],
)
def test_copy(form: str, bytes_: int, zeros: int, policy: str) -> None:
    got = copied(f"cp.async.{form}; cp.async.wait_all; {LOAD}", policy=policy)
    expected = np.full((32, 16), 0xFF, np.uint8)
    expected[:, :bytes_] = sources(words())[:, :bytes_]
    expected[:, bytes_ : bytes_ + zeros] = 0
    np.testing.assert_array_equal(got, expected)


def test_an_ignored_source_is_not_read() -> None:
    body = "setp.lt.u32 %p1, %tid4, 64; @%p1 mov.b64 %rd1, 16;\n"
    by_predicate = "cp.async.cg.shared.global [%r1], [%rd1], 16, %p1; cp.async.wait_all;"
    by_size = "selp.u32 %r2, 0, 16, %p1;" + by_predicate.replace("%p1", "%r2")
    expected = sources(words()).copy()
    expected[:16] = 0
    for form in (by_predicate, by_size):
        np.testing.assert_array_equal(copied(body + form + LOAD), expected)
    with pytest.raises(Fault) as fault:
        copied(body + "cp.async.cg.shared.global [%r1], [%rd1], 16; cp.async.wait_all;" + LOAD)
    assert fault.value.kind == "bounds"


# Four groups of 4 bytes each; then a wait that leaves some open.
GROUPS = "".join(
    f"cp.async.ca.shared.global [%r1+{4 * i}], [%rd1+{4 * i}], 4; cp.async.commit_group;\n"
    for i in range(4)
)


@pytest.mark.parametrize("policy", POLICIES)
def test_wait_group_covers_all_but_the_youngest(policy: str) -> None:
    body = (
        GROUPS
        + "cp.async.wait_group {n}; ld.shared.b32 %d0, [%r1+{at}];\n"
        + ("cp.async.wait_group 0; mov.b32 %d1, %d0; mov.b32 %d2, %d0; mov.b32 %d3, %d0;")
    )
    for n in range(4):
        got = copied(body.format(n=n, at=4 * (3 - n)), policy=policy)
        expected = sources(words())[:, 4 * (3 - n) : 4 * (4 - n)]
        np.testing.assert_array_equal(got[:, :4], expected)
    for n in range(1, 5):
        with pytest.raises(Fault) as fault:
            copied(body.format(n=n, at=4 * (4 - n)), policy=policy)
        assert fault.value.kind == "async"


def test_late_copies_are_not_there_before_the_wait() -> None:
    body = GROUPS + "cp.async.wait_group 2;" + LOAD
    got = copied(body, policy="late", checks=False)
    np.testing.assert_array_equal(got[:, :8], sources(words())[:, :8])
    assert (got[:, 8:] == 0xFF).all()


def test_random_completes_some_copies_early_and_some_late() -> None:
    # Nobody waits: what the reader sees tells when the copies were done.
    spin = "mov.u32 %r5, 0;\nL: add.u32 %r5, %r5, 1;\nsetp.lt.u32 %p2, %r5, 300;\n@%p2 bra L;\n"
    body = GROUPS + spin + LOAD + "cp.async.wait_all;"
    source = sources(words())
    done = {
        policy: {
            tuple(
                bool((got[:, 4 * i : 4 * i + 4] == source[:, 4 * i : 4 * i + 4]).all())
                for i in range(4)
            )
            for got in (copied(body, policy=policy, seed=s, checks=False) for s in range(1, 17))
        }
        for policy in POLICIES
    }
    assert done["eager"] == {(True,) * 4}
    assert done["late"] == {(False,) * 4}
    assert any(any(copies) and not all(copies) for copies in done["random"])


def test_uncommitted_copies_are_waited_for_by_wait_all_only() -> None:
    issue = "cp.async.cg.shared.global [%r1], [%rd1], 16;"
    copied(issue + "cp.async.wait_all;" + LOAD)
    with pytest.raises(Fault) as fault:
        copied(issue + "cp.async.wait_group 0;" + LOAD)
    assert fault.value.kind == "async"


def test_the_wait_is_for_the_own_copies_only() -> None:
    body = (
        "cp.async.cg.shared.global [%r1], [%rd1], 16; cp.async.wait_all; SYNC\n"
        "xor.b32 %r2, %r0, 512; mov.u32 %r1, buffer; add.u32 %r1, %r1, %r2;" + LOAD
    )
    data = words(64)
    got = copied(body.replace("SYNC", "bar.sync 0;"), data)
    np.testing.assert_array_equal(got, np.roll(sources(data), 32, axis=0))
    other = body.replace("SYNC", "bar.warp.sync 0xffffffff;").replace("512", "16")
    np.testing.assert_array_equal(
        copied(other, data), sources(data).reshape(-1, 2, 16)[:, ::-1].reshape(-1, 16)
    )
    with pytest.raises(Fault) as fault:
        copied(other.replace("bar.warp.sync 0xffffffff;", ""), data)
    assert fault.value.kind == "race"


def test_a_destination_in_flight_may_not_be_written() -> None:
    with pytest.raises(Fault) as fault:
        copied("cp.async.cg.shared.global [%r1], [%rd1], 16; st.shared.b32 [%r1], %r0;" + LOAD)
    assert fault.value.kind == "async"


@pytest.mark.parametrize("noinc", [".noinc", ""])
@pytest.mark.parametrize("policy", POLICIES)
def test_arrival_behind_the_copies(policy: str, noinc: str) -> None:
    # Warp 0 copies, warp 1 waits and reads; without .noinc one more arrival is expected.
    body = f"""
    mov.u32 %r3, buffer; setp.eq.u32 %p1, %tid4, 0;
    @%p1 mbarrier.init.shared.b64 [%r3+2048], {32 if noinc else 1};
    bar.sync 0;
    setp.lt.u32 %p1, %tid4, 128;
    mov.b32 %d0, 0; mov.b32 %d1, 0; mov.b32 %d2, 0; mov.b32 %d3, 0;
    @!%p1 bra READ;
    cp.async.cg.shared.global [%r1], [%rd1], 16;
    cp.async.mbarrier.arrive{noinc}.shared::cta.b64 [%r3+2048];
    setp.eq.u32 %p1, %tid4, 0;
    {"" if noinc else "@%p1 mbarrier.arrive.shared.b64 _, [%r3+2048];"}
    bra END;
    READ:
    mbarrier.try_wait.parity.shared.b64 %p2, [%r3+2048], 0;
    @!%p2 bra READ;
    ld.shared.v4.b32 {{%d0, %d1, %d2, %d3}}, [%r1+-512];
    END:
    """
    data = words(64)
    got = copied(body, data, policy=policy, seed=3)
    np.testing.assert_array_equal(got[32:], sources(data)[:32])


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("[%r1+4], [%rd1], 16", "alignment"),
        ("[%r1], [%rd1+8], 16", "alignment"),
        ("[%r1+4096], [%rd1], 16", "bounds"),
        ("[%r1], [%rd1+1024], 16", "bounds"),
    ],
)
def test_copy_faults(form: str, kind: str) -> None:
    with pytest.raises(Fault) as fault:
        copied(f"cp.async.cg.shared.global {form}; cp.async.wait_all;{LOAD}")
    assert fault.value.kind == kind


def test_copies_count_as_loads_and_shared_stores() -> None:
    ptx = text(SETUP + f"cp.async.cg.shared.global [%r1], [%rd1], 16; cp.async.wait_all;{LOAD}", 0,
               4, shared=4096)  # fmt: skip
    _, report = execute(ptx, words(), 4)
    assert report["global_load"]["bytes"] == 512
    assert report["global_load"]["sectors"] in (16, 17)  # the array need not be aligned
    assert report["shared_store"]["wavefronts"] == 8  # of the copy and of the setup


@pytest.mark.parametrize(
    "wrong",
    [
        "cp.async.cg.shared.global [%r1], [%rd1], 8;",
        "cp.async.ca.shared.global [%r1], [%rd1], 2;",
        "cp.async.ca.global.shared [%rd1], [%r1];",
        "cp.async.wait_group %r1;",
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%rd1], [%r1], 16;",
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".multicast::cluster [%r1], [%rd1, {%r1, %r1}], [%r1], %r2;",
        "cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes"
        " [%r1], [%rd1, {%r1}], [%r1];",
    ],
)
def test_unknown_forms_are_refused(wrong: str) -> None:
    with pytest.raises(SyntaxError, match="line"):
        copied(wrong + LOAD)


# --- bulk copies --------------------------------------------------------------------------------

# Thread 0 fetches 512 bytes; everyone waits; thread 0 sends them to `out` + `at`.
BULK_LOAD = """
mov.u32 %r3, buffer; setp.eq.u32 %p1, %tid4, 0;
@%p1 mbarrier.init.shared::cta.b64 [%r3+1024], 1;
fence.mbarrier_init.release.cluster;
bar.sync 0;
ld.param.u64 %rd1, [in]; ld.param.u64 %rd2, [out];
@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3+1024], 512;
@%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes
  [%r3], [%rd1], 512, [%r3+1024];
W: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r3+1024], 0;
@!%p2 bra W;
add.u32 %r1, %r3, %tid4;
"""
LOAD_OWN = "".join(f"ld.shared.b32 %d{i}, [%r1+{128 * i}];\n" for i in range(4))


def bulk(body: str, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
    return execute(text(body, 0, 4, shared=2048), words(), 4, **options)


@pytest.mark.parametrize("policy", POLICIES)
def test_bulk_load(policy: str) -> None:
    got, report = bulk(BULK_LOAD + LOAD_OWN, policy=policy)
    np.testing.assert_array_equal(got, words())
    assert report["bulk_read_bytes"] == 512
    assert report["warnings"] == {}


def test_a_failed_wait_is_no_wait() -> None:
    with pytest.raises(Fault) as fault:
        bulk(BULK_LOAD.replace("@!%p2 bra W;", "") + LOAD_OWN, policy="late")
    assert fault.value.kind == "race"


def test_a_bulk_load_that_nobody_waits_for_is_unordered_even_when_it_is_early() -> None:
    before, after = BULK_LOAD.split("W: mbarrier.try_wait")
    _, address = after.split("@!%p2 bra W;")
    with pytest.raises(Fault) as fault:
        bulk(before + address + LOAD_OWN)
    assert fault.value.kind == "race"


def test_the_phase_must_expect_the_bytes() -> None:
    # The phase completes before the bytes arrive, or never.
    for bytes_ in (0, 1024):
        with pytest.raises(Fault) as fault:
            bulk(
                BULK_LOAD.replace("_, [%r3+1024], 512;", f"_, [%r3+1024], {bytes_};") + LOAD_OWN,
                policy="late",
            )
        assert fault.value.kind in ("race", "deadlock", "async")


def test_bulk_copies_warn_about_unfenced_objects() -> None:
    _, report = bulk(BULK_LOAD.replace("fence.mbarrier_init.release.cluster;", "") + LOAD_OWN)
    assert any("fence.mbarrier_init" in text for text in report["warnings"])


# Every thread writes its words, then one of the second warp sends them all.
BULK_STORE = """
mov.u32 %r3, buffer; setp.eq.u32 %p1, %tid4, 128;
add.u32 %r1, %r3, %tid4;
st.shared.b32 [%r1], %a0; st.shared.b32 [%r1+256], %a1;
st.shared.b32 [%r1+512], %a2; st.shared.b32 [%r1+768], %a3;
fence.proxy.async.shared::cta;
bar.sync 0;
ld.param.u64 %rd2, [out];
@!%p1 bra END;
cp.async.bulk.global.shared::cta.bulk_group [%rd2], [%r3], 1024;
cp.async.bulk.commit_group;
cp.async.bulk.wait_group.read 0;
st.shared.b32 [%r1], %r3;
cp.async.bulk.wait_group 0;
END:
"""


@pytest.mark.parametrize("policy", POLICIES)
def test_bulk_store(policy: str) -> None:
    got, report = execute(text(BULK_STORE, 4, 0, shared=2048), words(64), 4, policy=policy)
    np.testing.assert_array_equal(got, words(64))
    assert report["bulk_written_bytes"] == 1024


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("fence.proxy.async.shared::cta;", "proxy"),
        ("bar.sync 0;", "race"),
        ("cp.async.bulk.wait_group.read 0;", "async"),
        ("st.shared.b32 [%r1+256], %a1;", "uninitialised"),
    ],
)
def test_bulk_store_faults(what: str, kind: str) -> None:
    assert what in BULK_STORE
    ptx = text(BULK_STORE.replace(what, ""), 4, 0, shared=2048)
    with pytest.raises(Fault) as fault:
        execute(ptx, words(64), 4)
    assert fault.value.kind == kind


def test_a_write_behind_the_fence_is_not_fenced() -> None:
    fence = "fence.proxy.async.shared::cta;"
    late = "st.shared.b32 [%r1], %a0;"
    right = BULK_STORE.replace(fence, late + fence)
    got, _ = execute(text(right, 4, 0, shared=2048), words(64), 4)
    np.testing.assert_array_equal(got, words(64))
    with pytest.raises(Fault) as fault:
        execute(text(BULK_STORE.replace(fence, fence + late), 4, 0, shared=2048), words(64), 4)
    assert fault.value.kind == "proxy"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("wait", ["wait_group.read", "wait_group"])
def test_waiting_for_all_but_one_group_frees_the_older_source(wait: str, policy: str) -> None:
    copy = "cp.async.bulk.global.shared::cta.bulk_group [{}], [{}], {};\n"
    whole = copy.format("%rd2", "%r3", 1024)
    halves = (
        copy.format("%rd2", "%r3", 512) + "cp.async.bulk.commit_group;\n"
        "add.s64 %rd3, %rd2, 512; add.u32 %r4, %r3, 512;\n" + copy.format("%rd3", "%r4", 512)
    )
    older = BULK_STORE.replace(whole, halves).replace(
        "wait_group.read 0;\nst.shared.b32 [%r1]", f"{wait} 1;\nst.shared.b32 [%r1]"
    )
    younger = older.replace("st.shared.b32 [%r1], %r3;", "st.shared.b32 [%r1+512], %r3;")
    assert f"{wait} 1" in older
    assert younger != older
    got, _ = execute(text(older, 4, 0, shared=2048), words(64), 4, policy=policy)
    np.testing.assert_array_equal(got, words(64))
    with pytest.raises(Fault, match="nobody waited for reads") as fault:
        execute(text(younger, 4, 0, shared=2048), words(64), 4, policy=policy)
    assert fault.value.kind == "async"


def test_a_block_may_not_end_before_its_bulk_stores() -> None:
    body = BULK_STORE
    for line in ("cp.async.bulk.wait_group.read 0;", "st.shared.b32 [%r1], %r3;",
                 "cp.async.bulk.wait_group 0;"):  # fmt: skip
        body = body.replace(line, "")
    with pytest.raises(Fault, match="the block ends") as fault:
        execute(text(body, 4, 0, shared=2048), words(64), 4)
    assert fault.value.kind == "async"


# --- tensor copies ------------------------------------------------------------------------------

THREADS = 128
TENSOR = """
.version 8.7
.target sm_90a
.address_size 64
.visible .entry k(.param .align 128 .b8 map[128], .param .u64 raw{coordinates})
{{
.reg .b32 %r<16>; .reg .b64 %rd<8>; .reg .pred %p<4>; .reg .b32 %c<6>;
.shared .align 1024 .b8 buffer[{room}];
.shared .align 8 .b8 full[8];
mov.u32 %r1, %tid.x; setp.eq.u32 %p1, %r1, 0; shl.b32 %r1, %r1, 4;
ld.param.u64 %rd1, [raw];
mov.b64 %rd3, map; cvta.param.u64 %rd2, %rd3;
{read}
mov.u32 %r2, buffer; add.u32 %r2, %r2, {offset};
mov.u32 %r3, full;
{body}
ret;
}}
"""
# Sixteen bytes a thread and step, between global `raw` and the buffer.
COPY_OUT = """
OUT: setp.ge.u32 %p2, %r1, {bytes};
@%p2 bra DONE;
add.u32 %r4, %r2, %r1; ld.shared.v4.b32 {{%r8, %r9, %r10, %r11}}, [%r4];
cvt.u64.u32 %rd4, %r1; add.s64 %rd5, %rd1, %rd4;
st.global.v4.b32 [%rd5], {{%r8, %r9, %r10, %r11}};
add.u32 %r1, %r1, 2048;
bra OUT;
DONE:
"""
COPY_IN = """
OUT: setp.ge.u32 %p2, %r1, {bytes};
@%p2 bra DONE;
cvt.u64.u32 %rd4, %r1; add.s64 %rd5, %rd1, %rd4;
ld.global.v4.b32 {{%r8, %r9, %r10, %r11}}, [%rd5];
add.u32 %r4, %r2, %r1; st.shared.v4.b32 [%r4], {{%r8, %r9, %r10, %r11}};
add.u32 %r1, %r1, 2048;
bra OUT;
DONE:
fence.proxy.async.shared::cta;
bar.sync 0;
@!%p1 bra END;
cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group [%rd2, {{{at}}}], [%r2];
cp.async.bulk.commit_group;
cp.async.bulk.wait_group 0;
END:
"""
LOAD_BOX = """
@%p1 mbarrier.init.shared::cta.b64 [%r3], 1;
fence.mbarrier_init.release.cluster;
bar.sync 0;
mov.b64 %rd6, 0;
@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], {bytes};
@%p1 cp.async.bulk.tensor.{rank}d.{form} [%r2], [%rd2, {{{at}}}], [%r3]{policy};
W: mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r3], 0;
@!%p3 bra W;
"""
FORMS = [
    ("shared::cta.global.mbarrier::complete_tx::bytes.L2::cache_hint", ", %rd6"),
    ("shared::cluster.global.tile.mbarrier::complete_tx::bytes", ""),
]


def tensor_text(body: str, rank: int, room: int, offset: int) -> str:
    names = [f"%c{i}" for i in range(rank)]
    return TENSOR.format(
        coordinates="".join(f", .param .s32 c{i}" for i in range(rank)),
        read="\n".join(f"ld.param.s32 {name}, [c{i}];" for i, name in enumerate(names)),
        body=body,
        room=room,
        offset=offset,
    )


def copy_box(
    load: bool, array: np.ndarray, raw: np.ndarray, at: tuple[int, ...], box: tuple[int, ...],
    *, swizzle: int | None = None, offset: int = 0, form: int = 0, expect: int | None = None,
    **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Copy a box of `array` (outermost first, as `at` and `box`) to raw shared bytes, or back."""
    rank = array.ndim
    description = tensor_map(
        array, array.shape[::-1], array.strides[::-1][1:], box[::-1], swizzle=swizzle
    )
    bytes_ = int(np.prod(box)) * array.itemsize
    coordinates = ", ".join(f"%c{i}" for i in range(rank))
    if load:
        modifiers, policy = FORMS[form]
        body = LOAD_BOX.format(
            rank=rank, form=modifiers, at=coordinates, policy=policy,
            bytes=bytes_ if expect is None else expect,
        ) + COPY_OUT.format(bytes=bytes_)  # fmt: skip
    else:
        body = COPY_IN.format(bytes=bytes_, rank=rank, at=coordinates)
    args = [description, raw, *(np.int32(c) for c in reversed(at))]
    memory = [memory_of("tensor", array), memory_of("raw", raw)]
    ptx = tensor_text(body, rank, offset + bytes_, offset)
    return run(ptx, "k", 1, THREADS, args, memory=memory, **options)


def box_of(array: np.ndarray, at: tuple[int, ...], box: tuple[int, ...]) -> np.ndarray:
    """Return the box, zero outside of the array."""
    out = np.zeros(box, array.dtype)
    axes = list(zip(at, box, array.shape, strict=True))
    inside = [slice(max(0, -a), max(0, min(n, s - a))) for a, n, s in axes]
    source = [slice(max(0, a), max(0, min(s, a + n))) for a, n, s in axes]
    out[tuple(inside)] = array[tuple(source)]
    return out


def physical(bytes_: int, swizzle: int | None, offset: int) -> np.ndarray:
    """Return where each byte of the dense box lies, from its start."""
    return cute.swizzle(offset + np.arange(bytes_), swizzle) - offset


def tensor(shape: tuple[int, ...], dtype: str = "uint16") -> np.ndarray:
    """Return random bits whose rows are padded to 16 bytes, as a map demands."""
    size = np.dtype(dtype).itemsize
    pitch = -(-shape[-1] * size // 16) * 16 // size
    memory = np.zeros((*shape[:-1], pitch), dtype)
    memory[...] = np.random.default_rng(len(shape)).integers(1, 250, memory.shape)
    return memory[..., : shape[-1]]


# An aligned start, negative ones, ones that reach or lie beyond the end.
STARTS_2D = [(0, 0), (-3, -5), (40, 90), (-8, 8), (45, 100), (-20, 0), (100, 0), (7, 200)]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("swizzle", [None, 32, 64, 128])
def test_swizzles_and_bounds(swizzle: int | None, policy: str) -> None:
    """Loads, then stores, at every kind of start; the swizzle is of the absolute address."""
    box = (16, (swizzle or 96) // 2)
    bytes_ = box[0] * box[1] * 2
    for at, offset in itertools.product(STARTS_2D, (0, 3 * 128)):
        array = tensor((45, 102))
        place = physical(bytes_, swizzle, offset)
        raw = np.zeros(bytes_, np.uint8)
        report = copy_box(True, array, raw, at, box, swizzle=swizzle, offset=offset, policy=policy)
        part = box_of(array, at, box)
        np.testing.assert_array_equal(raw[place].view(np.uint16).reshape(box), part)
        inside = int((part != 0).sum())
        assert report["bulk_read_bytes"] == 2 * inside

        new = np.random.default_rng(3).integers(1, 250, box).astype(np.uint16)
        raw[place] = new.view(np.uint8).ravel()
        before = array.copy()
        report = copy_box(False, array, raw, at, box, swizzle=swizzle, offset=offset, policy=policy)
        np.testing.assert_array_equal(box_of(array, at, box), np.where(part != 0, new, 0))
        assert report["bulk_written_bytes"] == 2 * inside
        assert (array != before).sum() <= inside


@pytest.mark.parametrize("dtype", ["uint8", "uint32", "uint64"])
@pytest.mark.parametrize(
    ("shape", "box", "starts"),
    [
        ((70,), (32,), [(0,), (-3,), (60,)]),
        ((9, 6, 40), (4, 3, 16), [(0, 0, 0), (-1, 4, 30), (7, -2, -9)]),
        ((4, 5, 6, 32), (2, 3, 2, 16), [(1, 1, 1, 16), (3, -1, 5, -4)]),
        ((3, 4, 2, 5, 32), (2, 2, 2, 2, 16), [(0, 0, 0, 0, 0), (2, -1, 1, 4, 24)]),
    ],
    ids=["1d", "3d", "4d", "5d"],
)
def test_ranks_and_element_sizes(
    shape: tuple[int, ...], box: tuple[int, ...], starts: list[tuple[int, ...]], dtype: str
) -> None:
    for at in starts:
        array = tensor(shape, dtype)
        raw = np.zeros(int(np.prod(box)) * array.itemsize, np.uint8)
        copy_box(True, array, raw, at, box)
        part = box_of(array, at, box)
        np.testing.assert_array_equal(raw.view(dtype).reshape(box), part)
        new = (part + 1).astype(dtype)
        copy_box(False, array, np.ascontiguousarray(new).view(np.uint8).ravel(), at, box)
        np.testing.assert_array_equal(box_of(array, at, box), np.where(part != 0, new, 0))


def test_the_whole_box_counts_as_arrived() -> None:
    raw = np.zeros(16 * 96, np.uint8)
    at, box = (40, 90), (16, 48)
    copy_box(True, tensor((45, 102)), raw, at, box, expect=16 * 96, policy="late")
    with pytest.raises(Fault) as fault:  # only the bytes in bounds
        copy_box(True, tensor((45, 102)), raw, at, box, expect=5 * 12 * 2, policy="late")
    assert fault.value.kind in ("race", "deadlock", "barrier")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"magic": 1}, "magic"),
        ({"base": 8}, "multiple of 16"),
        ({"rank": 1}, "rank 1"),
        ({"box": 300}, "box"),
        ({"box": 36}, "rows of 72 bytes"),
        ({"stride": 24}, "stride"),
        ({"swizzle": 1}, "swizzle of 32"),
        ({"swizzle": 4}, "swizzle 4"),
    ],
)
def test_invalid_maps(change: dict[str, int], what: str) -> None:
    array = tensor((45, 102))
    good = tensor_map(array, (102, 45), array.strides[:1], (48, 16))
    bad = bytearray(good)
    places = {"magic": (0, 8), "base": (8, 8), "rank": (16, 4), "stride": (64, 8), "box": (96, 4),
              "swizzle": (116, 4)}  # fmt: skip
    for name, value in change.items():
        at, size = places[name]
        if name == "base":
            value += int.from_bytes(good[8:16], "little")
        bad[at : at + size] = value.to_bytes(size, "little")
    raw = np.zeros(16 * 96, np.uint8)
    body = LOAD_BOX.format(rank=2, form=FORMS[1][0], at="%c0, %c1", policy="", bytes=1536)
    ptx = tensor_text(body, 2, 2048, 0)
    memory = [memory_of("tensor", array)]
    run(ptx, "k", 1, THREADS, [good, raw, np.int32(0), np.int32(0)], memory=memory)
    with pytest.raises(Fault, match=what) as fault:
        run(ptx, "k", 1, THREADS, [bytes(bad), raw, np.int32(0), np.int32(0)], memory=memory)
    assert fault.value.kind == "launch"


def test_boxes_of_undocumented_layout_are_refused() -> None:
    for box in ((16, 32), (3, 16)):  # narrower than the swizzle; part of a line
        with pytest.raises(Fault) as fault:
            copy_box(True, tensor((45, 102)), np.zeros(1024, np.uint8), (0, 0), box,
                     swizzle=128 if box[0] == 16 else 32)  # fmt: skip
        assert fault.value.kind == "unsupported"


def test_destinations_are_aligned_to_128_bytes() -> None:
    with pytest.raises(Fault) as fault:
        copy_box(True, tensor((45, 102)), np.zeros(1536, np.uint8), (0, 0), (16, 48), offset=64)
    assert fault.value.kind == "alignment"
