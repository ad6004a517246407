"""Rollouts on quantised keys: one graph, errors that do not grow, states that come back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from tests.tiny import tiny_model, tiny_prompt
from vidk.bench.fp4_accuracy import rollout_errors
from vidk.models import CausalWan
from vidk.rollout import Session
from vidk.text import PromptEmbeds

SIZE = (4, 6)


@pytest.fixture
def model() -> CausalWan:
    """Heads of 128 channels, which every recipe takes."""
    return tiny_model(dim=256, num_heads=2)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def session(model: CausalWan, kind: str, recipe: str = "default", **options: object) -> Session:
    options = {"frames": 6, "sink": 1, "seed": 3, **options}
    return Session(model, *tiny_prompt(model), SIZE, kind=kind, recipe=recipe, **options)


def clip(s: Session, frames: int) -> torch.Tensor:
    return torch.cat([b.latents for b in s.generate(frames)], dim=1)


def test_errors_do_not_grow_over_twenty_blocks(model: CausalWan) -> None:
    prompt = PromptEmbeds(*tiny_prompt(model))
    caches = (("nvfp4", "default"), ("fp8", "default"))
    found = rollout_errors(model, prompt, SIZE, 20, caches, frames=6, sink=1)
    assert found.keys() == {"default", "fp8"}
    for errors in found.values():
        assert len(errors) == 20
        assert 0.001 < errors[0] < 0.04
        assert max(errors) <= 2 * errors[0]


# The accurate recipe has every tensor that there is; fp8 has types that compilers hardly know.
@pytest.mark.parametrize(("kind", "recipe"), [("nvfp4", "accurate"), ("fp8", "default")])
@pytest.mark.usefixtures("fresh_dynamo")
def test_one_graph_serves_a_whole_rollout(model: CausalWan, kind: str, recipe: str) -> None:
    clips = []
    for compile in ({"dynamic": False}, False):
        s = session(model, kind, recipe, compile=compile)
        parts = [clip(s, 9)]
        s.set_prompt(*tiny_prompt(model, seed=1, tokens=5), recache=True)
        clips.append(torch.cat([*parts, clip(s, 3)], dim=1))
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    # A rounding that falls the other way moves a value by a step of its format.
    compiled, eager = clips
    assert (compiled - eager).norm() < 0.02 * eager.norm()


def test_snapshot_and_restore(model: CausalWan) -> None:
    s = session(model, "nvfp4", "accurate")
    clip(s, 9)
    saved = s.snapshot()
    expected = clip(s, 6)
    s.set_prompt(*tiny_prompt(model, seed=1), recache=True)
    clip(s, 3)
    s.restore(saved)
    assert torch.equal(clip(s, 6), expected)


def test_a_first_block_of_one_frame(model: CausalWan) -> None:
    plain, fp4 = (
        clip(session(model, kind, independent_first_frame=True), 7) for kind in ("plain", "nvfp4")
    )
    assert 0 < (plain - fp4).norm() < 0.05 * plain.norm()
