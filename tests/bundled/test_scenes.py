"""The world of the bundled model."""

from __future__ import annotations

import pytest
import torch

from vidk.bundled.grammar import DIRECTIONS, SHAPES, Scene
from vidk.bundled.scenes import BEHIND, CELL, PLACES, SIZE, render, shape_mask, start_place, walk


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_wrap_around(shape):
    middle = shape_mask(shape, PLACES // 2, PLACES // 2)
    assert middle.shape == (SIZE, SIZE)
    assert 0.1 < middle.mean() < 0.2
    corner = shape_mask(shape, 0, 0)
    assert torch.allclose(corner, middle.roll((SIZE // 2, SIZE // 2), (0, 1)), atol=1e-5)
    half_a_cell = shape_mask(shape, PLACES // 2 + 1, PLACES // 2)
    assert torch.allclose(half_a_cell, middle.roll(CELL // 2, 1), atol=1e-5)


def test_shapes_differ():
    masks = [shape_mask(shape, 12, 12) for shape in SHAPES]
    for i, a in enumerate(masks):
        for b in masks[i + 1 :]:
            assert (a - b).abs().mean() > 0.02


def test_an_unknown_shape():
    with pytest.raises(ValueError, match="shape: got 'star', expected circle, square or triangle"):
        shape_mask("star", 0, 0)


def test_render():
    scene = Scene("blue", "square", "up", "white")
    frame = render([scene], torch.tensor([[12, 12]]))[0]
    assert frame.dtype == torch.uint8 and frame.shape == (SIZE, SIZE, 3)
    assert frame[0, 0].tolist() == [245, 245, 245]
    assert frame[SIZE // 2, SIZE // 2].tolist() == [38, 76, 242]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_walks(direction):
    scene = Scene(direction=direction)
    step = torch.tensor(DIRECTIONS[direction])
    start = start_place(scene, 3)
    # Behind the middle along its way, beside it by what the seed says.
    offset = start - PLACES // 2
    assert int((offset * step).sum()) == -BEHIND
    places = walk(scene, start, PLACES + 1)
    assert torch.equal(places[0], start % PLACES)
    assert torch.equal((places[1:] - places[:-1]) % PLACES, (step % PLACES).expand(PLACES, 2))
    assert torch.equal(places[-1], places[0])
    assert len({tuple(start_place(scene, seed).tolist()) for seed in range(10)}) == 5
