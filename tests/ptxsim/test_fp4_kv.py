"""qk_norm_rope_nvfp4_kv_write's CUDA kernels, by the checks that hold the CPU kernel."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops import test_fp4_kv as host
from tests.ops.helpers import LAYOUTS, assert_same_bits, ints
from tests.ops.test_fp4_kv import EPS, Block, bits_of, given
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


def call(on: Sim, block: Block, caches: list[Tensor | None], **changes: Any) -> Any:
    q, k, v = block.qkv()
    pos, slots, *rest = block.index()
    args = {"q": q, "k": k, "v": v, "frame_pos": pos, "frame_slot": slots, "perm": block.perm()}
    args |= changes
    index = (args["frame_pos"], args["frame_slot"], *rest)
    return ops.qk_norm_rope_nvfp4_kv_write(
        on, *(args[name] for name in "qkv"), *block.weights(), EPS, *index, *caches,
        recipe=block.recipe, perm=args["perm"],
    )  # fmt: skip


@pytest.mark.parametrize("arch", ARCHS)
@every_recipe
def test_recipes(recipe: str, arch: str) -> None:
    """Frames of a whole tile and a partial one; q's tiles straddle them."""
    check(Sim(arch), Block(recipe, heads=1, height=11, width=13, batch=1))


@every_recipe
@pytest.mark.parametrize("heads", [3, 14, 18])
def test_heads(heads: int, recipe: str) -> None:
    """Keys finished with the means, and not; two vectors a thread, some threads without any."""
    check(Sim("sm_90a", {"seed": heads}), Block(recipe, heads=heads, height=3, width=4, batch=1))


@every_recipe
@pytest.mark.parametrize("fp8", [False, True])
def test_order_of_channels_and_fp8_values(fp8: bool, recipe: str) -> None:
    check(Sim("sm_90a"), Block(recipe, heads=3, height=3, width=4, sorted=True, fp8=fp8))


@pytest.mark.parametrize("recipe", ["default", "mxfp8"])
@pytest.mark.parametrize("grid", [(1, 1), (1, 17), (8, 16), (3, 64)])
def test_tiles(grid: tuple[int, int], recipe: str) -> None:
    """Fewer rows than a mean has samples, whole tiles and parts of quarters."""
    height, width = grid
    check(Sim("sm_90a"), Block(recipe, heads=1, height=height, width=width, batch=1, sorted=True))


@pytest.mark.parametrize(
    "layout", ["contiguous", "bhsd", "sbhd", "head_slice", "every_other_token"]
)
def test_layouts(layout: str) -> None:
    check(Sim("sm_90a"), Block(layout=layout, height=2, width=3))


def test_widest_rows() -> None:
    """40 heads, whose squares the unfused kernel adds in another order: a few bits may differ."""
    block = Block(heads=40, height=2, width=3, batch=1)
    one, two = block.caches(), block.caches()
    got = call(Sim("sm_120a"), block, one)
    args = (*block.qkv(), *block.weights(), EPS, *block.index())
    expected = torch.ops.vidk.qk_norm_rope_nvfp4_kv_write(*args, *two)
    for mine, oracle in zip((*got[1:], *given(one)), (*expected[1:], *given(two)), strict=True):
        same = mine.contiguous().view(torch.uint8) == oracle.contiguous().view(torch.uint8)
        assert same.float().mean() > 0.999


@pytest.mark.parametrize("heads", [2, 18])
@pytest.mark.parametrize("slot", [-1, 4, 2**31 - 1, -(2**31)])
def test_slot_out_of_range(slot: int, heads: int) -> None:
    """A frame without a slot is not written; the other one and q are as they always were."""
    block = Block(heads=heads, slots=(1, 2), height=2, width=3, batch=1)
    one, two = block.caches(), block.caches()
    before = bits_of(one)
    got = call(Sim("sm_90a"), block, one, frame_slot=ints(slot, 2))
    expected = call(Sim("sm_90a"), block, two)
    for mine, oracle in zip(got, expected, strict=True):
        assert_same_bits(mine, oracle)
    for x, y, old, dim in zip(given(one), given(two), before, (2, 2, 2, 1), strict=True):
        x, y, old = (t.unflatten(dim, (block.capacity, -1)) for t in (x, y, old))
        assert_same_bits(x.select(dim, 2), y.select(dim, 2))
        for i in (0, 1, 3):
            assert_same_bits(x.select(dim, i), old.select(dim, i))


@pytest.mark.parametrize("heads", [2, 18])
@pytest.mark.parametrize("position", [-1, 64, 2**31 - 1])
def test_position_out_of_range(position: int, heads: int) -> None:
    """A frame past the table is not rotated, nor is the mean of its keys."""
    block = Block(heads=heads, height=2, width=3, batch=1)
    caches, expected = block.caches(), block.caches()
    call(Sim("sm_90a"), block, caches, frame_pos=ints(position, 60))
    _, _, time, space, *_ = block.index()
    time[9] = torch.tensor([1.0, 0.0])
    space[:] = torch.tensor([1.0, 0.0])
    still = replace(block, positions=(9, 60))
    still.index = lambda: (ints(9, 60), ints(*block.slots), time, space, 2, 3)  # type: ignore[method-assign]
    call(Sim("sm_90a"), still, expected)
    rows = slice(block.slots[0] * block.rows, (block.slots[0] + 1) * block.rows)
    k_codes, expected_codes = caches[0], expected[0]
    assert k_codes is not None and expected_codes is not None
    assert_same_bits(k_codes[:, :, rows], expected_codes[:, :, rows])


def test_channel_out_of_range() -> None:
    block = Block(heads=2, height=2, width=3, batch=1, sorted=True)
    perm = block.perm()
    assert perm is not None
    perm[0, 3], perm[1, 127], perm[1, 0] = -1, 128, 2**31 - 1
    one, two = block.caches(), block.caches()
    got = call(Sim("sm_90a"), block, one, perm=perm)
    expected = call(Sim("sm_90a"), block, two, perm=perm.clamp(0, 127))
    for mine, oracle in zip((*got, *given(one)), (*expected, *given(two)), strict=True):
        assert_same_bits(mine, oracle)


@pytest.mark.parametrize(
    ("block", "changed", "message"),
    [
        (Block(dtype=torch.float16), None, "q: got dtype float16, expected dtype bfloat16 on CUDA"),
        (Block(dtype=torch.float32), None, "q: got dtype float32, expected dtype bfloat16 on CUDA"),
        (Block(dim=64), None, "q: got D = 64, expected D = 128 on CUDA"),
        (Block(heads=41), None, "q: got 41 heads, expected at most 40 heads on CUDA"),
        *(
            (
                Block(),
                name,
                f"{name}: got rows that are not aligned, expected rows aligned to 16 bytes "
                "(call .contiguous())",
            )
            for name in "qkv"
        ),
    ],
)
def test_refusals(block: Block, changed: str | None, message: str) -> None:
    changes: dict[str, Any] = {}
    if changed:
        size = (block.batch, block.frames * block.rows, block.heads, block.dim)
        changes[changed] = LAYOUTS["unaligned"](block.make(), *size)
    sentence = f"vidk::qk_norm_rope_nvfp4_kv_write: {message}"
    with pytest.raises(RuntimeError, match=re.escape(sentence)):
        call(Sim("sm_90a"), block, block.caches(), **changes)


def test_empty() -> None:
    on = Sim("sm_80")
    block = Block(slots=(), positions=(), layout="contiguous")
    call(on, block, block.caches())
    assert on.kernels == []
