"""The ops are for inference: they run under any grad mode and have no backward."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from vidk.ops.registry import OPS

from .helpers import assert_same_bits
from .samples import fused, outputs, overload, with_tensors

every_op = pytest.mark.parametrize("op", OPS)
NO_BACKWARD = "an autograd kernel was not registered"


def leaf(x: Tensor) -> Tensor:
    return x.clone().requires_grad_() if x.is_floating_point() else x


def written(op: str, args: tuple[Any, ...]) -> list[Tensor]:
    arguments = overload(op)._schema.arguments
    return [x for x, a in zip(args, arguments, strict=False) if a.is_write]


@every_op
def test_recording_gradients_changes_no_value(op: str) -> None:
    args, kwargs = fused(op)
    with_grad, _ = with_tensors((args, kwargs), leaf)
    got = outputs(overload(op)(*with_grad, **kwargs))
    expected = outputs(overload(op)(*args, **kwargs))
    for a, b in zip(got, expected, strict=True):
        assert_same_bits(a.detach(), b)
    for a, b in zip(written(op, with_grad), written(op, args), strict=True):
        assert_same_bits(a.detach(), b)


@every_op
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_grad_mode_nothing_is_recorded(mode: Any, op: str) -> None:
    args, kwargs = with_tensors(fused(op), leaf)
    with mode():
        for out in outputs(overload(op)(*args, **kwargs)):
            assert not out.requires_grad


@every_op
def test_inputs_without_grad_record_nothing(op: str) -> None:
    args, kwargs = fused(op)
    for out in outputs(overload(op)(*args, **kwargs)):
        assert not out.requires_grad


@pytest.mark.parametrize("op", [name for name in OPS if overload(name)._schema.returns])
def test_backward_says_that_there_is_none(op: str) -> None:
    """PyTorch warns by the op's name, and no gradient reaches an input."""
    args, kwargs = with_tensors(fused(op), leaf)
    results = outputs(overload(op)(*args, **kwargs))
    with pytest.warns(UserWarning, match=f"vidk::{op}: {NO_BACKWARD}"):
        sum(out.float().sum() for out in results).backward()
    assert all(x.grad is None for x in args if isinstance(x, Tensor))


@every_op
def test_graph_around_the_op_still_works(op: str) -> None:
    """What does not pass through the op keeps its gradient."""
    args, kwargs = fused(op)
    scale = torch.ones((), requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        overload(op)(*args, **kwargs)
        (scale * 3).backward()
    assert scale.grad == 3
