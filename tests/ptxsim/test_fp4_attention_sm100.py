"""FP4 attention with tcgen05 and tensor memory, against the float64 reference."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.helpers import ints, normal, seeded
from vidk.reference import attention, fp4, nvfp4

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
# sm_100 shares out its exponentials; sm_103 does not.
ARCHS = ("sm_100a", "sm_103a")
every_arch = pytest.mark.parametrize("arch", ARCHS)
ROWS = 256  # queries of a thread block


def run(problem: Problem, length: int, on: ops.Sim | None = None) -> tuple[Tensor, Tensor]:
    """Execute the kernel."""
    return problem.run(length, on or ops.Sim("sm_100a"))


def check(problem: Problem, length: int, on: ops.Sim | None = None, **options: Any) -> None:
    """Hold the kernel to the reference, and what it did to the rules."""
    on = on or ops.Sim("sm_100a")
    problem.check(length, on, **options)
    (report,) = on.reports
    assert "sm100" in on.kernels[0] and not report["warnings"]
    for space in ("shared_load", "shared_store"):
        assert report[space]["wavefronts"] == report[space]["ideal"], space


@every_value
@every_recipe
def test_results(recipe: str, values: torch.dtype) -> None:
    """Two tiles of queries, the second ragged; slots that end in a ragged tile."""
    check(random_problem(recipe, 200, 150, 3, values), 3 * 150 - 70)


@every_value
def test_sm103(values: torch.dtype) -> None:
    check(random_problem("default", 200, 150, 3, values), 3 * 150 - 70, ops.Sim("sm_103a"))


def test_many_heads_and_queries() -> None:
    check(random_problem("default", 260, 40, 3, heads=2, batch=2), 100)


def test_more_tiles_than_one_group_of_means() -> None:
    check(random_problem("default", 130, 1, 70), 70)


@pytest.mark.parametrize("frame", [24, 128, 200])
def test_lengths(frame: int) -> None:
    """What is not valid may hold anything."""
    recipe, values = {128: ("mxfp8", BF16), 200: ("accurate", E4M3)}.get(frame, ("default", BF16))
    problem = random_problem(recipe, 3, frame, 1 + 260 // frame, values)
    last = problem.capacity
    edges = {1, 127, 128, 129, frame - 1, frame, frame + 1, last - frame, last - 1, last}
    for length in sorted(n for n in edges if 0 < n <= last):
        check(problem.spoilt(length), length)


@every_value
def test_every_remainder(values: torch.dtype) -> None:
    """Of the chunks of keys that are left out."""
    problem = random_problem("default", 1, 70, 1, values)
    for length in range(1, 66):
        check(problem.spoilt(length), length)


@every_value
def test_no_keys(values: torch.dtype) -> None:
    problem = random_problem("default", 130, 70, 1, values).spoilt(0)
    for length in (0, -1, -(2**31)):
        out, lse = run(problem, length)
        assert (out == 0).all() and (lse == -math.inf).all()


def test_length_past_the_cache_is_all_of_it() -> None:
    problem = random_problem("default", 3, 70, 2)
    for length in (141, 2**31 - 1):
        assert all(map(torch.equal, run(problem, length), run(problem, 140)))


@pytest.mark.parametrize(
    ("policy", "seed"), [("eager", 1), ("late", 0), ("late", 2), ("random", 3), ("random", 4)]
)
def test_schedules(policy: str, seed: int) -> None:
    """Whatever the order of warps, copies and products, the same bits."""
    problem = random_problem("default", 130, 150, 3)
    on = ops.Sim("sm_100a", {"policy": policy, "seed": seed})
    assert all(map(torch.equal, run(problem, 440, on), run(problem, 440)))


@pytest.mark.parametrize("recipe", ["default", "mxfp8"])
@pytest.mark.parametrize("scale", [0.02, 0.5, -0.1, 0.0])
def test_scales(scale: float, recipe: str) -> None:
    check(random_problem(recipe, 20, 150, 2), 290, scale=scale)


def test_products_rounded_as_tensor_cores_do() -> None:
    on = ops.Sim("sm_100a", {"truncate_products": True})
    check(random_problem("default", 64, 150, 2), 290, on)


def test_strides() -> None:
    """q is a view of fused q, k and v; v one of what k and v share."""
    problem = random_problem("default", 70, 70, 3, heads=2, batch=2)
    expected = run(problem, 200)
    q, v = problem.q, problem.v
    views = replace(
        problem,
        q=torch.stack([q, q + 1, q - 1], 2)[:, :, 0],
        v=torch.stack([v + 1, v], 2)[:, :, 1],
    )
    assert all(map(torch.equal, run(views, 200), expected))


@every_value
@every_arch
def test_nan_in_q_stays_in_its_row(arch: str, values: torch.dtype) -> None:
    make = normal(BF16)
    q, k, v = make(1, 70, 2, 128), make(1, 200, 2, 128), make(1, 200, 2, 128).to(values)
    clean = run(problem_of(q, k, v, "default", 100), 190, ops.Sim(arch))
    q[0, 8, 1, 6] = math.nan
    got = run(problem_of(q, k, v, "default", 100), 190, ops.Sim(arch))
    assert got[0][0, 8, 1].isnan().all() and got[1][0, 1, 8].isnan()
    got[0][0, 8, 1], got[1][0, 1, 8] = clean[0][0, 8, 1], clean[1][0, 1, 8]
    assert all(map(torch.equal, got, clean))


def test_nan_in_a_key_is_seen() -> None:
    """Whether its exponential is shared out or not."""
    make = normal(BF16)
    q, k, v = make(1, 2, 1, 128), make(1, 40, 1, 128), make(1, 40, 1, 128)
    for key in (4, 6):
        spoilt = k.clone()
        spoilt[0, key, 0, 0] = math.nan
        out, lse = run(problem_of(q, spoilt, v, "plain", 40), 40)
        assert out.isnan().all() and lse.isnan().all()


# --- logits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["plain", "mxfp8"])
def test_logits_are_exact(recipe: str) -> None:
    """One key outweighs all others of a row, so that the log-sum-exp is its logit."""
    block = 32 if recipe == "mxfp8" else 16
    row, column = torch.arange(ROWS)[:, None], torch.arange(128 // block)
    key = torch.arange(ROWS) * 37 % ROWS  # of each row of q, whose signs it shares
    sign = torch.randint(0, 2, (ROWS, 128), generator=seeded(recipe)) * 2 - 1
    # Factors of two from block to block, with norms that are about the same.
    q, k = (
        sign[order] * (1 + normal(torch.float32, i)(ROWS, 128).abs())
        * (-((row // (1 + i) + column) % 2)).exp2().repeat_interleave(block, 1)
        for i, order in enumerate((key, slice(None)))
    )  # fmt: skip
    rows = (x.view(1, ROWS, 1, 128) for x in (q, k))
    problem = problem_of(*rows, normal(BF16)(1, ROWS, 1, 128), recipe, ROWS)
    q_rows, k_rows = (
        fp4.decode_rows(codes, fp4.unswizzled(scales, ROWS))[0, 0].double()
        for codes, scales in (problem.codes[:2], problem.codes[2:])
    )
    assert k_rows.abs().unique().numel() > 20
    (top, second), found = (x.T for x in (q_rows @ k_rows.T).topk(2))
    assert (top - second > 40).all() and torch.equal(found[0], key)
    # To base 2 the logits are the products; in these, no sum was rounded.
    assert torch.equal(top.float().double(), top) and top.unique().numel() > ROWS / 2
    log2 = math.log(2)
    _, lse = problem.run(ROWS, ops.Sim("sm_103a"), scale=log2)
    assert torch.equal(lse[0, 0], top.float() * torch.tensor(log2))


# --- weights --------------------------------------------------------------------------------------


@every_value
@pytest.mark.parametrize("std", [0.25, 1.0, 2.0, 4.5])
def test_no_weight_is_cut(std: float, values: torch.dtype) -> None:
    check(random_problem("plain", 128, 200, 3, values, std=std), 600)


@every_value
@pytest.mark.parametrize("steepness", [0.5, 2, 5, 24])
def test_no_weight_is_cut_as_the_maximum_creeps_up(steepness: float, values: torch.dtype) -> None:
    """Each key is a little ahead of all before it: the worst for a reference that lags."""
    q = torch.ones(1, 1, 1, 128)
    k = torch.linspace(1, 3, 640).view(1, 640, 1, 1).repeat(1, 1, 1, 128)
    v = normal(BF16)(1, 640, 1, 128).to(values)
    check(problem_of(q, k, v, "mxfp8", 640), 640, scale=steepness / 128)


def test_weights_in_e4m3() -> None:
    """Of one tile of keys the reference's weights, so rounded, give the same output."""
    problem = random_problem("plain", 128, 100, 1, E4M3)
    out, _ = run(problem, 100, ops.Sim("sm_103a"))
    q, k = (
        fp4.decode_rows(codes, fp4.unswizzled(scales, codes.size(2)))[0, 0].double()
        for codes, scales in (problem.codes[:2], problem.codes[2:])
    )
    logits = q @ k.T / math.sqrt(128)
    weights = (logits - logits.amax(1, keepdim=True)).exp() * 16
    rounded = nvfp4.e4m3_encode(weights.float()).view(E4M3).double()
    expected = rounded @ problem.v[0, :, 0].double() / weights.sum(1, keepdim=True)
    assert (out[0, :, 0].double() - expected).norm() <= 3e-3 * expected.norm()


