"""Ops run on the current stream, on the device of their tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.samples import outputs, overload
from vidk.ops.registry import OPS

from .helpers import gpu_call, run, same_bits, sample


def results(op: str, args: tuple[Any, ...]) -> list[Tensor]:
    """Call an op; return its outputs and what it has mutated."""
    out = outputs(overload(op)(*args))
    schema = overload(op)._schema.arguments
    return out + [x for x, a in zip(args, schema, strict=False) if a.name in OPS[op].mutates]


@pytest.mark.parametrize("op", OPS)
def test_side_stream(op: str) -> None:
    """The input arrives late on a side stream: an op on another stream would not wait for it."""
    expected = results(op, gpu_call(sample(op))[0])
    args, _ = gpu_call(sample(op))
    data = args[0].clone()
    args[0].zero_()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        args[0].copy_(data)
        got = results(op, args)
        busy = not side.query()
    side.synchronize()
    assert busy, "the stream was not busy for long enough to show anything"
    for a, b in zip(got, expected, strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("op", OPS)
def test_other_device_than_the_current_one(op: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("this machine has one GPU")
    expected = run(op, gpu_call(sample(op), "cuda:0"))
    with torch.cuda.device(0):
        got = run(op, gpu_call(sample(op), "cuda:1"))
        assert torch.cuda.current_device() == 0
    for a, b in zip(got.outputs + got.memory, expected.outputs + expected.memory, strict=True):
        assert same_bits(a, b)
