"""FP4 attention on sm_120's block-scaled tensor cores, against the float64 reference."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.ops.helpers import ints, normal
from vidk import reference
from vidk.reference import fp4

from . import Fault, has_nvcc, launch, ops
from .fp4_problem import (
    BF16,
    E4M3,
    every_recipe,
    every_value,
    problem_of,
    random_problem,
)

pytestmark = pytest.mark.skipif(not has_nvcc(), reason="no nvcc to compile the kernels")


class Sm120(ops.Sim):
    """Holds what each launch did to the rules."""

    def launch(self, plan: dict[str, Any], mutated: tuple[str, ...] = (), **tensors: Any) -> None:
        """Execute a plan."""
        super().launch(plan, mutated, **tensors)
        assert "sm120" in plan["kernel"]
        report = self.reports[-1]
        assert not report["warnings"]
        for space in ("shared_load", "shared_store", "matrix_load"):
            assert report[space]["wavefronts"] == report[space]["ideal"], space


def sim(**options: Any) -> Sm120:
    """Return where to execute."""
    return Sm120("sm_120a", options)


@every_value
@every_recipe
def test_results(recipe: str, values: torch.dtype) -> None:
    """More tiles than one group of means, some of them ragged; each key is read by each tile of q
    once."""
    problem = random_problem(recipe, 136, 150, 5, values)
    on = sim()
    problem.check(745, on)
    row = problem.k_codes.size(3) + 128 * values.itemsize
    by_each_tile = 745 * row + problem.k_scales.nbytes + 8 * 4
    once = problem.q_codes.nbytes + problem.q_scales.nbytes
    if problem.q is not None and problem.k_mean is not None:
        by_each_tile += problem.k_mean.nbytes
        once += problem.q.nbytes
    load, store = on.reports[0]["global_load"], on.reports[0]["global_store"]
    assert load["bytes"] == 2 * by_each_tile + once
    assert store["bytes"] == 32 * store["sectors"] == 136 * (128 * 2 + 4)


def test_many_heads_and_queries() -> None:
    random_problem("default", 260, 40, 3, heads=2, batch=2).check(100, sim())


@pytest.mark.parametrize("frame", [1, 24, 64, 65, 200])
def test_lengths(frame: int) -> None:
    """What is not valid may hold anything."""
    recipe, values = {1: ("mxfp8", BF16), 65: ("accurate", E4M3)}.get(frame, ("default", E4M3))
    slots = 10 if frame == 1 else 1 + 210 // frame
    problem = random_problem(recipe, 3, frame, slots, values)
    last = frame * slots
    edges = {64, 65, 127, 128, 129, frame, frame + 1, last - frame, last - 1, last}
    for length in sorted(n for n in edges if 0 < n <= last):
        problem.spoilt(length).check(length, sim())


def test_every_remainder() -> None:
    """Of a step of 64 keys."""
    problem = random_problem("default", 1, 70, 1, E4M3)
    for length in range(1, 65):
        problem.spoilt(length).check(length, sim())


@every_value
def test_no_keys(values: torch.dtype) -> None:
    for recipe in ("default", "mxfp8"):
        problem = random_problem(recipe, 3, 70, 2, values).spoilt(0)
        for length in (0, -1, -(2**31)):
            out, lse = problem.run(length, sim())
            assert (out == 0).all() and (lse == -math.inf).all()


def test_length_past_the_cache_is_all_of_it() -> None:
    problem = random_problem("default", 3, 70, 2)
    for length in (141, 2**31 - 1):
        assert all(map(torch.equal, problem.run(length, sim()), problem.run(140, sim())))


@pytest.mark.parametrize("policy", ["eager", "late", "random"])
def test_schedules(policy: str) -> None:
    """Whatever the order of warps and copies, the same bits."""
    problem = random_problem("accurate256", 136, 150, 5, E4M3)
    expected = problem.run(555, sim())
    for seed in (1, 2):
        got = problem.run(555, sim(policy=policy, seed=seed))
        assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("recipe", ["default", "mxfp8"])
@pytest.mark.parametrize("scale", [0.02, 0.5, -0.1, 0.0])
def test_scales(scale: float, recipe: str) -> None:
    random_problem(recipe, 20, 150, 2).check(290, sim(), scale=scale)


def test_products_rounded_as_tensor_cores_do() -> None:
    random_problem("default", 20, 150, 2).check(290, sim(truncate_products=True))


def test_strides() -> None:
    """q is a view of fused q, k and v; v one of what k and v share."""
    problem = random_problem("default", 70, 70, 3, heads=2, batch=2)
    expected = problem.run(200, sim())
    q, v = problem.q, problem.v
    assert q is not None
    views = {
        "q": torch.stack([q, q + 1, q - 1], 2)[:, :, 0],
        "v": torch.stack([v + 1, v], 2)[:, :, 1],
    }
    assert all(map(torch.equal, replace(problem, **views).run(200, sim()), expected))


@every_value
@pytest.mark.parametrize("recipe", ["default", "mxfp8"])
def test_nan_in_q_stays_in_its_row(recipe: str, values: torch.dtype) -> None:
    make = normal(BF16, recipe)
    q, k, v = make(1, 70, 2, 128), make(1, 140, 2, 128), make(1, 140, 2, 128).to(values)
    clean = problem_of(q, k, v, recipe, 70).run(130, sim())
    q[0, 8, 1, 6] = math.nan
    got = problem_of(q, k, v, recipe, 70).run(130, sim())
    assert got[0][0, 8, 1].isnan().all() and got[1][0, 1, 8].isnan()
    got[0][0, 8, 1], got[1][0, 1, 8] = clean[0][0, 8, 1], clean[1][0, 1, 8]
    assert all(map(torch.equal, got, clean))


# --- logits ---------------------------------------------------------------------------------------


def test_logits_are_exact() -> None:
    """Of one key, the log-sum-exp is the logit; scales differ by row and by block."""
    heads = 40  # with another first key each
    make = normal(torch.float32)
    q, k = (
        make(1, n, heads, 8, 16) * torch.exp2(make(1, n, heads, 8, 1).round().clamp(-1, 1))
        for n in (128, 1)
    )
    v = make(1, 1, heads, 128).bfloat16()
    problem = problem_of(q.flatten(3), k.flatten(3), v, "plain", 1)
    _, lse = problem.run(1, sim(), scale=math.log(2))  # so that logits to base 2 are the products
    q_rows = fp4.decode_rows(problem.q_codes, fp4.unswizzled(problem.q_scales, 128)).double()
    k_rows = fp4.decode_rows(problem.k_codes, fp4.unswizzled(problem.k_scales, 1)).double()
    exact = (q_rows @ k_rows.transpose(-1, -2))[..., 0]
    # Products of these are exact in float32, whatever the order.
    assert torch.equal(exact.float().double(), exact) and exact.unique().numel() > 3000
    assert torch.equal(lse, exact.float() * torch.tensor(math.log(2)))


# --- weights in E4M3 ------------------------------------------------------------------------------


@pytest.mark.parametrize("std", [0.25, 1.0, 2.0, 3.0, 4.5])
def test_no_weight_is_cut(std: float) -> None:
    random_problem("plain", 128, 200, 3, E4M3, std=std).check(600, sim())


def test_no_weight_is_cut_as_the_maximum_creeps_up() -> None:
    """Each key is a little ahead of all before it: the worst for a reference that lags."""
    q = torch.ones(1, 1, 1, 128)
    k = torch.linspace(1, 3, 640).view(1, 640, 1, 1).expand(1, 640, 1, 128)
    v = normal(E4M3)(1, 640, 1, 128)
    for steepness in (0.5, 2, 8, 24):
        # Steps between numbers of a scale make some steps of keys equal and others a leap.
        problem_of(q, k.contiguous(), v, "plain", 640).check(640, sim(), scale=steepness / 128)


@pytest.mark.parametrize(
    ("recipe", "bar"), [("plain", 0.9892), ("default", 0.9910), ("mxfp8", 0.9983)]
)
def test_cosine_with_fp8_values(recipe: str, bar: float) -> None:
    make = normal(BF16)
    q, k, v = make(1, 128, 2, 128), make(1, 1024, 2, 128), make(1, 1024, 2, 128)
    exact = reference.attention(q.double(), k.double(), v.double(), ints(1024))[0]
    got, _ = problem_of(q, k, v.to(E4M3), recipe, 512).run(1024, sim())
    assert torch.cosine_similarity(got.double().flatten(), exact.flatten(), 0) >= bar


# --- what holds it together -----------------------------------------------------------------------


FAULTS = {
    "copies not awaited": ("cp.async.wait_group 1;", "cp.async.wait_group 2;", "async"),
    "stages not handed over": ("bar.sync", "//", "race"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    what, instead, kind = FAULTS[name]
    problem = random_problem("default", 136, 150, 5)
    shipped = launch.ptx_of("vidk_fp4_attention_sm120_nvfp4_d128_bf16", "sm_120a")
    assert what in shipped
    monkeypatch.setattr(launch, "ptx_of", lambda *_: shipped.replace(what, instead))
    with pytest.raises(Fault) as fault:
        problem.run(600, sim())
    assert fault.value.kind == kind
