"""The same video on 2, 3, 4 and 8 processes as on one."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from torch import Tensor

from .model import model_of, rollout, sharded_rollout
from .ranks import Ranks

# Ranks, heads, exchange: every rank its heads, head groups, all heads.
CASES = [
    (2, 2, "heads"), (3, 6, "heads"), (4, 4, "heads"), (8, 8, "heads"),
    (4, 6, "hybrid"), (8, 12, "hybrid"), (8, 6, "hybrid"),
    (2, 3, "gather"), (3, 4, "gather"), (8, 3, "gather"),
]  # fmt: skip


@functools.cache
def single(heads: int, **options: Any) -> Tensor:
    return rollout(model_of(heads), **options)


@pytest.mark.parametrize("kind", ["contiguous", "slices"])
@pytest.mark.parametrize(("ranks", "heads", "pattern"), CASES)
def test_same_video(world: Ranks, ranks: int, heads: int, pattern: str, kind: str) -> None:
    """Uneven splits, padding, a window with a sink, a recache."""
    results = world.run(sharded_rollout, ranks, heads, pattern, kind, {})
    video, digest, said = results[0]
    assert (video - single(heads)).abs().max() <= 1e-5
    assert {d for _, d, _ in results} == {digest}
    assert f"{ranks} ranks ({pattern})" in said
