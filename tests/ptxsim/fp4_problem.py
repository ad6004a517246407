"""Problems for the kernels of fp4_attention: quantised, spoilt, solved in float64."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.helpers import ints, normal, seeded
from vidk import reference
from vidk.reference import fp4

from . import ops

BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn
every_recipe = pytest.mark.parametrize("recipe", fp4.RECIPES)
every_value = pytest.mark.parametrize("values", [BF16, E4M3], ids=["bf16", "e4m3"])
# Relative L2: half of the steps between numbers of the weights, and of bfloat16 results.
BOUND = {BF16: 3e-3, E4M3: 3e-2}


@dataclass(frozen=True)
class Problem:
    """Queries and a cache of keys and values, as `fp4_attention` takes them."""

    frame: int
    q_codes: Tensor
    q_scales: Tensor
    k_codes: Tensor
    k_scales: Tensor
    v: Tensor
    q: Tensor | None = None
    k_mean: Tensor | None = None

    @property
    def capacity(self) -> int:
        """Keys that there are, valid or not."""
        return self.k_codes.size(2)

    @property
    def codes(self) -> tuple[Tensor, ...]:
        """The first four arguments."""
        return self.q_codes, self.q_scales, self.k_codes, self.k_scales

    def run(self, length: int, on: ops.Sim, **options: Any) -> tuple[Tensor, Tensor]:
        """Execute the kernel."""
        return ops.fp4_attention(
            on, *self.codes, self.v, ints(length), self.frame, q=self.q, k_mean=self.k_mean,
            **options,
        )  # fmt: skip

    def expected(self, length: int, **options: Any) -> tuple[Tensor, Tensor]:
        """Return the reference's results, unrounded."""
        q, mean = (None if x is None else x.double() for x in (self.q, self.k_mean))
        args = (*self.codes, self.v.double(), ints(length), self.frame)
        return reference.fp4_attention(*args, q=q, k_mean=mean, **options)

    def check(
        self, length: int, on: ops.Sim, *, lse_bound: float = 1e-4, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Hold the kernel to the reference."""
        out, lse = self.run(length, on, **options)
        expected, lse_expected = self.expected(length, **options)
        error = (out.double() - expected).norm() / expected.norm()
        assert error <= BOUND[self.v.dtype]
        assert (lse - lse_expected).abs().max() <= lse_bound
        return out, lse

    def spoilt(self, length: int) -> Problem:
        """Return a copy in which what lies behind the first keys is NaN."""
        k_codes, k_scales, v = (x.clone() for x in (self.k_codes, self.k_scales, self.v))
        k_codes[:, :, length:] = 0xFF
        v.view(torch.uint8)[:, length:] = 0xFF
        slot, row = divmod(length, self.frame)
        tile = slot * fp4.tiles_of(self.frame) + row // fp4.TILE
        row %= fp4.TILE
        raw = k_scales.view(torch.uint8)
        nan = 0xFF if k_scales.dtype == torch.float8_e8m0fnu else 0x7F
        raw[:, :, tile + 1 :] = nan
        for r in range(row, fp4.TILE) if tile < raw.size(2) else ():
            raw[:, :, tile, :, r % 32, r // 32] = nan
        k_mean = None if self.k_mean is None else self.k_mean.clone()
        if k_mean is not None:
            k_mean[:, :, tile + (row > 0) :] = math.nan
        return replace(self, k_codes=k_codes, k_scales=k_scales, v=v, k_mean=k_mean)


def problem_of(q: Tensor, k: Tensor, v: Tensor, recipe: str, frame: int) -> Problem:
    """Quantise `[B, S, H, D]`; the top channels, where a recipe has some, are at random."""
    perm = None
    if fp4.RECIPES[recipe].cross:
        order = [torch.randperm(q.size(3), generator=seeded(h)) for h in range(q.size(2))]
        perm = torch.stack(order).int()
    q_side = fp4.fp4_quantize(q, role="q", recipe=recipe, perm=perm)[:2]
    *k_side, mean = fp4.fp4_quantize(k, role="k", recipe=recipe, frame_tokens=frame, perm=perm)
    return Problem(frame, *q_side, *k_side, v, None if mean is None else q, mean)


@functools.cache
def _random(recipe: str, queries: int, frame: int, slots: int, heads: int, batch: int, std: float):
    make = normal(BF16, recipe, queries, frame, slots, std)
    q, k, v = (make(batch, s, heads, 128) for s in (queries, frame * slots, frame * slots))
    k += make(batch, 1, heads, 128)
    return problem_of(q * math.sqrt(std), k * math.sqrt(std), v, recipe, frame)


def random_problem(
    recipe: str, queries: int, frame: int, slots: int, values: torch.dtype = BF16, *,
    heads: int = 1, batch: int = 1, std: float = 1.0,
) -> Problem:  # fmt: skip
    """Keys of one head differ by a vector of their own from those of another."""
    problem = _random(recipe, queries, frame, slots, heads, batch, std)
    return replace(problem, v=problem.v.to(values))
