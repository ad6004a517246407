"""Evaluate a training at a gate: rollouts of its averaged weights by the product's own session.

    python gate.py FOLDER --pairs 32 --blocks 7

prints what `vidk eval` prints, appends it to FOLDER/gates.jsonl, and exits with 1 below a bar.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from decoder import FILE as DECODER
from encoder import fitted

from vidk.bundled.codec import BundledCodec
from vidk.evaluate import Setup, cases, decoded, judged_blocks, rollouts
from vidk.evaluate.sheet import draw_sheet
from vidk.models.checkpoint import assign
from vidk.models.config import CONFIGS
from vidk.models.seeded import meta_model
from vidk.models.wan import CausalWan

BARS = {"background": 0.98, "colour": 0.95, "shape": 0.85, "direction": 0.90}


def averaged_model(folder: Path, weights: str = "ema") -> tuple[CausalWan, dict[str, Any]]:
    """Return the model of a training folder and what was done to train it."""
    state = torch.load(folder / "state.pt")
    model = meta_model(CONFIGS["bundled"])
    assign(model, {k: v.clone() for k, v in state[weights].items()})
    return model.eval(), state["done"]


def codec_state(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of `BundledCodec`."""
    weight, mean = fitted(folder)
    decoder = {f"decoder.{k}": v for k, v in torch.load(folder / DECODER).items()}
    return {"encoder.weight": weight, "encoder.mean": mean, **decoder}


def main() -> int:
    """Evaluate; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("folder", type=Path)
    add("--pairs", type=int, default=32)
    add("--blocks", type=int, default=7)
    add("--setup", default="", help="as of vidk eval")
    add("--weights", choices=("ema", "model"), default="ema")
    add("--sheet", type=Path)
    add("--threads", type=int, default=2)
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    setup = Setup.parse(Setup(), o.setup)
    model, done = averaged_model(o.folder, o.weights)
    codec = BundledCodec(codec_state(o.folder))
    chosen = cases(o.pairs)
    frames = decoded(codec, rollouts(model, chosen, setup, o.blocks))
    found = judged_blocks(chosen, frames)
    shares = {b: {k: round(v["share"], 3) for k, v in f.items()} for b, f in found.items()}
    for block, values in shares.items():
        print(block, values)
    line = {"step": done["step"], "setup": vars(setup), "pairs": o.pairs, "blocks": shares}
    with open(o.folder / "gates.jsonl", "a") as log:
        log.write(json.dumps(line) + "\n")
    if o.sheet:
        columns = sorted({round(i * (frames.size(1) - 1) / 9) for i in range(10)})
        labels = [case.scene.prompt.replace(" on ", "\non ") for case in chosen[:12]]
        draw_sheet(o.sheet, frames[:12], labels, columns)
    return int(any(shares["1"][key] < bar for key, bar in BARS.items()))


if __name__ == "__main__":
    raise SystemExit(main())
