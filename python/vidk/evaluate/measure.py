"""What a picture shows, by simple measurement: for clips of the bundled model's world.

Positions are circular, since what leaves the picture on one side comes in on the other.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vidk.bundled.grammar import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES
from vidk.bundled.scenes import CELL, PLACES, SIZE, shape_mask

# Area over that of the bounding box is 1, pi / 4 and 1 / 2; the limits lie between.
_FILL = (("square", 0.89), ("circle", 0.64), ("triangle", 0.0))
# Colours are in 0..1; a shape closer than this to its background is not there.
_CONTRAST = 0.25
_SIZE_TOLERANCE = 1.25
_FARTHEST = 0.03
_STEP = CELL / 2
AREA = {shape: float(shape_mask(shape, PLACES // 2, PLACES // 2).mean()) for shape in SHAPES}


@dataclass(frozen=True)
class Seen:
    """What a frame shows.

    `centre` is (x, y) in pixels, `area` the shape's share of the picture; `colour` and `shape` are
    None where there is no object.
    """

    background: str
    present: bool
    colour: str | None
    shape: str | None
    area: float
    centre: tuple[float, float]


def _nearest(colour: Tensor, table: dict[str, tuple[float, float, float]]) -> str:
    distance = {name: float((colour - torch.tensor(c)).norm()) for name, c in table.items()}
    return min(distance, key=distance.__getitem__)


def _circular_mean(weight: Tensor) -> float:
    """Return the mean place, in 0..n, of weights `[n]` on a circle."""
    n = weight.numel()
    angle = (torch.arange(n, dtype=torch.float64) + 0.5) * (2 * math.pi / n)
    y, x = (weight.double() @ angle.sin()), (weight.double() @ angle.cos())
    return float(torch.atan2(y, x)) % (2 * math.pi) * n / (2 * math.pi)


def look(frame: Tensor) -> Seen:
    """Measure one frame, uint8 `[H, W, 3]`."""
    # Half the resolution measures the same four times faster.
    x = F.avg_pool2d(frame.permute(2, 0, 1).float() / 255, 2).permute(1, 2, 0)
    h, w, _ = x.shape
    flat = x.flatten(0, 1)
    # A shape covers well under half of the picture.
    ground = flat.median(0).values
    background = _nearest(ground, BACKGROUNDS)
    distance = (flat - ground).norm(dim=1)
    count = max(1, round(_FARTHEST * h * w))
    far = flat[distance.topk(count).indices].median(0).values
    axis = far - ground
    contrast = float(axis.norm())
    if contrast < _CONTRAST:
        return Seen(background, False, None, None, 0.0, (0.0, 0.0))
    mask = ((flat - ground) @ axis / contrast**2).clamp(0, 1).view(h, w)
    # Noise of the background is no part of the shape.
    mask = mask * (mask > 0.1)
    centre = (_circular_mean(mask.sum(0)), _circular_mean(mask.sum(1)))
    middle = mask.roll((h // 2 - int(centre[1]), w // 2 - int(centre[0])), (0, 1)) > 0.5
    height, width = int(middle.any(1).sum()), int(middle.any(0).sum())
    area = float(mask.mean())
    fill = area * h * w / max(height * width, 1)
    shape = next(name for name, least in _FILL if fill >= least)
    ratio = area / AREA[shape]
    # Specks, or a cloud over everything, are no object.
    present = 0.25 < ratio < 4
    place = (2 * centre[0], 2 * centre[1])
    return Seen(background, present, _nearest(far, COLOURS), shape, area, place)


def step(before: tuple[float, float], after: tuple[float, float], size: int) -> tuple[float, float]:
    """Return the shorter way (x, y), in pixels, between two places on the torus."""
    x, y = ((b - a + size / 2) % size - size / 2 for a, b in zip(before, after, strict=True))
    return x, y


def direction(seen: list[Seen], size: int = SIZE) -> str | None:
    """Return where the object went over some frames, None if nowhere or on no axis."""
    steps = [step(a.centre, b.centre, size) for a, b in itertools.pairwise(seen)]
    x, y = (sum(s[i] for s in steps) for i in (0, 1))
    least = 0.5 * _STEP * len(steps)
    along, across = max(abs(x), abs(y)), min(abs(x), abs(y))
    if not all(s.present for s in seen) or along < least or across > along / 2:
        return None
    way = (int(math.copysign(1, x)), 0) if abs(x) > abs(y) else (0, int(math.copysign(1, y)))
    return next(name for name, unit in DIRECTIONS.items() if unit == way)


def size_fits(seen: Seen, shape: str) -> bool:
    """Tell whether the area is that of the shape that was asked for."""
    ratio = seen.area / AREA[shape]
    return seen.present and 1 / _SIZE_TOLERANCE < ratio < _SIZE_TOLERANCE
