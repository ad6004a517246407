"""Faults planted in the shipped attention kernels: without any one of their waits, barriers and
fences, what remains is caught."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from tests.ops.helpers import ints, normal

from . import Fault, launch
from .build import ROOT
from .ops import Sim, attention

# Enough keys that every loop is entered and every stage used again.
KEYS = 900


@dataclass(frozen=True)
class Change:
    """Replaces the `at`-th occurrence of `what` in the bf16 kernel, or all; the fault it is."""

    what: str
    instead: str
    kind: str
    at: int | None = None

    def apply(self, ptx: str) -> str:
        kernel, separator, others = ptx.partition("_f16_d128(")
        parts = kernel.split(self.what)
        assert len(parts) > 1, f"{self.what}: not in the kernel"
        if self.at is None:
            changed = self.instead.join(parts)
        else:
            parts[self.at : self.at + 2] = [self.instead.join(parts[self.at : self.at + 2])]
            changed = self.what.join(parts)
        return changed + separator + others


def attend(arch: str, ptx: str, monkeypatch: pytest.MonkeyPatch) -> Sim:
    monkeypatch.setattr(launch, "ptx_of", lambda kernel, arch: ptx)
    make = normal(torch.bfloat16)
    q, k, v = make(1, 130, 1, 128), make(1, KEYS, 1, 128), make(1, KEYS, 1, 128)
    on = Sim(arch)
    attention(on, q, k, v, ints(KEYS), choice="tile")
    return on


def shipped(arch: str) -> str:
    return (ROOT / f"kernels/ptx/attention.{arch}.ptx").read_text()


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_what_is_shipped_passes(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on = attend(arch, shipped(arch), monkeypatch)
    assert on.kernels and not any(report["warnings"] for report in on.reports)


FENCE = "wgmma.fence.sync.aligned;"
COMMIT = "wgmma.commit_group.sync.aligned;"
WAIT = "wgmma.wait_group.sync.aligned"
PARITY = "mbarrier.try_wait.parity.shared::cta.b64 P1, [%r561], %r567"
HOPPER = {
    "no fence before the first product": Change(FENCE, "", "async", 0),
    # In the loop nothing is written between this fence and the next one.
    "no fence after the scores": Change(FENCE, "", "async", 1),
    "no fence after the rescaling": Change(FENCE, "", "async", 3),
    "no commit of the first scores": Change(COMMIT, "", "async", 0),
    "no commit of the scores": Change(COMMIT, "", "async", 1),
    "no commit of the values": Change(COMMIT, "", "async", 2),
    "no commit of the last values": Change(COMMIT, "", "async", 3),
    "first scores not awaited": Change(f"{WAIT} 0;", f"{WAIT} 1;", "async", 0),
    "values not awaited": Change(f"{WAIT} 0;", f"{WAIT} 1;", "async", 1),
    "last values not awaited": Change(f"{WAIT} 0;", f"{WAIT} 1;", "async", 2),
    "scores not awaited": Change(f"{WAIT} 1;", f"{WAIT} 2;", "async"),
    "registers not given back": Change("setmaxnreg.dec.sync.aligned.u32 24;", "", "deadlock"),
    "output not fenced": Change("fence.proxy.async.shared::cta;", "", "proxy"),
    "output not gathered": Change("bar.sync %r1453, %r1454;", "", "race"),
    "output store not committed": Change("cp.async.bulk.commit_group;", "", "async"),
    "output store not awaited": Change("cp.async.bulk.wait_group.read 0;", "", "async"),
    "wrong parity of the queries": Change(PARITY, PARITY.replace("%r567", "1"), "race"),
    "wrong parity of the values": Change(
        "shr.u32 %r742, %r1020, 1;", "shr.u32 %r742, %r1020, 1; xor.b32 %r742, %r742, 1;",
        "deadlock",
    ),
    "wrong parity of a free stage": Change("mov.u32 %r285, 1;", "mov.u32 %r285, 0;", "deadlock"),
    "stages not freed": Change("mbarrier.arrive.shared::cta.b64 _, [%r575];", "", "deadlock"),
    "mbarriers not published": Change("bar.sync 0;", "", "race"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOPPER)
def test_hopper(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change = HOPPER[name]
    with pytest.raises(Fault) as fault:
        attend("sm_90a", change.apply(shipped("sm_90a")), monkeypatch)
    assert fault.value.kind == change.kind


def test_one_fence_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = shipped("sm_90a").partition("_f16_d128(")
    head, *rest = first.split(FENCE)
    with pytest.raises(Fault, match="written after the last") as fault:
        attend("sm_90a", head + FENCE + "".join(rest) + "".join(others), monkeypatch)
    assert fault.value.kind == "async"


COPIES, BARRIER = "cp.async.wait_all;", "bar.sync 0;"
AMPERE = {
    **{f"copies not awaited, {i}": Change(COPIES, "", "async", i) for i in range(4)},
    # The fourth is behind copies that another warp may not even have waited for. The fifth has
    # accesses to different bytes before and behind it: nothing is wrong without it.
    **{f"no barrier, {i}": Change(BARRIER, "", "async" if i == 3 else "race", i)
       for i in (0, 1, 2, 3, 5)},
}  # fmt: skip


@pytest.mark.parametrize("name", AMPERE)
def test_ampere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change = AMPERE[name]
    with pytest.raises(Fault) as fault:
        attend("sm_80", change.apply(shipped("sm_80")), monkeypatch)
    assert fault.value.kind == change.kind
