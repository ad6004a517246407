"""qk_norm_rope_nvfp4_kv_write's CUDA kernels, by the checks that hold the CPU kernel."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops import test_fp4_kv as host
from tests.ops.helpers import assert_same_bits, ints, normal, random_bits
from tests.ops.test_fp4_kv import EPS, Block, given
from vidk.reference.fp4 import RECIPES

from . import has_nvcc, ops
from .launch import ARCHS
from .ops import Sim

pytestmark = pytest.mark.skipif(not has_nvcc(), reason="no nvcc to compile the kernels")
every_recipe = pytest.mark.parametrize("recipe", RECIPES)


def check(on: Sim, block: Block, qkv: list[Tensor] | None = None) -> None:
    """Hold the kernels to the bits of the unfused kernel and the reference's quantiser."""
    run = partial(ops.qk_norm_rope_nvfp4_kv_write, on)
    host.check(block, qkv, run, partial(ops.qk_norm_rope_kv_write, Sim(on.arch)))
    assert not any(report["warnings"] for report in on.reports)


@pytest.mark.parametrize("arch", ARCHS)
@every_recipe
def test_recipes(recipe: str, arch: str) -> None:
    """Frames of a whole tile and a partial one; q's tiles straddle them."""
    check(Sim(arch), Block(recipe, heads=1, height=11, width=13, batch=1))


@every_recipe
@pytest.mark.parametrize("heads", [3, 12, 18])
def test_heads(heads: int, recipe: str) -> None:
    """Groups of one vector a thread and of two, some threads without one."""
    check(Sim("sm_90a", {"seed": heads}), Block(recipe, heads=heads, height=3, width=4, batch=1))


@every_recipe
@pytest.mark.parametrize("fp8", [False, True])
def test_order_of_channels_and_fp8_values(fp8: bool, recipe: str) -> None:
    check(Sim("sm_100a"), Block(recipe, heads=3, height=3, width=4, sorted=True, fp8=fp8))
