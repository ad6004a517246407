"""nvfp4_quantize's CUDA kernels: the bits of the CPU kernel, whose own tests have oracles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.helpers import (
    DTYPES,
    READ_LAYOUTS,
    assert_same_bits,
    dtype_id,
    normal,
    random_bits,
)
from vidk.ops.nvfp4 import RECIPES

from . import has_nvcc
from .launch import ARCHS
from .ops import Sim, nvfp4_quantize

pytestmark = pytest.mark.skipif(not has_nvcc(), reason="no nvcc to compile the kernels")
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
every_recipe = pytest.mark.parametrize("recipe", RECIPES)
every_arch = pytest.mark.parametrize("arch", ARCHS)


def assert_as_on_the_cpu(on: Sim, x: Tensor, recipe: str) -> None:
    got = nvfp4_quantize(on, x, recipe=recipe)
    for mine, expected in zip(got, torch.ops.vidk.nvfp4_quantize(x, recipe=recipe), strict=True):
        assert_same_bits(mine, expected)
    assert not any(report["warnings"] for report in on.reports)


@every_arch
@every_recipe
@every_dtype
def test_any_bits(dtype: torch.dtype, recipe: str, arch: str) -> None:
    """NaNs of every payload, infinities, denormals, in every lane; a ragged last warp."""
    assert_as_on_the_cpu(Sim(arch), random_bits(dtype)(2, 15, 3, 64), recipe)


@every_recipe
@every_dtype
@pytest.mark.parametrize("layout", READ_LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype, recipe: str) -> None:
    x = READ_LAYOUTS[layout](normal(dtype, layout), 2, 11, 3, 128)
    assert_as_on_the_cpu(Sim("sm_90a"), x, recipe)


@every_dtype
@pytest.mark.parametrize("shape", [(7, 1, 1), (1, 7, 1), (1, 1, 7), (3, 2, 5), (2, 37, 1)], ids=str)
@pytest.mark.parametrize("head_dim", [16, 32, 48, 80, 256, 1040])
def test_shapes(head_dim: int, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """A chunk's next one lies in another head, token or batch row."""
    x = READ_LAYOUTS["fused_qkv"](normal(dtype, shape, head_dim), *shape, head_dim)
    assert_as_on_the_cpu(Sim("sm_80"), x, "4/6")


@every_recipe
@pytest.mark.parametrize("exponent", range(-14, 13, 2))
def test_every_scale(exponent: int, recipe: str) -> None:
    """Scales that are zero, subnormal, normal and saturated."""
    x = normal(torch.float32, exponent)(1, 64, 1, 64) * 2.0**exponent
    assert_as_on_the_cpu(Sim("sm_80"), x, recipe)


@pytest.mark.parametrize("arch", ARCHS)
@every_dtype
def test_a_warp_writes_whole_sectors(dtype: torch.dtype, arch: str) -> None:
    on = Sim(arch)
    assert_as_on_the_cpu(on, normal(dtype)(1, 64, 2, 128), "plain")
    store = on.reports[0]["global_store"]
    assert store["bytes"] == 32 * store["sectors"] == 64 * 2 * (64 + 8)


def test_empty() -> None:
    on = Sim("sm_80")
    packed, scales = nvfp4_quantize(on, torch.zeros(1, 0, 2, 32))
    assert packed.shape == (1, 0, 2, 16) and scales.shape == (1, 0, 2, 2)
    assert on.kernels == []
