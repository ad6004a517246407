"""A cache that shares memory with an argument that is read while the cache is written.

The indices were checked before the first write; changed by it, they would lead anywhere. Each call
runs in a process of its own, so that a write to a wrong address fails one test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import vidk

from .error_checks import Arguments, valid
from .helpers import memory_of, twins

CASES = [
    (op, arg, cache)
    for op, args in {
        "kv_cache_write": ("frame_slot",),
        "unpack_kv_write": ("frame_slot",),
        "qk_norm_rope_kv_write": (
            *("frame_slot", "frame_pos", "q_weight", "k_weight", "time_freqs", "space_freqs"),
        ),
    }.items()
    for arg in args
    for cache in ("k_cache", "v_cache")
]


def overlapping(op: str, arg: str, cache: str) -> Arguments:
    """Return a call whose `arg` lies in the rows of `cache` that the block's first frame writes."""
    args = valid(op)
    x = args[arg]
    slot = int(args["frame_slot"][0])
    first = min(slot * 6 * 24, args[cache].numel() - x.numel())
    shared = args[cache].view(-1)[first : first + x.numel()].view(x.dtype).view(x.shape)
    return args | {arg: shared.copy_(x)}


def outcome(op: str, arg: str, cache: str) -> str:
    """Return the sentence that the call raises, and whether it wrote something."""
    args = overlapping(op, arg, cache)
    tensors = [x for x in args.values() if isinstance(x, Tensor)]
    before = memory_of(*twins(*tensors))
    try:
        getattr(torch.ops.vidk, op)(**args)
    except RuntimeError as error:
        kept = all(map(torch.equal, memory_of(*tensors), before))
        return str(error) if kept else f"{error}, but something was written"
    return "no error"


def report() -> None:
    """Print a line for each case; a case that dies leaves its line to its parent."""
    for case in CASES:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            print(json.dumps([*case, outcome(*case)]), flush=True)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            print(json.dumps([*case, f"died with status {status}"]))


@pytest.fixture(scope="module")
def outcomes() -> dict[tuple[str, ...], str]:
    # One thread: a forked process has none of its parent's pool.
    paths = [str(Path(p).parents[1]) for p in (vidk.__file__, __file__)]
    program = f"import sys; sys.path[:0] = {paths!r}; import {__name__} as t; t.report()"
    child = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    lines = map(json.loads, child.stdout.splitlines())
    return {tuple(case): result for *case, result in lines}


@pytest.mark.parametrize(("op", "arg", "cache"), CASES)
def test_refused(outcomes: dict[tuple[str, ...], str], op: str, arg: str, cache: str) -> None:
    assert outcomes[op, arg, cache] == (
        f"vidk::{op}: {cache}: got memory that overlaps {arg}, expected separate memory "
        f"(call .clone() on {arg})"
    )