@pytest.mark.parametrize(
    ("recipe", "bar"), [("plain", 0.9892), ("default", 0.9910), ("mxfp8", 0.9983)]
)
def test_cosine_with_fp8_values(recipe: str, bar: float) -> None:
    make = normal(BF16)
    q, k, v = make(1, 128, 2, 128), make(1, 1024, 2, 128), make(1, 1024, 2, 128)
    exact = attention(q.double(), k.double(), v.double(), ints(1024))[0]
    got, _ = run(problem_of(q, k, v.to(E4M3), recipe, 512), 1024)
    assert torch.cosine_similarity(got.double().flatten(), exact.flatten(), 0) >= bar


# --- what it costs, and what holds it together ----------------------------------------------------


@every_value
@every_recipe
def test_keys_are_read_once_per_two_query_tiles(recipe: str, values: torch.dtype) -> None:
    problem = random_problem(recipe, 2 * ROWS, 150, 4, values)
    on = ops.Sim("sm_100a")
    run(problem, 600, on)
    blocks = 2
    cache = (problem.k_codes, problem.k_scales, problem.v, problem.k_mean)
    read = sum(blocks * x.nbytes for x in cache if x is not None)
    read += sum(x.nbytes for x in (problem.q_codes, problem.q_scales, problem.q) if x is not None)
    (report,) = on.reports
    assert report["bulk_read_bytes"] == read
    assert report["bulk_written_bytes"] == 2 * ROWS * 128 * 2
    tiles = 2 * blocks * 8
    assert report["special"] <= tiles * 128 * 128 * 3 / 4 + 2 * ROWS * 64


