"""Looping .gif through Pillow, each frame with its own dithered palette."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from vidk.media.output import MediaError

_SAMPLE = 128  # pixels of a side
MIN_FPS = Fraction(1, 655)  # a delay is a 16-bit number of 1/100 s
MAX_FPS = 50  # viewers show a delay under 2/100 s as 10/100 s


class GifSink:
    """Collect `[H, W, 3]` frames as palette pictures (H*W bytes each) and write them at the end."""

    def __init__(self, path: Path, size: tuple[int, int], fps: Fraction) -> None:
        if not MIN_FPS <= fps <= MAX_FPS:
            raise MediaError(f"fps: got {float(fps):g}, expected 0.002 to {MAX_FPS} for .gif")
        self.codec = "gif"
        self.notes: list[str] = []
        self._path, self._fps = path, fps
        self._frames: list[Image.Image] = []

    def write(self, frame: np.ndarray) -> None:
        """Quantise one frame `[H, W, 3]` to 256 colours."""
        picture = Image.fromarray(frame)
        # Pillow dithers only towards a given palette, hence two steps; the palette of a sample is
        # as good as that of the whole picture, which costs 100 ms at 240p.
        sample = picture.resize(
            (min(picture.width, _SAMPLE), min(picture.height, _SAMPLE)), Image.Resampling.NEAREST
        )
        palette = sample.quantize(256, method=Image.Quantize.MEDIANCUT)
        dithered = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
        self._frames.append(dithered)

    def finish(self) -> None:
        """Write the file."""
        self._frames[0].save(
            self._path,
            format="GIF",
            save_all=True,
            append_images=self._frames[1:],
            duration=delays(len(self._frames), self._fps),
            loop=0,
            optimize=False,
        )

    def abort(self) -> None:
        """Drop the frames."""
        self._frames.clear()


def delays(count: int, fps: Fraction) -> list[int]:
    """Return the time of each frame in milliseconds, whole 1/100 s whose sum never drifts."""
    ends = [round(100 * index / fps) for index in range(count + 1)]
    return [10 * (after - before) for before, after in pairwise(ends)]
