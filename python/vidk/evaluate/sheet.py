"""A contact sheet: one row a clip, its prompt beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_SIDE, _GAP, _LABEL = 96, 6, 250
_PAPER, _INK = (24, 24, 26), (208, 208, 212)


def draw_sheet(
    path: str | Path, frames: Tensor, labels: Sequence[str], columns: Sequence[int]
) -> None:
    """Write the frames numbered `columns` of clips uint8 `[N, F, H, W, 3]` to a .png.

    Parameters
    ----------
    path : of the picture.
    frames : the clips.
    labels : text for each clip.
    columns : frame numbers, also the head of each column.
    """
    cell = _SIDE + _GAP
    size = (_LABEL + cell * len(columns), 20 + cell * len(labels))
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default()
    for column, number in enumerate(columns):
        pen.text((_LABEL + column * cell, 4), f"frame {number}", fill=_INK, font=font)
    for row, (clip, label) in enumerate(zip(frames, labels, strict=True)):
        top = 20 + row * cell
        pen.text((8, top + _SIDE // 2 - 6), label, fill=_INK, font=font)
        for column, number in enumerate(columns):
            picture = Image.fromarray(clip[number].numpy()).resize((_SIDE, _SIDE))
            sheet.paste(picture, (_LABEL + column * cell, top))
    sheet.save(path, format="PNG")
