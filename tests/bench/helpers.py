"""A plan that runs in moments, on a machine whose limits are given."""

import torch

from vidk.bench.machine import Machine
from vidk.bench.run import Plan
from vidk.bench.timer import Stat
from vidk.ops.registry import OPS

REPEAT = 4


def machine(flops_per_s, *, emulated=None, copy=1e10):
    """A machine that knows float32 and bfloat16."""
    rate, slow, copied = (Stat(x, x, x, 1) for x in (flops_per_s, emulated or flops_per_s, copy))
    return Machine(copied, {torch.float32: rate, torch.bfloat16: slow})


# Attention is bound by arithmetic on the tiny shape, and RoPE by the copy.
MACHINE = machine(1e10)


def tiny_plan(**changes):
    plan = {
        "ops": tuple(OPS),
        "shapes": ("tiny",),
        "dtype": torch.float32,
        "device": "cpu",
        "budget_s": 0.01,
        "repeat": REPEAT,
    }
    return Plan(**(plan | changes))
