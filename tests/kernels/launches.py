"""What the committed PTX says of itself, for the tests."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PTX = ROOT / "kernels" / "ptx"
LAUNCHES = json.loads((PTX / "launch.json").read_text())
TYPES = {"pointer": ".u64", "i64": ".u64", "i32": ".u32", "f32": ".f32"}
SIZES = {".u64": 8, ".u32": 4, ".f32": 4}


def entry_text(entry: str) -> str:
    """Return the text of one entry, parameters and body."""
    functions = (PTX / LAUNCHES[entry]["file"]).read_text().split(".visible .entry ")[1:]
    [text] = [function for function in functions if function.startswith(f"{entry}(")]
    return text


def param_layout(entry: str) -> list[tuple[str, int, int]]:
    """Return (name, offset, size) of each parameter, as PTX lays parameters out."""
    layout, end = [], 0
    header = entry_text(entry).split("{", 1)[0]
    for line in re.findall(r"^\.param (.*?),?$", header, re.M):
        aligned = re.fullmatch(r"\.align (\d+) \.b8 arg_(\w+)\[(\d+)\]", line)
        if aligned:
            align, name, size = int(aligned[1]), aligned[2], int(aligned[3])
        else:
            kind, name = line.split(" arg_")
            align = size = SIZES[kind]
        offset = -(-end // align) * align
        layout.append((name, offset, size))
        end = offset + size
    return layout
