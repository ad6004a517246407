"""qk_norm_rope_nvfp4_kv_write on a GPU: the unfused kernel, then the reference, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import vidk
from tests.ops.helpers import ints
from tests.ops.test_fp4_kv import EPS, Block, bits_of, check, given
from tests.ops.test_fp4_kv import op as fused
from vidk.reference.fp4 import RECIPES

from .helpers import gpu_call

every_recipe = pytest.mark.parametrize("recipe", RECIPES)


def on_gpu(op: Callable[..., Any]) -> Callable[..., Any]:
    """Return the op on copies of its arguments; what it writes comes back."""

    def run(*args: Any, **kwargs: Any) -> Any:
        there, options = gpu_call((args, kwargs))
        out = op(*there, **options)
        for mine, result in zip(args, there, strict=True):
            if isinstance(mine, Tensor) and mine.dim() >= 4:
                size = (*mine.shape[:-1], -1)
                mine.view(torch.uint8).view(size).copy_(result.view(torch.uint8).view(size))
        return out.cpu() if isinstance(out, Tensor) else tuple(x.cpu() for x in out)

    return run


def hold(block: Block) -> None:
    check(block, run=on_gpu(fused), unfused=on_gpu(vidk.qk_norm_rope_kv_write))


@every_recipe
@pytest.mark.parametrize("heads", [2, 12, 14, 24])
def test_heads(heads: int, recipe: str) -> None:
    hold(Block(recipe, heads=heads, height=11, width=13, layout="contiguous"))


@every_recipe
@pytest.mark.parametrize("fp8", [False, True])
def test_order_and_fp8_values(fp8: bool, recipe: str) -> None:
    hold(Block(recipe, heads=3, sorted=True, fp8=fp8, layout="contiguous"))


@every_recipe
def test_a_block_of_the_model(recipe: str) -> None:
    slots, positions = (5, 0, 2), (3, 4, 5)
    block = Block(
        recipe, heads=12, batch=1, height=30, width=52, slots=slots, positions=positions,
        capacity=6, layout="contiguous",
    )  # fmt: skip
    hold(block)


@pytest.mark.parametrize("slot", [-1, 4, 2**31 - 1, -(2**31)])
def test_slot_out_of_range(slot: int) -> None:
    """A frame without a slot is not written."""
    block = Block(heads=2, slots=(1, 2), layout="contiguous")
    pos, _, *rest = block.index()
    args = (*block.qkv(), *block.weights(), EPS, pos, ints(slot, 2), *rest)
    caches = block.caches()
    before = bits_of(caches)
    on_gpu(fused)(*args, *caches)
    for x, old, dim in zip(given(caches), before, (2, 2, 2, 1), strict=True):
        slots = (t.view(torch.uint8).unflatten(dim, (block.capacity, -1)) for t in (x, old))
        for i, (one, two) in enumerate(zip(*(t.unbind(dim) for t in slots), strict=True)):
            assert torch.equal(one, two) == (i != 2)