FAULTS = {
    "loads not awaited": ("tcgen05.wait::ld.sync.aligned;", "async"),
    "stores not awaited": ("tcgen05.wait::st.sync.aligned;", "async"),
    "not fenced before an arrival": ("tcgen05.fence::before_thread_sync;", "async"),
    "not fenced after a wait": ("tcgen05.fence::after_thread_sync;", "async"),
    "output not fenced": ("fence.proxy.async.shared::cta;", "proxy"),
    "output not gathered": ("barrier.sync.aligned", "race"),
    "output store not awaited": ("cp.async.bulk.wait_group.read 0;", "async"),
    "registers not given back": ("setmaxnreg.dec", "divergence"),
}


def one_kernel(name: str) -> str:
    """Return the PTX of a kernel without the others."""
    header, *kernels = launch.ptx_of(name, "sm_100a").split(".visible .entry ")
    (kernel,) = (k for k in kernels if k.startswith(name + "("))
    return header + ".visible .entry " + kernel


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    what, kind = FAULTS[name]
    problem = random_problem("default", 130, 150, 3)
    shipped = one_kernel("vidk_fp4_attention_sm100_nvfp4_d128_bf16")
    assert what in shipped
    monkeypatch.setattr(launch, "ptx_of", lambda *_: shipped.replace(what, "//"))
    with pytest.raises(Fault) as fault:
        run(problem, 440)
    assert fault.value.kind == kind
