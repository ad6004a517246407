"""The document of a run as a table, and as a file that is written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1

HEADER = (
    "op",
    "shape",
    "heads",
    "ms",
    "p10..p90",
    "n",
    "GB/s",
    "GFLOP/s",
    "of limit",
    "/ copy",
    "/ fresh",
    "vs public",
    "vs compiled",
)
TEXT_COLUMNS = 2


def align(rows: Sequence[Sequence[str]], text_columns: int = TEXT_COLUMNS) -> str:
    """Return rows as lines of aligned columns, the first ones to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            c.ljust(w) if i < text_columns else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def number(value: float) -> str:
    """Return three significant digits without an exponent."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _row(case: dict[str, Any]) -> tuple[str, ...]:
    time = case["seconds"]["op"]
    compiled = case["speedup_over_compiled"]
    heads, model_heads = case["sizes"]["heads"], case["model_heads"]
    return (
        case["op"],
        case["shape"],
        str(heads) if heads == model_heads else f"{heads} of {model_heads}",
        number(1e3 * time["median"]),
        f"{number(1e3 * time['p10'])}..{number(1e3 * time['p90'])}",
        str(time["n"]),
        number(case["bytes_per_s"]["median"] / 1e9),
        number(case["flops_per_s"]["median"] / 1e9) if case["flops"] else "-",
        f"{100 * case['fraction_of_limit']['median']:.0f}% {case['bound']}",
        number(case["ratio_to_copy"]["median"]) if case["bound"] == "copy" else "-",
        number(case["ratio_to_fresh_copy"]["median"]) if case["ratio_to_fresh_copy"] else "-",
        number(case["speedup_over_public"]["median"]) + "x",
        number(compiled["median"]) + "x" if compiled else "-",
    )


def table(document: dict[str, Any]) -> str:
    """Return the run as text: machine, limits, one line a case, floors and remarks."""
    parts = [_heading(document)]
    measured = [c for c in document["cases"] if c["status"] == "measured"]
    if measured:
        parts.append(align([HEADER, *(_row(c) for c in measured)]))
    parts.append("\n".join(_remarks(document)))
    if document["end_to_end"]:
        parts.append(_end_to_end(document["end_to_end"]))
    return "\n\n".join(part for part in parts if part)


def _end_to_end(end: dict[str, Any]) -> str:
    forms = {
        "public": "public form, eager",
        "public_vidk_linears": "public form with vidk's linear layers",
        "vidk_compiled": "vidk, compiled",
    }
    rows = [("form", "s", "p10 .. p90", "n", "over vidk")]
    for name, text in forms.items():
        time, over = end["seconds"][name], end.get(f"speedup_over_{name}")
        spread = f"{number(time['p10'])} .. {number(time['p90'])}"
        share = f"{number(over['median'])}x" if over else ""
        rows.append((text, number(time["median"]), spread, str(time["n"]), share))
    sizes = end["sizes"]
    return (
        f"end to end: one step of {end['config']} with {end['layers']} layers and random weights, "
        f"{end['dtype']} on {end['device']}:\na new block of {sizes['frames']} frames of "
        f"{sizes['height']} x {sizes['width']} tokens on a full window of {sizes['cache_frames']} "
        f"frames, {number(end['flops'] / 1e9)} GFLOP, vidk at "
        f"{number(end['flops_per_s']['median'] / 1e9)} GFLOP/s\n" + align(rows, text_columns=1)
    )


def _heading(document: dict[str, Any]) -> str:
    env, machine = document["environment"], document["machine"]
    threads = f"{env['threads']} thread{'s' * (env['threads'] > 1)}"
    where = env.get("gpu") or f"{env['cpu']}, {threads}, {env['cpu_capability']}"
    rates = ", ".join(
        f"{dtype} matmul {number(stat['median'] / 1e9)} GFLOP/s"
        for dtype, stat in machine["matmul_flops_per_s"].items()
    )
    load = env["load_average"][0], document["load_average_after"][0]
    return (
        f"vidk {env['vidk']['version']}, torch {env['vidk']['torch']}, {where}\n"
        f"limits: copy {number(machine['copy_bytes_per_s']['median'] / 1e9)} GB/s, {rates}\n"
        f"load average: {load[0]:.1f} before, {load[1]:.1f} after"
    )


def _remarks(document: dict[str, Any]) -> list[str]:
    cases = document["cases"]
    lines = []
    if any(c["status"] == "measured" for c in cases):
        first = cases[0]
        lines += [
            f"{first['dtype']} on {first['device']}; blocks of {first['sizes']['frames']} latent "
            f"frames, caches of {first['sizes']['cache_frames']}, all of them attended",
            "of limit: share of the rate of copy_ on as many contiguous bytes, or of matmul",
            "/ copy: time over that of copy_ of the same tensors; / fresh: over the same copy with "
            "a newly allocated output, as the op has",
            "vs public, vs compiled: time of the op sequence of the public code, and of "
            "torch.compile of the plain form, over the op's",
        ]
        floors = {c["op"]: c["floor"] for c in cases}
        lines += [f"floor of {op}: {floor}" for op, floor in floors.items()]
    for c in cases:
        if c["status"] != "measured":
            lines.append(f"{c['op']} {c['shape']}: {c['status']}: {c['reason']}")
        elif c["sizes"]["heads"] != c["model_heads"]:
            lines.append(
                f"{c['op']} {c['shape']}: measured on {c['sizes']['heads']} of {c['model_heads']} "
                f"heads, so that the case stays within {document['policy']['limit_s']:.0f} s"
            )
        if c.get("compile_failure"):
            lines.append(f"{c['op']} {c['shape']}: not compiled: {c['compile_failure']}")
    return lines


def check_writable(path: str | Path) -> None:
    """Raise ValueError now rather than after minutes of measuring."""
    path = Path(path)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"vidk bench: --json: got {path}, expected a file in an existing folder")
    if not os.access(path.absolute().parent, os.W_OK):
        raise ValueError(f"vidk bench: --json: got {path}, expected a folder that can be written")


def write_json(document: dict[str, Any], path: str | Path) -> None:
    """Write the document; the file appears whole or not at all."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(document, indent=1) + "\n")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ValueError(f"vidk bench: --json: {path} cannot be written ({error})") from error
