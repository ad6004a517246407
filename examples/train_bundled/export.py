"""Write the package data: the weights in bfloat16, the codec, and where they come from.

python export.py FOLDER [EVAL.json] [--earlier STAGES.json]
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
        "versions": report["versions"],
        "blocks": {b: {k: v["share"] for k, v in every[b].items()} for b in ("1", list(every)[-1])},
        "drift": report["drift"],
        "continuation": report["continuation"],
        "codec": report["measurement"],
    }


def all_stages(done: dict[str, Any], earlier: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return all stages of a training; leave unless they add up to what was done."""
    stages = [*earlier, *done["stages"]]
    for key, total in (("steps", "step"), ("clips", "clips"), ("seconds", "seconds")):
        told = sum(stage[key] for stage in stages)
        if abs(told - done[total]) > 1e-3:
            raise SystemExit(
                f"stages: got {told} {key}, expected the {done[total]} of state.pt (--earlier)"
            )
    return stages


def measured(path: Path, done: dict[str, Any], weights: str) -> dict[str, Any]:
    """Return the summary of a report; leave if it is on other weights."""
    report = json.loads(path.read_text())
    got = tuple(report["model"][key] for key in ("steps", "weights"))
    if got != (done["step"], weights):
        raise SystemExit(
            f"{path}: got a report on {got[1]} weights of {got[0]} steps, expected {weights} "
            f"weights of {done['step']}: run vidk eval on the exported ones"
        )
    return summary(report)


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("report", type=Path, nargs="?", help="of `vidk eval --json` on the weights")
    parser.add_argument("--weights", choices=("ema", "model"), default="ema")
    parser.add_argument(
        "--earlier", type=Path, help="stages before those that state.pt tells, a list in JSON"
    )
    o = parser.parse_args()
    # Before anything is written: the files may be those of the source.
    commit = revision()
    FOLDER.mkdir(exist_ok=True)
    model, done = averaged_model(o.folder, o.weights)
    stages = all_stages(done, json.loads(o.earlier.read_text()) if o.earlier else [])
    found = measured(o.report, done, o.weights) if o.report else None
    weights = {k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    save_file(weights, FOLDER / MODEL)
    codec = {
        k: v.to(torch.bfloat16 if k.startswith("decoder") else torch.float32).contiguous()
        for k, v in codec_state(o.folder).items()
    }
    save_file(codec, FOLDER / CODEC)
    told = {
        "exported_by": commit,
        "seed": done["stages"][-1]["seed"],
        "weights": o.weights,
        "steps": done["step"],
        "clips": done["clips"],
        "hours": round(done["seconds"] / 3600, 3),
        "machine": sorted({stage["machine"] for stage in done["stages"]}),
        "stages": stages,
        "measured": found,
    }
    (FOLDER / PROVENANCE).write_text(json.dumps(told, indent=1) + "\n")
    size = sum(path.stat().st_size for path in FOLDER.iterdir())
    if size > LIMIT:
        raise SystemExit(f"{FOLDER}: got {size} bytes, expected at most {LIMIT}")
    print(f"{FOLDER}: {size} bytes")


if __name__ == "__main__":
    main()
