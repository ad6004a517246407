"""An op allocates its outputs and nothing else."""

from __future__ import annotations

import pytest
import torch

from tests.ops.samples import outputs, overload
from vidk.ops.registry import OPS

from .helpers import MODEL, SMALL, gpu_call, sample


@pytest.mark.parametrize("shape", [SMALL, MODEL], ids=["small", "model"])
@pytest.mark.parametrize("op", OPS)
def test_allocations(op: str, shape: object) -> None:
    args, kwargs = gpu_call(sample(op, torch.bfloat16, shape))
    overload(op)(*args, **kwargs)  # loads its code
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()
    torch.cuda.reset_peak_memory_stats()
    got = outputs(overload(op)(*args, **kwargs))
    after = torch.cuda.memory_stats()

    def rise(name: str) -> int:
        return after[name] - before[name]

    wanted = sum(x.numel() * x.itemsize for x in got)
    assert rise("allocation.all.allocated") == len(got)
    assert rise("requested_bytes.all.allocated") == wanted
    assert after["requested_bytes.all.peak"] - before["requested_bytes.all.current"] == wanted
