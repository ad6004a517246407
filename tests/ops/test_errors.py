"""Every check raises its one sentence, from the kernel and from the fake, and writes nothing."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from vidk.ops.registry import OPS

from .error_checks import Arguments, Row, valid
from .error_rows import ROWS
from .helpers import assert_same_memory, twins


def row_id(row: Row) -> str:
    return f"{row.op}-{row.arg}-got {row.got}"


def call(op: str, args: Arguments) -> Any:
    return getattr(torch.ops.vidk, op)(**args)


def faked(args: Arguments, device: str) -> tuple[FakeTensorMode, Arguments]:
    """Return the arguments as fakes on a device; what was on "meta" becomes the odd one out."""
    mode = FakeTensorMode()
    homes = {"cpu": device, "meta": "cpu" if device == "cuda" else "cuda"}
    with mode:
        return mode, {
            name: torch.empty_strided(
                x.shape, x.stride(), dtype=x.dtype, device=homes[x.device.type]
            )
            if isinstance(x, Tensor)
            else x
            for name, x in args.items()
        }


def raised(op: str, args: Arguments) -> str:
    with pytest.raises(RuntimeError) as info:
        call(op, args)
    return str(info.value)


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_kernel(row: Row) -> None:
    args = row.broken()
    tensors = [x for x in args.values() if isinstance(x, Tensor) and x.device.type == "cpu"]
    before = twins(*tensors)
    assert raised(row.op, args) == row.sentence()
    assert_same_memory(tensors, before, "something was written")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_fake(row: Row, device: str) -> None:
    mode, args = faked(row.broken(), device)
    with mode:
        if row.kind == "data":
            call(row.op, args)  # a fake sees no values and no addresses
            return
        cuda, cpu = "cuda:0", "cpu"
        home, odd = (cuda, cpu) if device == "cuda" else (cpu, cuda)
        assert raised(row.op, args) == row.sentence(home, odd)


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_sentence_has_all_its_parts(row: Row) -> None:
    pattern = rf"vidk::{row.op}: {row.arg}: got [^,].*, expected .+"
    assert re.fullmatch(pattern, row.sentence())
    assert row.arg in valid(row.op) or row.arg in str(
        getattr(torch.ops.vidk, row.op).default._schema
    )


@pytest.mark.parametrize("op", OPS)
def test_valid_sample_is_valid(op: str) -> None:
    """Each row breaks this call, so it must hold unbroken."""
    call(op, valid(op))


def test_compiled_graph_raises_the_same_sentence() -> None:
    row = next(r for r in ROWS if r.op == "attention" and r.arg == "k_cache")
    args = row.broken()
    compiled = torch.compile(lambda **kw: torch.ops.vidk.attention(**kw), fullgraph=True)
    with pytest.raises(Exception, match=re.escape(row.sentence())):
        compiled(**args)
