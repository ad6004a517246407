"""A moving picture whose frames can be told apart after lossy coding."""

from collections.abc import Callable

import numpy as np
import pytest


def _clip(count: int, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    frames = []
    for index in range(count):
        red, green = 255 * x / width, 255 * y / height
        blue = np.full_like(x, 30 + 200 * index / max(1, count - 1))
        frames.append(np.stack([red, green, blue], axis=-1))
    return np.stack(frames).astype(np.uint8)


@pytest.fixture
def clip() -> Callable[[int, int, int], np.ndarray]:
    return _clip
