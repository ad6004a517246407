"""FP4 attention on tensor cores that know bfloat16, against the float64 reference."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.helpers import ints, normal
from vidk import reference
from vidk.reference import fp4

from . import Fault, has_nvcc, launch, ops
from .fp4_problem import (
    BF16,
    E4M3,
    Problem,
    every_recipe,
    every_value,
    problem_of,
    random_problem,
)

pytestmark = pytest.mark.skipif(not has_nvcc(), reason="no nvcc to compile the kernels")
# What a Hopper GPU takes, and what all others do, Blackwell's if they are asked to.
FAMILIES = {"sm_80": "portable", "sm_90a": "sm90"}
archs = pytest.mark.parametrize("arch", FAMILIES)


class Portable(ops.Sim):
    """Holds what each launch did to the rules."""

    def launch(self, plan: dict[str, Any], mutated: tuple[str, ...] = (), **tensors: Any) -> None:
        """Execute a plan."""
        super().launch(plan, mutated, **tensors)
        assert f"_{FAMILIES[self.arch]}_" in plan["kernel"]
        report = self.reports[-1]
        assert not report["warnings"]
        for space in ("shared_load", "shared_store", "matrix_load"):
            assert report[space]["wavefronts"] == report[space]["ideal"], space


def run(problem: Problem, length: int, on: ops.Sim, **options: Any) -> tuple[Tensor, Tensor]:
    return problem.run(length, on, choice="portable", **options)


def check(problem: Problem, length: int, on: ops.Sim, **options: Any) -> None:
    """Hold the kernel to the reference; values of either type are multiplied as bfloat16."""
    out, lse = run(problem, length, on, **options)
    expected, lse_expected = problem.expected(length, **options)
    assert (out.double() - expected).norm() <= 3e-3 * expected.norm()
    assert (lse - lse_expected).abs().max() <= 1e-4


@archs
@every_value
@every_recipe
def test_results(recipe: str, values: torch.dtype, arch: str) -> None:
    """More tiles than one group of means, some of them ragged; each key is read by each tile of q
    once."""
    length = 5 * 130 - 1
    problem = random_problem(recipe, 136, 130, 5, values)
    on = Portable(arch)
    check(problem, length, on)
    load, store = on.reports[0]["global_load"], on.reports[0]["global_store"]
    row = problem.k_codes.size(3) + 128 * values.itemsize
    columns = 4 * problem.k_scales.size(3)
    # A scale is loaded with all 16 bytes of codes that it is for, or of half of them.
    scales = columns if recipe != "mxfp8" else 2 * columns
    by_each_tile = length * (row + scales)
    assert 2 * by_each_tile <= load["bytes"]
    if problem.q is None:
        q_rows = 128 + 8 if arch == "sm_90a" else 256
        quads = 1 if arch == "sm_90a" else 4  # threads that load the same codes of q
        q_bytes = problem.q_codes.size(3) + (scales if arch == "sm_90a" else 2 * columns)
        assert load["bytes"] <= 2 * by_each_tile + q_rows * quads * q_bytes + 400 * 4
    assert store["bytes"] == 136 * (128 * 2 + 4)
    assert 32 * store["sectors"] <= 1.01 * store["bytes"]


@archs
def test_many_heads_and_queries(arch: str) -> None:
    check(random_problem("default", 260, 40, 3, heads=2, batch=2), 100, Portable(arch))


@archs
@pytest.mark.parametrize("frame", [1, 24, 64, 65, 200])
def test_lengths(frame: int, arch: str) -> None:
    """What is not valid may hold anything."""
    recipe, values = {1: ("mxfp8", BF16), 65: ("accurate", E4M3)}.get(frame, ("default", BF16))
    slots = 10 if frame == 1 else 1 + 210 // frame
    problem = random_problem(recipe, 3, frame, slots, values)
    last = frame * slots
    edges = {64, 65, 127, 128, 129, frame, frame + 1, last - frame, last - 1, last}
    for length in sorted(n for n in edges if 0 < n <= last):
        check(problem.spoilt(length), length, Portable(arch))


@archs
def test_every_remainder(arch: str) -> None:
    """Of a block of 64 keys; for the other kernel the same code hides what is not there."""
    problem = random_problem("default", 1, 70, 1)
    for length in range(1, 65, 1 if arch == "sm_80" else 3):
        check(problem.spoilt(length), length, Portable(arch))


@archs
@every_value
def test_no_keys(values: torch.dtype, arch: str) -> None:
    for recipe in ("default", "mxfp8"):
        problem = random_problem(recipe, 3, 70, 2, values).spoilt(0)
        for length in (0, -1, -(2**31)):
            out, lse = run(problem, length, Portable(arch))
            assert (out == 0).all() and (lse == -math.inf).all()


@archs
def test_length_past_the_cache_is_all_of_it(arch: str) -> None:
    problem = random_problem("default", 3, 70, 2)
    for length in (141, 2**31 - 1):
        got = run(problem, length, Portable(arch))
        assert all(map(torch.equal, got, run(problem, 140, Portable(arch))))


@archs
@every_value
@pytest.mark.parametrize("policy", ["eager", "late", "random"])
def test_schedules(policy: str, values: torch.dtype, arch: str) -> None:
    """Whatever the order of warps and copies, the same bits."""
    problem = random_problem("accurate256", 20, 150, 4, values)
    expected = run(problem, 555, Portable(arch))
    got = run(problem, 555, Portable(arch, {"policy": policy, "seed": 1}))
    assert all(map(torch.equal, got, expected))


@archs
@pytest.mark.parametrize("recipe", ["default", "mxfp8"])
@pytest.mark.parametrize("scale", [0.02, 0.5, -0.1, 0.0])
def test_scales(scale: float, recipe: str, arch: str) -> None:
    check(random_problem(recipe, 20, 150, 2), 290, Portable(arch), scale=scale)


@archs
def test_products_rounded_as_tensor_cores_do(arch: str) -> None:
    on = Portable(arch, {"truncate_products": True})
    check(random_problem("default", 20, 150, 2), 290, on)


@archs
def test_strides(arch: str) -> None:
    """q is a view of fused q, k and v; v one of what k and v share."""
    problem = random_problem("default", 70, 70, 3, heads=2, batch=2)
    expected = run(problem, 200, Portable(arch))
    q, v = problem.q, problem.v
    assert q is not None
    views = {
        "q": torch.stack([q, q + 1, q - 1], 2)[:, :, 0],
        "v": torch.stack([v + 1, v], 2)[:, :, 1],
    }
    got = run(replace(problem, **views), 200, Portable(arch))
    assert all(map(torch.equal, got, expected))


@archs
@pytest.mark.parametrize("recipe", ["default", "accurate", "mxfp8"])
def test_nan_in_q_stays_in_its_row(recipe: str, arch: str) -> None:
    make = normal(BF16, recipe)
    q, k, v = make(1, 70, 2, 128), make(1, 140, 2, 128), make(1, 140, 2, 128)
    clean = run(problem_of(q, k, v, recipe, 70), 130, Portable(arch))
    q[0, 8, 1, 6] = math.nan
    got = run(problem_of(q, k, v, recipe, 70), 130, Portable(arch))
    assert got[0][0, 8, 1].isnan().all() and got[1][0, 1, 8].isnan()
    got[0][0, 8, 1], got[1][0, 1, 8] = clean[0][0, 8, 1], clean[1][0, 1, 8]
    assert all(map(torch.equal, got, clean))


@archs
@pytest.mark.parametrize("recipe", ["default", "mxfp8"])
def test_nan_in_a_key_or_value_is_seen(recipe: str, arch: str) -> None:
    make = normal(BF16, recipe)
    q, k, v = make(1, 20, 1, 128), make(1, 140, 1, 128), make(1, 140, 1, 128)
    v[0, 100, 0, 17] = math.nan
    out, _ = run(problem_of(q, k, v.to(E4M3), recipe, 70), 130, Portable(arch))
    assert out[..., 17].isnan().all() and out.isnan().sum() == 20
    out, _ = run(problem_of(q, k, v, recipe, 70), 100, Portable(arch))
    assert not out.isnan().any()
    k[0, 90, 0, 3] = math.nan
    out, lse = run(problem_of(q, k, v, recipe, 70), 100, Portable(arch))
    assert out.isnan().all() and lse.isnan().all()


# --- logits ---------------------------------------------------------------------------------------


@archs
def test_logits_are_exact(arch: str) -> None:
    """Where one key has all the weight, the log-sum-exp is its logit, bit for bit. Which key that
    is differs by row, and scales by row and by block."""
    make = normal(torch.float32)
    q, k = (
        make(1, n, 1, 8, 16) * torch.exp2(make(1, n, 1, 8, 1).round().clamp(-1, 1))
        for n in (128, 300)
    )
    problem = problem_of(q.flatten(3), k.flatten(3), make(1, 300, 1, 128).bfloat16(), "plain", 150)
    # Logits to base 2 are 64 times the products.
    scale = 64 * math.log(2)
    _, lse = run(problem, 300, Portable(arch), scale=scale)
    q_rows = fp4.decode_rows(problem.q_codes, fp4.unswizzled(problem.q_scales, 128)).double()
    k_rows = fp4.decode_rows(problem.k_codes, fp4.unswizzled(problem.k_scales, 150, 2)).double()
    products = (q_rows @ k_rows.transpose(-1, -2))[0, 0]
    first, second = products.topk(2, -1).values.unbind(-1)
    alone = 64 * (first - second) > 40
    assert products.argmax(-1)[alone].unique().numel() > 70
    # Products of these are exact in float32, whatever the order.
    assert torch.equal(products.float().double(), products)
    assert torch.equal(lse[0, 0, alone], first[alone].float() * torch.tensor(scale))


@pytest.mark.parametrize(("recipe", "bar"), [("plain", 0.9900), ("default", 0.9918)])
def test_cosine(recipe: str, bar: float) -> None:
    make = normal(BF16)
    q, k, v = make(1, 128, 2, 128), make(1, 1024, 2, 128), make(1, 1024, 2, 128)
    exact = reference.attention(q.double(), k.double(), v.double(), ints(1024))[0]
    got, _ = run(problem_of(q, k, v, recipe, 512), 1024, Portable("sm_90a"))
    assert torch.cosine_similarity(got.double().flatten(), exact.flatten(), 0) >= bar


# --- what holds it together -----------------------------------------------------------------------


FAULTS = {
    "copies not awaited": ("sm_80", "cp.async.wait_all;", "", "async"),
    "buffers not handed over": ("sm_80", "bar.sync", "//", "race"),
    "tiles not fenced": ("sm_90a", "fence.proxy.async.shared::cta;", "", "proxy"),
    "products not awaited": ("sm_90a", "wgmma.wait_group.sync.aligned 0;", "", "async"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arch, what, instead, kind = FAULTS[name]
    problem = random_problem("default", 136, 150, 5)
    on = Portable(arch)
    shipped = launch.ptx_of(f"vidk_fp4_attention_{FAMILIES[arch]}_d128_bf16", arch)
    assert what in shipped
    monkeypatch.setattr(launch, "ptx_of", lambda *_: shipped.replace(what, instead))
    with pytest.raises(Fault) as fault:
        run(problem, 600, on)
    assert fault.value.kind == kind
