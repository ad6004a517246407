"""What the ranks send: counted, and held to the planner's numbers."""

from __future__ import annotations

from collections import Counter

import pytest

from .model import CHANNELS, compiled_rollout, counted_forwards
from .ranks import Ranks

LAYERS = 2
FORWARDS = [*["denoise"] * 4, "clean"] * 4


@pytest.mark.parametrize("kind", ["contiguous", "slices"])
@pytest.mark.parametrize(
    ("ranks", "heads", "pattern"),
    [(2, 2, "heads"), (8, 8, "heads"), (4, 6, "hybrid"), (8, 12, "hybrid"), (3, 4, "gather")],
)
def test_bytes_are_those_of_the_planner(
    world: Ranks, ranks: int, heads: int, pattern: str, kind: str
) -> None:
    """Filling, full and wrapped: every forward sends as much, so history is never sent again."""
    results = world.run(counted_forwards, ranks, heads, pattern, kind)
    assert len(results) == ranks
    for plan, counts in results:
        assert len(counts) == len(FORWARDS)
        for kind_of_run, (sent, messages, _) in zip(FORWARDS, counts, strict=True):
            if kind_of_run == "denoise":
                assert sent == plan.forward_bytes == LAYERS * plan.layer_bytes + plan.flow_bytes
                assert messages == LAYERS * plan.layer_messages + ranks - 1
            else:
                assert sent == plan.clean_bytes
    tokens = 45 + results[0][0].layout().padding(3)
    whole = tokens * CHANNELS * 4  # one of q, k, v of the block
    if pattern == "heads":
        assert ranks * ranks * results[0][0].layer_bytes == 4 * whole * (ranks - 1)
    if pattern == "gather":
        assert ranks * results[0][0].layer_bytes == 2 * whole * (ranks - 1)


@pytest.mark.parametrize(
    ("ranks", "heads", "pattern"), [(4, 4, "heads"), (8, 12, "hybrid"), (8, 3, "gather")]
)
def test_nothing_is_gathered_to_be_rotated(
    world: Ranks, ranks: int, heads: int, pattern: str
) -> None:
    """q, k and v are each rotated and packed before they leave; one write a layer."""
    for _, counts in world.run(counted_forwards, ranks, heads, pattern, "contiguous"):
        for _, _, ops in counts:
            kept = [
                name.split("::")[1]
                for name in ops
                if name.startswith("vidk") or ("c10d" in name and "wait" not in name)
            ]
            seen = Counter(kept)
            assert seen["qk_norm_rope_pack"] == 3 * LAYERS
            assert seen["unpack_kv_write"] == LAYERS
            assert not seen["rope_3d"] and not seen["qk_norm_rope_kv_write"]
            # Each layer begins with the packing of v, and every exchange follows one.
            assert kept[0] == "qk_norm_rope_pack"
            sent = [i for i, name in enumerate(kept) if name.startswith("all_")]
            assert sent[0] == 1


@pytest.mark.parametrize(
    ("ranks", "heads", "backend"),
    [(2, 2, "aot_eager"), (4, 6, "aot_eager"), (8, 3, "eager")],
)
def test_one_graph(world: Ranks, ranks: int, heads: int, backend: str) -> None:
    results = world.run(compiled_rollout, ranks, heads, backend)
    assert len(results) == ranks
    for counts, error in results:
        assert counts == {"graphs": 1, "breaks": 0, "recompiles": []}
        assert error <= 2e-5
