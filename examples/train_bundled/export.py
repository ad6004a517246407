"""Write the package data: the weights in bfloat16, the codec, and where they come from.

python export.py FOLDER [EVAL.json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from gate import averaged_model, codec_state
from safetensors.torch import save_file
from train import revision

from vidk.bundled.load import CODEC, FOLDER, MODEL, PROVENANCE

LIMIT = 10_000_000


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a report of `vidk eval` that are worth a place beside the weights."""
    every = report["blocks"]
    return {
        "pairs": report["pairs"],
        "setup": report["setup"],
        "machine": report["machine"],
        "blocks": {b: {k: v["share"] for k, v in every[b].items()} for b in ("1", list(every)[-1])},
        "drift": report["drift"],
        "continuation": report["continuation"],
        "codec": report["measurement"],
    }


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("report", type=Path, nargs="?", help="of `vidk eval --json` on the weights")
    parser.add_argument("--weights", choices=("ema", "model"), default="ema")
    o = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    model, done = averaged_model(o.folder, o.weights)
    weights = {k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    save_file(weights, FOLDER / MODEL)
    codec = {
        k: v.to(torch.bfloat16 if k.startswith("decoder") else torch.float32).contiguous()
        for k, v in codec_state(o.folder).items()
    }
    save_file(codec, FOLDER / CODEC)
    told = {
        "exported_by": revision(),
        "seed": done["stages"][-1]["seed"],
        "weights": o.weights,
        "steps": done["step"],
        "clips": done["clips"],
        "hours": round(done["seconds"] / 3600, 3),
        "stages": done["stages"],
        "measured": summary(json.loads(o.report.read_text())) if o.report else None,
    }
    (FOLDER / PROVENANCE).write_text(json.dumps(told, indent=1) + "\n")
    size = sum(path.stat().st_size for path in FOLDER.iterdir())
    if size > LIMIT:
        raise SystemExit(f"{FOLDER}: got {size} bytes, expected at most {LIMIT}")
    print(f"{FOLDER}: {size} bytes")


if __name__ == "__main__":
    main()
