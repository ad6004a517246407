"""Prompt scripts: which prompt holds from which second of a video."""

from __future__ import annotations

import math
from pathlib import Path


def read_script(path: str) -> list[tuple[float, str]]:
    """Return `(seconds, prompt)` of each line `seconds: prompt` of a file, the first at 0.

    Empty lines and lines that begin with `#` are left out. A prompt takes effect with the first
    block that begins at or after its time.

    Raises
    ------
    ValueError : a line of another form, times that do not increase, or no line at second 0.
    """
    script: list[tuple[float, str]] = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        place = f"{path}: line {number}"
        time, colon, prompt = line.partition(":")
        try:
            seconds = float(time)
        except ValueError:
            seconds = math.nan
        if not (colon and prompt.strip() and math.isfinite(seconds)):
            raise ValueError(
                f"{place}: got {line.strip()!r}, expected `seconds: prompt`, such as "
                "`2.5: a blue square moving up`"
            )
        if script and seconds <= script[-1][0]:
            raise ValueError(f"{place}: got {seconds:g} s, expected more than {script[-1][0]:g} s")
        if not script and seconds != 0:
            raise ValueError(f"{place}: got {seconds:g} s, expected 0 s for the first prompt")
        script.append((seconds, prompt.strip()))
    if not script:
        raise ValueError(f"{path}: got no prompt, expected lines `seconds: prompt`")
    return script
