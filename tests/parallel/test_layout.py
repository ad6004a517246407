"""Which tokens a rank holds, and what the planner chooses."""

from __future__ import annotations

import re

import pytest
import torch

from vidk.models import CONFIGS
from vidk.parallel import Layout, choose_sharding
from vidk.parallel.layout import KINDS

every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7, 8, 20])
@pytest.mark.parametrize("frames", [1, 3])
def test_split_and_join(kind, ranks: int, frames: int) -> None:
    block = torch.arange(1.0, 2 * frames * 15 * 2 + 1).view(2, frames, 15, 2)
    parts = [Layout(kind, ranks, r, 15) for r in range(ranks)]
    shards = [part.split(block) for part in parts]
    assert all(x.shape == shards[0].shape for x in shards)
    assert shards[0].shape[1] * shards[0].shape[2] == parts[0].shard_tokens(frames)
    assert torch.equal(parts[0].join(torch.stack(shards), frames), block)
    padding = sum(int((x == 0).sum()) for x in shards) // 4
    assert padding == parts[0].padding(frames)


@every_kind
@pytest.mark.parametrize("ranks", [1, 4, 8])
def test_groups_have_their_frames(kind, ranks: int) -> None:
    """Every token meets the modulation of its frame, also where a border cuts one."""
    frame = torch.arange(3.0).view(1, 3, 1, 1).expand(1, 3, 15, 1) + 1
    for rank in range(ranks):
        layout = Layout(kind, ranks, rank, 15)
        mine, groups = layout.split(frame), layout.frame_of_group(3, torch.device("cpu"))
        per_frame = torch.arange(1.0, 4.0).view(1, 3, 1, 1)
        spread = per_frame if groups is None else per_frame.index_select(1, groups)
        assert torch.equal(mine, spread.expand_as(mine).where(mine > 0, 0))


def test_groups_compiled() -> None:
    """Inductor once left a part of them unwritten."""

    @torch.compile(dynamic=False)
    def groups() -> torch.Tensor:
        found = Layout("contiguous", 2, 1, 15).frame_of_group(3, torch.device("cpu"))
        assert found is not None
        return found + 0

    assert groups().tolist() == [(23 + i) // 15 if i < 22 else 2 for i in range(23)]


@pytest.mark.parametrize(
    ("name", "ranks", "pattern", "kind", "head_ranks"),
    [
        ("wan-1.3b", 4, "heads", "slices", 4),
        ("wan-1.3b", 8, "hybrid", "slices", 4),
        ("wan-1.3b", 7, "gather", "slices", 1),
        ("wan-14b", 8, "heads", "slices", 8),
        ("wan-14b", 16, "hybrid", "contiguous", 8),
        ("wan-14b", 1, "heads", "slices", 1),
    ],
)
def test_choice(name: str, ranks: int, pattern: str, kind: str, head_ranks: int) -> None:
    plan = choose_sharding(CONFIGS[name], ranks=ranks, frame_tokens=1560, frames=3, itemsize=2)
    assert (plan.pattern, plan.kind, plan.head_ranks) == (pattern, kind, head_ranks)
    assert str(plan).startswith(f"{ranks} ranks ({pattern})")
    # The fewest bytes of all that work.
    for other in ("heads", "hybrid", "gather"):
        try:
            rival = choose_sharding(
                CONFIGS[name], ranks=ranks, frame_tokens=1560, frames=3, itemsize=2, pattern=other
            )
        except ValueError:
            continue
        assert plan.layer_bytes <= rival.layer_bytes


def test_published_traffic() -> None:
    """4 L C / P (P - 1) / P elements of a rank and layer; k and v of the block are 28.8 MB."""
    plan = choose_sharding(
        CONFIGS["wan-1.3b"], ranks=4, frame_tokens=1560, frames=3, itemsize=2, pattern="heads"
    )
    assert plan.layer_bytes == 4 * 4680 * 1536 * 2 // 4 * 3 // 4
    assert 2 * 4 * plan.shard_bytes == 28_753_920


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ranks": 0}, "ranks: got 0, expected at least 1"),
        ({"ranks": 46}, "ranks: got 46, expected at most 45, the tokens of the smallest block"),
        ({"ranks": 16, "first_frames": 1}, "ranks: got 16, expected at most 15"),
        ({"ranks": 5, "pattern": "heads"}, "got heads for 5 ranks, expected a number that divides"),
        ({"ranks": 5, "pattern": "hybrid"}, "got hybrid for 5 ranks"),
        ({"ranks": 4, "pattern": "ring"}, "exchange: got ring, expected one of heads, hybrid"),
        ({"ranks": 4, "kind": "rows"}, "layout: got rows, expected contiguous or slices"),
    ],
)
def test_refused(options: dict, text: str) -> None:
    sizes = {"frame_tokens": 15, "frames": 3, "itemsize": 4}
    with pytest.raises(ValueError, match=re.escape(text)):
        choose_sharding(CONFIGS["wan-1.3b"], **{**sizes, **options})
