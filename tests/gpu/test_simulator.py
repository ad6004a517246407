"""The simulator's own tests, each launch of them on the GPU too, with the same bytes after it.

Matrix products are of small integers here, whose sums are exact in any order: how tensor cores
round long sums is not specified.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pybind11", reason="the simulator is built with pybind11")

from tests.ptxsim import (
    micro,
    test_convert,
    test_copies,
    test_float,
    test_integer,
    test_matrix,
    test_mbarrier,
    test_wgmma,
    warp_kernel,
)

from . import on_both

HOPPER = (test_copies, test_mbarrier, test_wgmma)
MODULES = (test_integer, test_float, test_convert, test_matrix, *HOPPER)
# They ask for roundings that small integers do not have.
EXCLUDED = re.compile(r"test_trunc(ated|ation)_")


def small_integers(rng: np.random.Generator, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Return values whose products and sums every type holds exactly."""
    return rng.integers(-4, 5, shape).astype(test_matrix.TYPES[name])


@pytest.fixture(autouse=True)
def both(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Replace the simulator by the simulator and the GPU."""
    for module in (micro, warp_kernel, test_copies):
        monkeypatch.setattr(module, "run", on_both.run)
    for module in (test_matrix, test_wgmma):
        monkeypatch.setattr(module, "random", small_integers)
    hopper = {m.__name__.split(".")[-1] for m in HOPPER}
    if request.node.name.startswith(tuple(hopper)) and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("these kernels are written for sm_90a")


def collect(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """Return a module's tests under its name, those with fixtures of their own left out."""
    prefix = module.__name__.split(".")[-1]
    found = {}
    for name, function in vars(module).items():
        if not name.startswith("test_") or not callable(function) or EXCLUDED.match(name):
            continue
        marks = [m for m in getattr(function, "pytestmark", []) if m.name == "parametrize"]
        given = ",".join(
            a if isinstance(a, str) else ",".join(a) for a in (m.args[0] for m in marks)
        )
        if set(inspect.signature(function).parameters) <= set(given.replace(" ", "").split(",")):
            found[f"{prefix}__{name.removeprefix('test_')}"] = function
    return found


for _module in MODULES:
    globals().update(collect(_module))


WARP = {
    "idx": "shfl.sync.idx.b32 %d0|%p1, %a0, %a1, {c}, -1;",
    "up": "shfl.sync.up.b32 %d0|%p1, %a0, %a1, {z}, -1;",
    "down": "shfl.sync.down.b32 %d0|%p1, %a0, %a1, {c}, -1;",
    "bfly": "shfl.sync.bfly.b32 %d0|%p1, %a0, %a1, {c}, -1;",
}


@pytest.mark.parametrize("width", [32, 16, 4])
@pytest.mark.parametrize("mode", WARP)
def test_shuffles(mode: str, width: int) -> None:
    mask = (32 - width) << 8
    body = WARP[mode].format(c=mask | 31, z=mask) + "selp.u32 %d1, 1, 0, %p1;"
    data = np.random.default_rng(width).integers(0, 1 << 32, (2, 32), np.uint32)
    for amount in (0, 1, 3, 15, 31):
        data[1] = amount  # the same for all lanes, as up, down and bfly are mostly used
        warp_kernel.execute(warp_kernel.text(body, 2, 2), data, 2)
    data[1] = np.random.default_rng(7).permutation(32)
    if mode == "idx":
        warp_kernel.execute(warp_kernel.text(body, 2, 2), data, 2)


@pytest.mark.parametrize(
    "body",
    [
        "setp.lt.s32 %p1, %a0, 0; vote.sync.ballot.b32 %d0, %p1, -1;",
        "setp.lt.s32 %p1, %a0, 0; vote.sync.any.pred %p2, %p1, -1; selp.u32 %d0, 1, 0, %p2;",
        "setp.lt.s32 %p1, %a0, 0; vote.sync.all.pred %p2, %p1, -1; selp.u32 %d0, 1, 0, %p2;",
        "redux.sync.add.s32 %d0, %a0, -1;",
        "redux.sync.min.s32 %d0, %a0, -1;",
        "redux.sync.max.u32 %d0, %a0, -1;",
        "redux.sync.xor.b32 %d0, %a0, -1;",
    ],
)
def test_votes_and_reductions(body: str) -> None:
    data = np.random.default_rng(3).integers(0, 1 << 32, (1, 64), np.uint32)
    warp_kernel.execute(warp_kernel.text(body, 1, 1), data, 1)
