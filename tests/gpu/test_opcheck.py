"""The registration of every op with tensors on the GPU."""

from __future__ import annotations

import pytest
import torch

from tests.ops.samples import KINDS, overload
from tests.ops.test_opcheck import check_schema
from vidk.ops.registry import OPS

from .helpers import gpu_call, sample


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind: str, op: str) -> None:
    args, kwargs = gpu_call(KINDS[kind](op, torch.bfloat16))
    check_schema(op, args, kwargs)
    torch.library.opcheck(overload(op), args, kwargs, test_utils="test_faketensor")


@pytest.mark.parametrize("op", OPS)
def test_opcheck_through_autograd(op: str) -> None:
    args, kwargs = gpu_call(sample(op))
    others = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(overload(op), args, kwargs, test_utils=others)
