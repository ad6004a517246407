"""qk_norm_rope_nvfp4_kv_write: the op without FP4, then the reference's quantiser, to the bit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import vidk
from vidk import reference
from vidk.ops.fp4_kv import scale_dtype
from vidk.ops.fp4_quantize import depth_unit, row_bytes, scale_columns
from vidk.reference import nvfp4
from vidk.reference.fp4 import RECIPES, encode_slots, fp4_quantize, tiles_of

from .helpers import (
    DTYPES,
    READ_LAYOUTS,
    assert_same_bits,
    assert_same_memory,
    dtype_id,
    far_apart,
    ints,
    normal,
    random_bits,
    seeded,
    tables,
    twins,
)

op = torch.ops.vidk.qk_norm_rope_nvfp4_kv_write
EPS = 1e-6
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
every_recipe = pytest.mark.parametrize("recipe", RECIPES)


@dataclass
class Block:
    """Sizes of a call."""

    recipe: str = "default"
    dtype: torch.dtype = torch.bfloat16
    heads: int = 2
    dim: int = 128
    batch: int = 2
    height: int = 3
    width: int = 5
    slots: tuple[int, ...] = (3, 1)
    positions: tuple[int, ...] = (7, 60)
    capacity: int = 4
    fp8: bool = False
    sorted: bool = False
    layout: str = "fused_qkv"
    cache_bits: Any = field(default=None, repr=False)

    @property
    def rows(self) -> int:
        return self.height * self.width

    @property
    def frames(self) -> int:
        return len(self.slots)

    def make(self) -> Any:
        return normal(self.dtype, self.recipe, self.heads, self.dim, self.layout)

    def qkv(self) -> list[Tensor]:
        """Return q, k, v; k with a bias for its mean to take off."""
        make, size = self.make(), (self.batch, self.frames * self.rows, self.heads, self.dim)
        q, k, v = (READ_LAYOUTS[self.layout](make, *size) for _ in range(3))
        return [q, k, v]

    def weights(self) -> list[Tensor]:
        make = self.make()
        return [(make(self.heads * self.dim).float() * 0.2 + 1).to(self.dtype) for _ in range(2)]

    def index(self) -> tuple[Any, ...]:
        freqs = tables(self.dim, self.height, self.width)
        return (ints(*self.positions), ints(*self.slots), *freqs, self.height, self.width)

    def caches(self) -> list[Tensor | None]:
        """Return caches of any bits: what is not written must stay."""
        b, h, rows = self.batch, self.heads, self.capacity * self.rows
        tiles = self.capacity * tiles_of(self.rows)
        random = random_bits(torch.uint8, self.recipe, self.dim)
        scales = random(b, h, tiles, scale_columns(self.dim, self.recipe) // 4, 32, 4, 4)
        mean = random_bits(torch.bfloat16)(b, h, tiles, self.dim)
        v_dtype = torch.float8_e4m3fn if self.fp8 else self.dtype
        return [
            random(b, h, rows, row_bytes(self.dim, self.recipe)),
            scales.view(scale_dtype(self.recipe)),
            mean if RECIPES[self.recipe].mean else None,
            random_bits(torch.uint8)(b, rows, h, self.dim * v_dtype.itemsize).view(v_dtype),
        ]

    def perm(self) -> Tensor | None:
        if not self.sorted:
            return None
        order = torch.rand(self.heads, self.dim, generator=seeded(self.dim)).argsort(-1)
        return order.int()


def given(caches: list[Tensor | None]) -> list[Tensor]:
    return [x for x in caches if x is not None]


def bits_of(caches: list[Tensor | None]) -> list[Tensor]:
    return [x.clone() for x in given(caches)]


def write(
    on_bits: tuple[Tensor, Tensor], v: Tensor, block: Block, caches: list[Tensor | None]
) -> tuple[Tensor, Tensor, Tensor]:
    """Write rotated k and v as the reference does, and return what the op returns, from q and k."""
    q, k = on_bits
    rows, recipe, perm = block.rows, RECIPES[block.recipe], block.perm()
    codes, scales, mean = encode_slots(k.unflatten(1, (-1, rows)), "k", recipe, perm)
    k_codes, k_scales, k_mean, v_cache = caches
    assert k_codes is not None and k_scales is not None and v_cache is not None
    tiles = tiles_of(rows)
    flat = k_scales.view(torch.uint8).unflatten(2, (-1, tiles))
    for i, slot in enumerate(block.slots):
        at = slice(slot * rows, (slot + 1) * rows)
        k_codes[:, :, at] = codes[:, :, i]
        # Rows that a tile has not are left alone.
        new = nvfp4.unswizzle_scales(scales[:, :, i], rows, 4 * scales.size(4))
        old = nvfp4.unswizzle_scales(flat[:, :, slot], 128 * tiles, 4 * scales.size(4))
        old[:, :, :rows] = new.view(torch.uint8)
        flat[:, :, slot] = nvfp4.swizzle_scales(old)
        if mean is not None and k_mean is not None:
            k_mean[:, :, slot * tiles : (slot + 1) * tiles] = mean[:, :, i]
        part = v[:, i * rows : (i + 1) * rows]
        v_cache[:, at] = nvfp4.e4m3_encode(part.float()) if block.fp8 else part
    q_codes, q_scales, _ = fp4_quantize(q, role="q", recipe=block.recipe, perm=perm)
    return q if recipe.mean else q[:, :0], q_codes, q_scales


def normed(
    unfused: Any, qkv: list[Tensor], weights: list[Tensor], idx: tuple[Any, ...], rows: int
) -> tuple[Tensor, Tensor]:
    """Return q and k normalised and rotated by the op that this one is held against."""
    q, k, v = qkv
    frames = q.size(1) // rows
    caches = [torch.empty(k.shape, dtype=k.dtype) for _ in range(2)]
    pos, _, *rest = idx
    slots = torch.arange(max(frames, 1), dtype=torch.int32)[: len(pos)]
    q_out = unfused(q, k, v, *weights, EPS, pos[:frames], slots, *rest, *caches)
    return q_out, caches[0]


def check(
    block: Block,
    qkv: list[Tensor] | None = None,
    run: Any = op,
    unfused: Any = vidk.qk_norm_rope_kv_write,
) -> list[Tensor]:
    """Hold the op, or `run`, against the two steps; return the caches."""
    qkv = block.qkv() if qkv is None else qkv
    weights, idx, caches = block.weights(), block.index(), block.caches()
    expected_caches = [None if x is None else x.clone() for x in caches]
    inputs = twins(*qkv)
    rotated = normed(unfused, qkv, weights, idx, block.rows)
    expected = write(rotated, qkv[2], block, expected_caches)
    got = run(*qkv, *weights, EPS, *idx, *caches, recipe=block.recipe, perm=block.perm())
    for name, mine, oracle in zip(("q", "codes", "scales"), got, expected, strict=True):
        assert mine.is_contiguous()
        assert_same_bits(mine, oracle.contiguous(), name)
    names = ("k_codes", "k_scales", "k_mean", "v_cache")
    for name, mine, oracle in zip(names, caches, expected_caches, strict=True):
        if mine is not None and oracle is not None:
            assert_same_bits(mine, oracle, name)
    assert_same_memory(qkv, inputs, "inputs")
    return given(caches)


@every_recipe
@every_dtype
def test_the_two_steps(dtype: torch.dtype, recipe: str) -> None:
    """Frames of a tile of 128 rows and one of 15."""
    check(Block(recipe, dtype, heads=3, height=11, width=13))


@every_dtype
@pytest.mark.parametrize("layout", READ_LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype) -> None:
    check(Block(dtype=dtype, layout=layout))


@every_recipe
@pytest.mark.parametrize(("heads", "dim"), [(1, 64), (5, 128), (2, 192), (3, 256), (1, 1024)])
def test_heads(heads: int, dim: int, recipe: str) -> None:
    if dim % depth_unit(recipe) == 0:
        check(Block(recipe, heads=heads, dim=dim, height=2, width=3, sorted=True, batch=1))


@pytest.mark.parametrize("recipe", ["default", "mxfp8"])
@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (1, 16), (8, 16), (16, 17), (1, 127)])
def test_tiles(grid: tuple[int, int], recipe: str) -> None:
    """Fewer rows than a mean has samples, whole tiles, one row less and many more."""
    height, width = grid
    check(Block(recipe, height=height, width=width, heads=1, batch=1))


@every_recipe
@every_dtype
def test_fp8_values(dtype: torch.dtype, recipe: str) -> None:
    block = Block(recipe, dtype, fp8=True, height=4, width=8)
    qkv = block.qkv()
    size = qkv[2].numel()
    values = random_bits(dtype)(size).view(qkv[2].shape)
    values[0] = normal(dtype)(*values[0].shape) * 2.0 ** torch.arange(-12.0, 20.0).repeat(4)
    check(block, qkv=[qkv[0], qkv[1], values])


@every_recipe
@pytest.mark.parametrize("exponent", [-14, -8, 0, 8])
def test_every_magnitude(exponent: int, recipe: str) -> None:
    """Scales that are zero, subnormal and saturated: the weights set the magnitude of keys."""
    block = Block(recipe, torch.float32, height=4, width=8)
    block.weights = lambda: [w * 2.0**exponent for w in Block.weights(block)]  # type: ignore[method-assign]
    check(block)


@every_recipe
def test_special_values(recipe: str) -> None:
    """A NaN or an infinity anywhere: codes and scales still follow the reference."""
    block = Block(recipe, torch.float32, height=4, width=8)
    q, k, v = (x.clone() for x in block.qkv())
    q[0, 3, 1, 5], q[1, 4, 0, 9], k[0, 5, 1, 60], k[1, 7, 1, 3] = (
        torch.nan, torch.inf, torch.nan, -torch.inf,
    )  # fmt: skip
    check(block, qkv=[q, k, v])


def test_default_recipe_and_order() -> None:
    block = Block()
    args = (*block.qkv(), *block.weights(), EPS, *block.index())
    one, two = block.caches(), block.caches()
    for a, b in zip(op(*args, *one), op(*args, *two, recipe="default", perm=None), strict=True):
        assert_same_bits(a, b)


@every_recipe
def test_reference(recipe: str) -> None:
    """The reference itself, but for what the order of sums in the norm changes."""
    block = Block(recipe, torch.float32, height=8, width=8)
    args = (*block.qkv(), *block.weights(), EPS, *block.index())
    one, two = block.caches(), block.caches()
    got = op(*args, *one, recipe=recipe)
    expected = reference.qk_norm_rope_nvfp4_kv_write(*args, *two, recipe=recipe)
    assert (got[0] - expected[0]).abs().sum() <= 1e-6 * expected[0].abs().sum()
    for mine, oracle in zip(got[1:], expected[1:], strict=True):
        same = mine.view(torch.uint8) == oracle.view(torch.uint8)
        assert same.float().mean() > 0.9995
    assert (one[0] == two[0])[:, :, 64:128].float().mean() > 0.9995


def test_a_slot_is_final() -> None:
    """Writing a frame changes its slot alone, and writing it again gives the same slot."""
    block = Block("accurate", slots=(2, 0), height=9, width=15)
    args = (*block.qkv(), *block.weights(), EPS, *block.index())
    caches = block.caches()
    op(*args, *caches, recipe=block.recipe)
    first = bits_of(caches)
    other = Block("accurate", slots=(1,), positions=(3,), height=9, width=15)
    new = (*other.qkv(), *other.weights(), EPS, *other.index())
    op(*new, *caches, recipe=block.recipe)
    for x, old, dim in zip(given(caches), first, (2, 2, 2, 1), strict=True):
        per_slot = x.size(dim) // block.capacity
        for slot in range(block.capacity):
            at = slice(slot * per_slot, (slot + 1) * per_slot)
            one, two = (t.transpose(0, dim)[at].view(torch.uint8) for t in (x, old))
            assert torch.equal(one, two) == (slot != 1)
    op(*args, *caches, recipe=block.recipe)
    op(*new, *caches, recipe=block.recipe)
    again = bits_of(caches)
    op(*new, *caches, recipe=block.recipe)
    for x, old in zip(given(caches), again, strict=True):
        assert_same_bits(x, old)


@pytest.mark.parametrize("recipe", ["accurate", "mxfp8"])
def test_threads(recipe: str) -> None:
    """A range of tokens may end anywhere, in a tile or a frame."""
    block = Block(recipe, heads=6, batch=1, height=12, width=13, sorted=True)
    many = check(block)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = check(block)
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(many, alone, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("recipe", ["default", "mxfp8"])
@pytest.mark.parametrize("which", ["batch", "tokens", "heads"])
def test_empty(which: str, recipe: str) -> None:
    sizes: dict[str, Any] = {
        "batch": {"batch": 0},
        "tokens": {"slots": (), "positions": ()},
        "heads": {"heads": 0},
    }[which]
    block = Block(recipe, layout="contiguous", **sizes)
    caches = block.caches()
    before = bits_of(caches)
    got = op(*block.qkv(), *block.weights(), EPS, *block.index(), *caches, recipe=recipe)
    tokens = block.frames * block.rows
    assert got[1].shape == (block.batch, block.heads, tokens, row_bytes(128, recipe))
    assert got[2].dtype == scale_dtype(recipe)
    for x, old in zip(given(caches), before, strict=True):
        assert_same_bits(x, old)


def test_padding_of_q_is_zero() -> None:
    block = Block(height=3, width=5)
    got = op(*block.qkv(), *block.weights(), EPS, *block.index(), *block.caches())
    columns = nvfp4.unswizzle_scales(got[2].view(torch.uint8), 128, 8)
    assert (columns[:, :, 30:] == 0).all() and (columns[:, :, :30] != 0).all()


def test_rows_that_lie_far_apart() -> None:
    """64-bit offsets."""
    block = Block(height=2, width=2, batch=1, layout="contiguous")
    q, k, v = block.qkv()
    rest = (*block.weights(), EPS, *block.index())
    near, far = block.caches(), block.caches()
    expected = op(q, k, v, *rest, *near)
    got = op(far_apart(q, 1), far_apart(k, 2), v, *rest, *far)
    for mine, oracle in zip((*got, *given(far)), (*expected, *given(near)), strict=True):
        assert_same_bits(mine, oracle)
