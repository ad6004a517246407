"""Runs the cases and gathers the document that `vidk bench --json` writes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm import tqdm

from vidk.bench.baselines import (
    BASELINES,
    COMPILE_ERRORS,
    TOLERANCE,
    Contender,
    check_same,
    compile_reason,
)
from vidk.bench.cases import CACHE_FRAMES, SHAPES, Call
from vidk.bench.end_to_end import run_end_to_end
from vidk.bench.machine import (
    Machine,
    copy_call,
    environment,
    matmul_call,
    matmul_size,
    measure,
)
from vidk.bench.report import SCHEMA_VERSION
from vidk.bench.timer import Clock, Thunk, calls_per_sample, interleave, ratio, summarize
from vidk.ops.registry import OPS, BlockShape, Op

# Op, public and compiled form, each once for the check and once for the clock.
RUNS_OF_A_CASE = 6


@dataclass(frozen=True)
class Plan:
    """What to run: ops and shapes by name, and how much time it may take.

    `budget_s` is spent on the rounds of a case; a case that would take more than `limit_s` even
    for the check and one round is measured on fewer heads. A step of the model, on the first
    shape, has 50 times the budget and 4 times the limit.
    """

    ops: Sequence[str]
    shapes: Sequence[str]
    dtype: torch.dtype
    device: str
    budget_s: float = 2.0
    limit_s: float = 60.0
    repeat: int | None = None
    end_to_end: bool = False
    layers: int | None = None


def dtype_name(dtype: torch.dtype) -> str:
    """Return the dtype's name without `torch.`."""
    return str(dtype).removeprefix("torch.")


@torch.no_grad()
def run(plan: Plan) -> dict[str, Any]:
    """Run all cases; see `bench/README.md` for the document that comes back."""
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    before = environment(plan.device)
    clock = Clock(plan.device)
    machine = measure(plan.dtype, plan.device, clock)
    cases = []
    pairs = [(shape, op) for shape in plan.shapes for op in plan.ops]
    with tqdm(pairs, unit="case", disable=None) as bar:
        for shape, op in bar:
            bar.set_postfix_str(f"{op} {shape}")
            cases.append(run_case(OPS[op], shape, plan, machine, clock))
    step = None
    if plan.end_to_end:
        step = run_end_to_end(
            plan.shapes[0],
            layers=plan.layers,
            dtype=plan.dtype,
            device=plan.device,
            machine=machine,
            clock=clock,
            budget_s=50 * plan.budget_s,
            limit_s=4 * plan.limit_s,
            repeat=plan.repeat,
        )
    return {
        "schema": SCHEMA_VERSION,
        "started": started,
        "environment": before,
        "load_average_after": environment(plan.device)["load_average"],
        "policy": {
            "warm_up": "each form runs once, for the check, before the first round",
            "rounds": "in shuffled order; slow forms sit some out; ratios are taken round by round",
            "budget_s": plan.budget_s,
            "limit_s": plan.limit_s,
            "repeat": plan.repeat,
            "cache_frames": CACHE_FRAMES,
            "flush": "L2 before each sample" if "cuda" in plan.device else "none",
        },
        "machine": machine.to_json(),
        "cases": cases,
        "end_to_end": step,
    }


def run_case(op: Op, shape_name: str, plan: Plan, machine: Machine, clock: Clock) -> dict[str, Any]:
    """Check and time one op on one shape."""
    case: dict[str, Any] = {
        "op": op.name,
        "shape": shape_name,
        "dtype": dtype_name(plan.dtype),
        "device": plan.device,
        "floor": op.floor,
    }
    block = SHAPES[shape_name].block
    try:
        shape = _affordable(op, block, plan, machine, clock)
    except ImportError as reason:
        return case | {"status": "no kernel", "reason": str(reason), "sizes": asdict(block)}
    call = Call.sample(op, shape, plan.dtype, plan.device)
    case |= {"sizes": asdict(shape), "model_heads": block.heads}
    try:
        return case | {"status": "measured"} | _measure(call, plan, machine, clock)
    finally:
        torch._dynamo.reset()


