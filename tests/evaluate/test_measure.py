"""Measurement of pictures, on pictures that are known."""

from __future__ import annotations

import itertools

import pytest
import torch

from vidk.bundled.grammar import DIRECTIONS, SLOTS, Scene
from vidk.bundled.scenes import PLACES, render, walk
from vidk.evaluate.measure import direction, look, size_fits, step
from vidk.evaluate.report import judge
from vidk.evaluate.rollouts import Case


@pytest.mark.parametrize(
    ("colour", "shape", "background"),
    list(itertools.product(SLOTS["colour"], SLOTS["shape"], SLOTS["background"])),
)
def test_true_frames(colour, shape, background):
    scene = Scene(colour, shape, "up", background)
    # In the middle, and cut by the edges.
    for place in ([12, 12], [1, 23]):
        seen = look(render([scene], torch.tensor([place]))[0])
        assert (seen.colour, seen.shape, seen.background) == (colour, shape, background)
        assert seen.present and size_fits(seen, shape)


@pytest.mark.parametrize("way", DIRECTIONS)
def test_directions_also_across_the_edge(way):
    scene = Scene(direction=way)
    for start in ([12, 12], [0, 0]):
        frames = render([scene] * 3, walk(scene, torch.tensor(start), 3))
        seen = [look(frame) for frame in frames]
        assert direction(seen) == way
        found = judge(Case(scene, 0), seen)
        assert all(found.values())
        still = judge(Case(scene, 0), [seen[0]] * 3)
        assert not still["direction"] and not still["all"] and still["shape"]


def test_the_shorter_way():
    assert step((190.0, 5.0), (6.0, 5.0), 192) == (8.0, 0.0)
    assert step((6.0, 190.0), (190.0, 190.0), 192) == (-8.0, 0.0)


def test_what_is_not_there():
    empty = torch.full((192, 192, 3), 245, dtype=torch.uint8)
    seen = look(empty)
    assert (seen.background, seen.present, seen.shape) == ("white", False, None)
    assert direction([seen] * 3) is None
    speck = empty.clone()
    speck[:10, :10] = torch.tensor([230, 30, 30], dtype=torch.uint8)
    assert not look(speck).present


def test_other_shapes_and_sizes_are_told_apart():
    scene = Scene("red", "square", "right", "white")
    frame = render([scene], torch.tensor([[PLACES // 2] * 2]))[0]
    half = frame.clone()
    half[:96] = frame[0, 0]
    seen = look(half)
    assert not size_fits(seen, "square")
    wrong = judge(Case(Scene("blue", "circle", "right", "white"), 0), [look(frame)] * 3)
    assert not wrong["colour"] and not wrong["shape"] and wrong["background"]
