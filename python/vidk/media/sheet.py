"""A .png contact sheet: frames chosen evenly from a stream, in a labelled grid."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MAX_FRAMES = 24
_MAX_SIDE = 320  # pixels of the longer side of a cell
_GAP, _LABEL = 8, 16  # pixels between cells and for the text under each
_ASPECT = 1.6  # wanted width over height of the sheet
_PAPER, _INK = (24, 24, 26), (208, 208, 212)


class SheetSink:
    """Keep an even choice of the `[H, W, 3]` frames seen so far, and draw them at the end."""

    def __init__(self, path: Path, size: tuple[int, int], fps: Fraction) -> None:
        self.codec = "png"
        self.notes: list[str] = []
        self._path, self._fps = path, fps
        self._cell = _cell(size)
        self._kept: dict[int, Image.Image] = {}
        self._last: Image.Image | None = None
        self._seen, self._stride = 0, 1

    def write(self, frame: np.ndarray) -> None:
        """Take one frame `[H, W, 3]`."""
        height, width = self._cell
        picture = Image.fromarray(frame)
        if picture.size != (width, height):
            # Enlarging repeats pixels, so that the sheet does not look smoother than the video.
            enlarge = width > picture.width
            method = Image.Resampling.NEAREST if enlarge else Image.Resampling.LANCZOS
            picture = picture.resize((width, height), method)
        self._last = picture
        if self._seen % self._stride == 0:
            self._kept[self._seen] = picture
        self._seen += 1
        # The length is unknown until the end: twice the wanted density, thinned when it doubles.
        if len(self._kept) > 2 * MAX_FRAMES:
            self._stride *= 2
            self._kept = {k: v for k, v in self._kept.items() if k % self._stride == 0}

    def finish(self) -> None:
        """Draw the grid and write the file."""
        assert self._last is not None
        frames = {**self._kept, self._seen - 1: self._last}
        chosen = choose(sorted(frames), MAX_FRAMES)
        if len(chosen) < self._seen:
            self.notes.append(f"shows {len(chosen)} of {self._seen} frames")
        font = ImageFont.load_default()
        labels = {k: f"{k} ({float(k / self._fps):.2f} s)" for k in chosen}
        height, width = self._cell
        # Small frames get a cell as wide as their label.
        room = max(width, *(int(font.getlength(text)) + 1 for text in labels.values()))
        columns = _columns(len(chosen), room + _GAP, height + _LABEL + _GAP)
        rows = -(-len(chosen) // columns)
        size = (
            columns * (room + _GAP) + _GAP,
            rows * (height + _LABEL + _GAP) + _GAP,
        )
        sheet = Image.new("RGB", size, _PAPER)
        draw = ImageDraw.Draw(sheet)
        for place, key in enumerate(chosen):
            row, column = divmod(place, columns)
            left = _GAP + column * (room + _GAP)
            top = _GAP + row * (height + _LABEL + _GAP)
            sheet.paste(frames[key], (left, top))
            draw.text((left, top + height + 2), labels[key], fill=_INK, font=font)
        sheet.save(self._path, format="PNG", optimize=False)

    def abort(self) -> None:
        """Drop the frames."""
        self._kept.clear()


def choose(indices: list[int], count: int) -> list[int]:
    """Return at most `count` of the sorted indices, even in value, first and last included."""
    if len(indices) <= count:
        return indices
    wanted = np.linspace(indices[0], indices[-1], count)
    values = np.asarray(indices)
    nearest = {int(values[np.abs(values - target).argmin()]) for target in wanted}
    return sorted(nearest)


def _cell(size: tuple[int, int]) -> tuple[int, int]:
    ratio = _MAX_SIDE / max(size)
    ratio = max(1, int(ratio / 2)) if ratio >= 1 else ratio
    return max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))


def _columns(count: int, width: int, height: int) -> int:
    def badness(columns: int) -> tuple[float, int]:
        rows = -(-count // columns)
        off = abs(np.log(columns * width / (rows * height) / _ASPECT))
        return float(off) + (columns * rows - count) / count, columns

    return min(range(1, count + 1), key=badness)