def _affordable(
    op: Op, shape: BlockShape, plan: Plan, machine: Machine, clock: Clock
) -> BlockShape:
    """Cut heads, which are independent, from a case whose FLOPs would exceed the limit.

    The probe runs the op on one head, so it also tells whether the op has a kernel.
    """
    probe = Call.sample(op, dataclasses.replace(shape, heads=1), plan.dtype, plan.device)
    seconds = RUNS_OF_A_CASE * clock(lambda: op.function(**probe.args))
    if machine.bound(probe.cost.bytes, probe.cost.flops) == "copy":
        return shape
    return dataclasses.replace(shape, heads=max(1, min(shape.heads, int(plan.limit_s / seconds))))


def _measure(call: Call, plan: Plan, machine: Machine, clock: Clock) -> dict[str, Any]:
    op, cost = call.op, call.cost
    baseline = BASELINES[op.name]
    forms = {"op": _op(call), "public": baseline.public(call)}
    begin = time.perf_counter()
    expected = forms["op"].results()
    inner = calls_per_sample(time.perf_counter() - begin)
    errors = {"public": check_same(op.name, "public", forms["public"].results(), expected)}
    failure = None
    compiled = baseline.plain(call).compiled()
    try:
        begin = time.perf_counter()
        errors["compiled"] = check_same(op.name, "compiled", compiled.results(), expected)
        compile_s = time.perf_counter() - begin
        forms["compiled"] = compiled
    except COMPILE_ERRORS as error:
        failure, compile_s = compile_reason(error), None

    bound, limit, work = _limit(call, machine)
    thunks: dict[str, Thunk] = {**forms, "copy": call.copy(), "limit": limit}
    if bound == "copy":
        thunks["fresh_copy"] = call.copy(fresh=True)
    samples = interleave(thunks, clock, budget_s=plan.budget_s, repeat=plan.repeat, inner=inner)
    mine = samples["op"]
    return {
        "bytes": cost.bytes,
        "flops": cost.flops,
        "bound": bound,
        "seconds": {name: summarize(s).to_json() for name, s in samples.items()},
        "bytes_per_s": summarize([cost.bytes / t for t in mine]).to_json(),
        "flops_per_s": summarize([cost.flops / t for t in mine]).to_json(),
        "fraction_of_limit": ratio(samples["limit"], mine, work).to_json(),
        "ratio_to_copy": ratio(mine, samples["copy"]).to_json(),
        "ratio_to_fresh_copy": (
            ratio(mine, samples["fresh_copy"]).to_json() if "fresh_copy" in samples else None
        ),
        "speedup_over_public": ratio(samples["public"], mine).to_json(),
        "speedup_over_compiled": (
            ratio(samples["compiled"], mine).to_json() if "compiled" in samples else None
        ),
        "compile_seconds": compile_s,
        "compile_failure": failure,
        "check": {"worst_token_error": errors, "tolerance": TOLERANCE[call.dtype]},
        "calls_per_sample": inner,
    }


def _op(call: Call) -> Contender:
    """The op itself, on caches of its own."""
    args = dict(call.args)
    mutated = tuple(args[name].clone() for name in call.op.mutates)
    args.update(zip(call.op.mutates, mutated, strict=True))
    return Contender(lambda: call.op.function(**args), (), mutated)


def _limit(call: Call, machine: Machine) -> tuple[str, Thunk, float]:
    """Return what bounds the op, a call that shows the limit, and op work over that call's work."""
    cost = call.cost
    bound = machine.bound(cost.bytes, cost.flops)
    if bound == "copy":
        return bound, copy_call(cost.bytes, call.dtype, call.device), 1.0
    n = matmul_size(call.device)
    return bound, matmul_call(n, machine.best_dtype, call.device), cost.flops / (2 * n**3)
