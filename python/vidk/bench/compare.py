"""Compares two runs of `vidk bench --json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vidk.bench.report import SCHEMA_VERSION, align, number

Key = tuple[str, ...]


def load(path: str | Path) -> dict[str, Any]:
    """Read a document of this schema; raise ValueError for anything else."""
    try:
        document = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"vidk bench: --compare: {path} cannot be read ({error})") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA_VERSION or not isinstance(document.get("cases"), list):
        raise ValueError(
            f"vidk bench: --compare: {path}: got schema {schema}, expected a file of "
            f"`vidk bench --json` with schema {SCHEMA_VERSION}"
        )
    return document


def _times(document: dict[str, Any]) -> dict[Key, float | None]:
    """Return the median seconds of every case; None where there is no kernel."""
    times: dict[Key, float | None] = {}
    for c in document["cases"]:
        key = (c["op"], c["shape"], f"{c['sizes']['heads']} heads", c["dtype"], c["device"])
        times[key] = c["seconds"]["op"]["median"] if c["status"] == "measured" else None
    end = document.get("end_to_end")
    if end:
        key = ("end to end", end["shape"], f"{end['layers']} layers", end["dtype"], end["device"])
        times[key] = end["seconds"]["vidk_compiled"]["median"]
    return times


def compare(
    before: dict[str, Any], after: dict[str, Any], percent: float, absolute_s: float
) -> tuple[str, bool]:
    """Compare the medians of two documents, case by case.

    A change counts only if it passes both thresholds: a small percentage of a long case and many
    percent of a few microseconds are noise. A kernel that is gone is a regression as well.

    Returns
    -------
    The table, and whether anything became slower.
    """
    old, new = _times(before), _times(after)
    rows: list[Key] = [
        ("op", "shape", "sizes", "dtype", "device", "before ms", "after ms", "change", "")
    ]
    regressed = False
    for key in [*old, *(k for k in new if k not in old)]:
        a, b = old.get(key), new.get(key)
        change, verdict = "-", ""
        if a is not None and b is not None:
            change = f"{100 * (b / a - 1):+.1f}%"
            if abs(b - a) > absolute_s and abs(b / a - 1) > percent / 100:
                verdict = "SLOWER" if b > a else "faster"
        elif key not in new:
            verdict = "not in the second run"
        elif key not in old:
            verdict = "new"
        elif a is not None:
            verdict = "KERNEL GONE"
        regressed |= verdict in ("SLOWER", "KERNEL GONE")
        times = tuple("-" if t is None else number(1e3 * t) for t in (a, b))
        rows.append((*key, *times, change, verdict))
    lines = [align(rows, text_columns=5)]
    lines += [
        f"note: {what} differs: {x} and {y}" for what, x, y in _differences(before, after) if x != y
    ]
    lines.append(
        f"flagged: changes of more than {percent:g}% and more than {absolute_s * 1e3:g} ms"
    )
    return "\n".join(lines), regressed


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return what must be the same for times to be comparable."""
    a, b = before["environment"], after["environment"]
    names = ("cpu", "gpu", "threads", "cpu_capability")
    torch_versions = ("torch", a["vidk"]["torch"], b["vidk"]["torch"])
    return [*((name, a.get(name), b.get(name)) for name in names), torch_versions]
