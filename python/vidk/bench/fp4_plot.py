"""The accuracy study as a picture: a dot for each recipe and set, on a logarithmic axis."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from vidk.bench.fp4_recipes import STUDY

# Colours that differ in lightness too.
COLOURS = ("#7f7f7f", "#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#000000")
_WIDTH, _ROW, _TOP, _LEFT, _RIGHT, _BOTTOM = 1000, 26, 70, 250, 30, 46
_TICKS = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
_DOT = 5


def draw(document: dict[str, Any], path: Path) -> None:
    """Write the errors of a document of `fp4_accuracy.run` as a .png file."""
    sets = {name: found["recipes"] for name, found in document["sets"].items()}
    values = [r["crel"] for recipes in sets.values() for r in recipes.values()]
    low, high = min(*values, _TICKS[0]) * 0.9, max(*values, _TICKS[-1]) * 1.1
    bottom = _TOP + len(STUDY) * _ROW
    image = Image.new("RGB", (_WIDTH, bottom + _BOTTOM), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(14)

    def x_of(value: float) -> float:
        share = math.log(value / low) / math.log(high / low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    pen.text((12, 8), "Error of attention, |out - exact| / |exact - mean v|", "black", font)
    for tick in _TICKS:
        pen.line((x_of(tick), _TOP - 4, x_of(tick), bottom), "#dddddd")
        pen.text((x_of(tick), bottom + 6), f"{tick:g}", "black", font, anchor="ma")
    for row, (name, recipe) in enumerate(STUDY.items()):
        y = _TOP + (row + 0.5) * _ROW
        pen.line((_LEFT, y, _WIDTH - _RIGHT, y), "#eeeeee")
        # What vidk's kernels do is black, what it is compared with grey.
        ink = "black" if recipe.of_vidk else "#808080"
        pen.text((_LEFT - 12, y), recipe.label, ink, font, anchor="rm")
        for recipes, colour in zip(sets.values(), COLOURS, strict=True):
            x = x_of(recipes[name]["crel"])
            pen.ellipse((x - _DOT, y - _DOT, x + _DOT, y + _DOT), outline=colour, width=2)
    x = float(_LEFT)
    for name, colour in zip(sets, COLOURS, strict=True):
        pen.ellipse((x - _DOT, 48 - _DOT, x + _DOT, 48 + _DOT), outline=colour, width=2)
        pen.text((x + 10, 48), name, "black", font, anchor="lm")
        x += 24 + font.getlength(name)
    image.save(path, format="PNG")
