"""The world of the bundled model: one flat shape that moves on a torus.

Time steps are frames, lengths are cells: a latent cell is `CELL` pixels and a picture has
`GRID` x `GRID` of them. Centres lie on a grid of half cells and a shape moves half a cell a
frame, so that every frame is one of a finite set, which a small model can learn exactly. What
leaves the picture on one side comes in on the other: a prompt such as "moving right" stays true
however long the video is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vidk.bundled.grammar import BACKGROUNDS, COLOURS, DIRECTIONS, Scene

CELL = 16
GRID = 12
# Places of a centre along one axis, half a cell apart.
PLACES = 2 * GRID
SIZE = CELL * GRID


def _distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Return the signed distance, in cells, of points to the outline of a shape at the origin."""
    if shape == "circle":
        return (x.square() + y.square()).sqrt() - 2.7
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 2.4
    if shape == "triangle":
        # Upright and equilateral, about its centroid.
        slope = 3**0.5
        side = (slope * x.abs() - y) / 2
        return torch.maximum(side, y) - 1.85
    raise ValueError(f"vidk.bundled: shape: got {shape!r}, expected circle, square or triangle")


def shape_mask(shape: str, column: int, row: int) -> Tensor:
    """Return the coverage `[SIZE, SIZE]`, 0 to 1, of a shape centred at a place (half cells)."""
    axis = (torch.arange(SIZE, dtype=torch.float64) + 0.5) / CELL

    def offset(place: int) -> Tensor:
        return (axis - place / 2 + GRID / 2) % GRID - GRID / 2

    distance = _distance(shape, offset(column)[None, :], offset(row)[:, None])
    return (0.5 - distance * CELL).clamp(0, 1).float()


def render(scenes: Sequence[Scene], places: Tensor) -> Tensor:
    """Return frames uint8 `[N, SIZE, SIZE, 3]` of scenes with centres `places` `[N, 2]` (x, y)."""
    frames = []
    for scene, (column, row) in zip(scenes, places.tolist(), strict=True):
        mask = shape_mask(scene.shape, column, row)[..., None]
        ground = torch.tensor(BACKGROUNDS[scene.background])
        colour = ground + mask * (torch.tensor(COLOURS[scene.colour]) - ground)
        frames.append((colour * 255).round().to(torch.uint8))
    return torch.stack(frames)


def walk(scene: Scene, start: Tensor, frames: int) -> Tensor:
    """Return the centres `[frames, 2]` of a scene's shape that begins at `start` `[2]`."""
    step = torch.tensor(DIRECTIONS[scene.direction])
    return (start + step * torch.arange(frames)[:, None]) % PLACES


# A shape begins this many half cells behind the middle, seen in the direction of its motion ...
BEHIND = 4
# ... and up to this many beside it, in which seeds differ.
BESIDE = 2


def start_place(scene: Scene, seed: int) -> Tensor:
    """Return the centre `[2]` of a first frame."""
    step = torch.tensor(DIRECTIONS[scene.direction])
    beside = seed % (2 * BESIDE + 1) - BESIDE
    return PLACES // 2 - BEHIND * step + beside * step.flip(0)
