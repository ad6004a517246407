"""mbarrier objects, fences, and the small instructions of warp-specialised kernels."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptxsim import Fault, SyntaxError
from tests.ptxsim.warp_kernel import execute, text

# %r0: the object. Initialised by thread 0 for `count` arrivals.
INIT = """
mov.u32 %r0, buffer;
setp.eq.u32 %p1, %tid4, 0;
@%p1 mbarrier.init.shared::cta.b64 [%r0], {count};
bar.sync 0;
"""


def spin(parity: str, label: str) -> str:
    return (
        f"{label}:\nmbarrier.try_wait.parity.shared::cta.b64 %p2, [%r0], {parity};\n"
        f"@!%p2 bra {label};\n"
    )


def kernel(body: str, outputs: int, count: int = 1) -> str:
    return text(INIT.format(count=count) + body, 1, outputs, shared=1024)


def words(threads: int = 32) -> np.ndarray:
    return np.arange(threads, dtype=np.uint32)[None] + 100


def test_a_fresh_object_has_completed_the_odd_phase() -> None:
    body = """
    mbarrier.test_wait.parity.shared.b64 %p2, [%r0], 0;
    mbarrier.test_wait.parity.shared.b64 %p3, [%r0], 1;
    selp.u32 %d0, 1, 0, %p2;
    selp.u32 %d1, 1, 0, %p3;
    """
    got, _ = execute(kernel(body, 2), words(), 2)
    assert (got[0] == 0).all()
    assert (got[1] == 1).all()


# Warp 1 hands the words of its lanes to warp 0, twice, through a full and an empty phase.
HANDOVER = """
mov.u32 %r0, buffer;
setp.eq.u32 %p1, %tid4, 0;
@%p1 mbarrier.init.shared::cta.b64 [%r0], 32;
@%p1 mbarrier.init.shared::cta.b64 [%r0+8], 32;
bar.sync 0;
and.b32 %r1, %tid4, 127;
add.u32 %r1, %r1, %r0;
setp.ge.u32 %p1, %tid4, 128;
mov.b32 %d0, 0;
mov.b32 %d1, 0;
@%p1 bra PRODUCER;
FULL0: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r0], 0;
@!%p2 bra FULL0;
ld.shared.b32 %d0, [%r1+512];
mbarrier.arrive.shared::cta.b64 _, [%r0+8];
FULL1: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r0], 1, 1000;
@!%p2 bra FULL1;
ld.shared.b32 %d1, [%r1+512];
bra DONE;
PRODUCER:
st.shared.b32 [%r1+512], %a0;
mbarrier.arrive.release.cta.shared::cta.b64 _, [%r0];
add.u32 %a0, %a0, 1;
EMPTY: mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 %p2, [%r0+8], 0;
@!%p2 bra EMPTY;
st.shared.b32 [%r1+512], %a0;
mbarrier.arrive.shared::cta.b64 _, [%r0];
DONE:
"""


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_phases_order_memory(seed: int) -> None:
    data = words(64)
    got, _ = execute(text(HANDOVER, 1, 2, shared=1024), data, 2, seed=seed)
    np.testing.assert_array_equal(got[0, :32], data[0, 32:])
    np.testing.assert_array_equal(got[1, :32], data[0, 32:] + 1)


@pytest.mark.parametrize(
    ("what", "instead"),
    [
        ("@!%p2 bra EMPTY;", ""),  # the producer overwrites what is still read
        ("arrive.release.cta", "arrive.relaxed.cta"),  # the consumer learns nothing
    ],
)
def test_missing_order_is_a_race(what: str, instead: str) -> None:
    assert what in HANDOVER
    ptx = text(HANDOVER.replace(what, instead), 1, 2, shared=1024)
    with pytest.raises(Fault) as fault:
        execute(ptx, words(64), 2)
    assert fault.value.kind == "race"


def test_tokens_and_pending_count() -> None:
    body = """
    mbarrier.arrive.shared.b64 %rd1, [%r0];
    mbarrier.pending_count.b64 %d0, %rd1;
    WAIT: mbarrier.test_wait.shared.b64 %p2, [%r0], %rd1;
    @!%p2 bra WAIT;
    mbarrier.arrive.shared.b64 %rd2, [%r0], 1;
    mbarrier.test_wait.shared.b64 %p3, [%r0], %rd1;
    selp.u32 %d1, 1, 0, %p3;
    """
    got, _ = execute(kernel(body, 2, count=32), words(), 2)
    np.testing.assert_array_equal(np.sort(got[0]), np.arange(1, 33))
    assert (got[1] == 1).all()


def test_a_phase_waits_for_bytes_too() -> None:
    body = (
        "mov.b32 %d0, 0; mov.b32 %d1, 0;\n@!%p1 bra END;\n"
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r0], 48;\n"
        "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%r0], 32;\n"
        "mbarrier.test_wait.parity.shared.b64 %p2, [%r0], 0; selp.u32 %d0, 1, 0, %p2;\n"
        "mbarrier.complete_tx.shared::cta.b64 [%r0], 16;\n"
        "mbarrier.test_wait.parity.shared.b64 %p2, [%r0], 0; selp.u32 %d1, 1, 0, %p2;\nEND:"
    )
    got, _ = execute(kernel(body, 2), words(), 2)
    assert got[0, 0] == 0
    assert got[1, 0] == 1


def test_expect_may_come_after_complete() -> None:
    body = (
        "mov.b32 %d0, 0;\n@!%p1 bra END;\n"
        "mbarrier.complete_tx.shared::cta.b64 [%r0], 16;\n"
        "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r0], 16;\n"
        "mbarrier.arrive.shared::cta.b64 _, [%r0];\n" + spin("0", "L") + "mov.b32 %d0, 1;\nEND:"
    )
    got, _ = execute(kernel(body, 1), words(), 1)
    assert got[0, 0] == 1


def test_arrive_drop_leaves_later_phases() -> None:
    body = (
        "setp.lt.u32 %p3, %tid4, 64;\n"
        "@%p3 mbarrier.arrive.shared.b64 _, [%r0];\n"
        "@!%p3 mbarrier.arrive_drop.shared.b64 _, [%r0];\n"
        "@%p3 mbarrier.arrive.shared.b64 _, [%r0];\n"
        "mov.b32 %d0, 0;\n" + spin("1", "L") + "mov.b32 %d0, 1;\n"
    )
    got, _ = execute(kernel(body, 1, count=32), words(), 1)
    assert (got == 1).all()


def test_generic_addresses() -> None:
    body = (
        "cvt.u64.u32 %rd1, %r0; cvta.shared.u64 %rd2, %rd1;\n"
        "mbarrier.arrive.b64 %rd3, [%rd2];\n"
        "W: mbarrier.try_wait.b64 %p2, [%rd2], %rd3;\n@!%p2 bra W;\nmov.b32 %d0, 1;"
    )
    got, _ = execute(kernel(body, 1, count=32), words(), 1)
    assert (got == 1).all()


def test_an_object_can_be_made_again() -> None:
    body = (
        "mov.b32 %d0, 0;\n@!%p1 bra END;\n"
        "mbarrier.inval.shared.b64 [%r0];\n"
        "mbarrier.init.shared.b64 [%r0], 2;\n"
        "mbarrier.arrive.shared.b64 _, [%r0], 2;\n" + spin("0", "L") + "mov.b32 %d0, 1;\nEND:"
    )
    got, _ = execute(kernel(body, 1), words(), 1)
    assert got[0, 0] == 1


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("mbarrier.arrive.shared.b64 _, [%r0], 2;", "barrier"),  # more than the phase expects
        ("mbarrier.arrive.shared.b64 _, [%r0+16];", "barrier"),  # never initialised
        ("mbarrier.arrive.shared.b64 _, [%r0+4];", "alignment"),
        ("mbarrier.init.shared.b64 [%r0], 1;", "barrier"),  # still live
        ("mbarrier.init.shared.b64 [%r0+8], 0;", "barrier"),
        ("mbarrier.expect_tx.shared.b64 [%r0], 1048575; mbarrier.expect_tx.shared.b64 [%r0], 1;",
         "barrier"),
        (spin("0", "L"), "deadlock"),
    ],
)  # fmt: skip
def test_misuse(body: str, kind: str) -> None:
    alone = f"@!%p1 bra END;\n{body}\nEND: mov.b32 %d0, 0;"
    with pytest.raises(Fault) as fault:
        execute(kernel(alone, 1), words(), 1)
    assert fault.value.kind == kind


def test_use_without_a_barrier_after_the_initialisation() -> None:
    body = INIT.format(count=64).replace("bar.sync 0;", "") + (
        "mbarrier.arrive.shared.b64 _, [%r0]; mov.b32 %d0, 0;"
    )
    with pytest.raises(Fault, match="initialisation") as fault:
        execute(text(body, 1, 1, shared=1024), words(64), 1)
    assert fault.value.kind == "race"


def test_elect_names_one_leader() -> None:
    body = """
    setp.ge.u32 %p3, %tid4, 20;
    mov.b32 %d0, 0; mov.b32 %d1, 0;
    @!%p3 bra END;
    elect.sync %d0|%p2, 0xffffffe0;
    selp.u32 %d1, 1, 0, %p2;
    elect.sync _|%p2, 0xffffffe0;
    END:
    """
    got, _ = execute(text(body, 1, 2), words(), 2)
    assert (got[0, 5:] == 5).all()
    assert got[1].nonzero()[0].tolist() == [5]


def test_what_has_no_effect_is_accepted() -> None:
    body = """
    setmaxnreg.dec.sync.aligned.u32 40;
    setmaxnreg.inc.sync.aligned.u32 240;
    griddepcontrol.wait;
    griddepcontrol.launch_dependents;
    nanosleep.u32 20;
    membar.cta; membar.gl; membar.sys;
    fence.acq_rel.gpu; fence.sc.sys; fence.acquire.cta;
    fence.mbarrier_init.release.cluster;
    fence.proxy.async; fence.proxy.async.shared::cta; fence.proxy.async.global;
    prefetch.global.L2 [%src]; prefetch.tensormap [%src];
    mov.b32 %d0, %a0;
    """
    got, _ = execute(text(body, 1, 1), words(), 1)
    np.testing.assert_array_equal(got, words())


@pytest.mark.parametrize(
    "wrong",
    [
        "setmaxnreg.inc.sync.aligned.u32 44;",
        "setmaxnreg.dec.sync.aligned.u32 264;",
        "fence.proxy.tensormap;",
        "fence.acq_rel;",
        "mbarrier.arrive.noComplete.shared.b64 _, [%r0], 1;",
        "mbarrier.test_wait.parity.shared::cluster.b64 %p2, [%r0], 0;",
        "mbarrier.init.shared.b64 [%r0];",
    ],
)
def test_unknown_forms_are_refused(wrong: str) -> None:
    with pytest.raises(SyntaxError, match="line"):
        execute(text(wrong + "mov.b32 %d0, 0;", 1, 1), words(), 1)
