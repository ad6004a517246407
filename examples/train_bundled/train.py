"""Train the bundled model: resumable, on one process or several ranks.

    python train.py FOLDER --stage 1 --minutes 15

goes on from FOLDER/state.pt where there is one. With RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT
set, ranks share the batch; on a busy CPU two ranks of one thread are faster than one of two.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from clips import STAGES, Clips, make_clips, sigmas
from encoder import fitted
from forward import TrainForward
from optim import Muon
from torch import Tensor
from world import LatentWorld

from vidk.bench.machine import cpu_model
from vidk.bundled.grammar import embed_words
from vidk.bundled.noise import pattern
from vidk.bundled.scenes import GRID
from vidk.models.config import CONFIGS
from vidk.models.seeded import seeded_model

SAVE_SECONDS, LOG_SECONDS = 120, 20
EMA = 0.995


class Training:
    """Parameters, optimisers and what was done so far.

    Parameters
    ----------
    seed : of every batch, together with the step and the rank.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.config = CONFIGS["bundled"]
        model = seeded_model(self.config, seed=seed)
        torch.nn.init.zeros_(model.head.head.weight)
        self.params = {k: v.detach().clone().requires_grad_() for k, v in model.named_parameters()}
        self.matrices = [
            k for k, v in self.params.items() if k.startswith("blocks.") and v.dim() == 2
        ]
        self.rest = [k for k in self.params if k not in self.matrices]
        self.muon = Muon([self.params[k] for k in self.matrices])
        self.adam = torch.optim.AdamW(
            [self.params[k] for k in self.rest], betas=(0.9, 0.98), weight_decay=0.0
        )
        self.ema = {k: v.detach().clone() for k, v in self.params.items()}
        self.done: dict[str, Any] = {"step": 0, "seconds": 0.0, "clips": 0, "stages": []}

    def save(self, path: Path) -> None:
        """Write everything a later run needs, whole or not at all."""
        temp = path.with_suffix(".tmp")
        state = {
            "model": {k: v.detach() for k, v in self.params.items()},
            "ema": self.ema,
            "muon": self.muon.moments,
            "adam": self.adam.state_dict(),
            "done": self.done,
        }
        torch.save(state, temp)
        os.replace(temp, path)

    def load(self, path: Path) -> None:
        """Go on from a file of `save`."""
        state = torch.load(path)
        for name, param in self.params.items():
            param.data.copy_(state["model"][name])
            self.ema[name].copy_(state["ema"][name])
        for moment, saved in zip(self.muon.moments, state["muon"], strict=True):
            moment.copy_(saved)
        self.adam.load_state_dict(state["adam"])
        self.done = {**self.done, **state["done"]}
        self.done.pop("log", None)

    def apply(self, grads: dict[str, Tensor], lr: float) -> float:
        """Take a step along clipped gradients; return their norm before."""
        norm = float(torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt())
        scale = min(1.0, 1.0 / (norm + 1e-6))
        for name in self.rest:
            self.params[name].grad = grads[name] * scale
        for group in self.adam.param_groups:
            group["lr"] = 0.7 * lr
        self.adam.step()
        # Muon's steps have one length whatever the gradient's.
        self.muon.step([grads[k] for k in self.matrices], lr, 0.01)
        self.done["step"] += 1
        decay = min(EMA, self.done["step"] / (self.done["step"] + 10))
        with torch.no_grad():
            averages, params = list(self.ema.values()), list(self.params.values())
            torch._foreach_lerp_(averages, params, 1 - decay)
        return norm


def losses(
    training: Training,
    forward: TrainForward,
    clips: Clips,
    stage: int,
    options: argparse.Namespace,
    generator: torch.Generator,
    dtype: torch.dtype,
) -> Tensor:
    """Return the weighted x0 error of each noisy instance."""
    config, plan = training.config, STAGES[stage]
    clean = list(plan.clean)
    sigma = sigmas(clips.x0.shape[:2], options.shift, generator)
    sigma[:, clean] = 0
    noise = torch.randn(clips.x0.shape, generator=generator)
    level = sigma[:, :, None, None, None, None]
    xt = (1 - level) * clips.x0 + level * (noise + pattern())
    if clean and options.context_noise:
        # In a rollout the context is the model's own work, and never quite clean.
        rough = torch.rand(len(xt), len(clean), 1, 1, 1, 1, generator=generator)
        xt[:, clean] += noise[:, clean] * rough * options.context_noise
    embeds = embed_words(clips.words, config.text_len, config.text_dim)
    low = {k: v.to(dtype) for k, v in training.params.items()}
    x0 = forward(low, xt, sigma, embeds, clips.numbers, plan.plan)
    error = (x0 - clips.x0)[:, plan.noisy].square().mean((2, 3, 4, 5))
    # The weight of the flow's error, bounded.
    return (error / sigma[:, plan.noisy].clamp(min=0.3).square()).mean(0)


def averaged(grads: list[Tensor], stop: bool) -> tuple[list[Tensor], bool]:
    """Return the mean over the ranks, and whether any of them wants to stop."""
    if not dist.is_initialized():
        return grads, stop
    flat = torch.cat([*(g.reshape(-1) for g in grads), torch.tensor([float(stop)])])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat[:-1].split([g.numel() for g in grads])
    return [p.view_as(g) for p, g in zip(parts, grads, strict=True)], bool(flat[-1] > 0)


def revision() -> str:
    """Return the commit of the source, with `+` if files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        here = Path(__file__).parent
        return subprocess.run(command, capture_output=True, text=True, cwd=here).stdout.strip()
    except OSError:
        return ""


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("folder", type=Path, help="of state.pt and log.jsonl")
    add("--stage", type=int, choices=tuple(STAGES), default=1)
    add("--minutes", type=float, default=15.0)
    add("--steps", type=int, help="stop after so many, if that comes first")
    add("--batch", type=int, default=16, help="clips a rank and step")
    add("--lr", type=float, default=1.5e-3, help="of Muon; falls linearly")
    add("--lr-end", type=float, default=0.3, help="share of it that is left at the end")
    add("--warmup", type=int, default=50, help="steps")
    add("--shift", type=float, default=3.0)
    add("--switch", type=float, default=0.3, help="share of clips whose prompt changes")
    add("--context-noise", type=float, default=0.1)
    add("--init", type=Path, help="a state.pt to begin with, where FOLDER has none")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=2)
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    add("--eager", action="store_true", help="no torch.compile")
    return parser.parse_args()


def main() -> None:
    """Train for some minutes."""
    o = options()
    torch.set_num_threads(o.threads)
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1:
        dist.init_process_group("gloo")
    o.folder.mkdir(parents=True, exist_ok=True)
    path = o.folder / "state.pt"
    training = Training(o.seed)
    source = path if path.exists() else o.init
    if source:
        training.load(source)
    world = LatentWorld.build(*fitted(o.folder)[:2])
    forward = TrainForward(training.config, GRID, compile=not o.eager)
    done, generator = training.done, torch.Generator()
    told = {k: v for k, v in vars(o).items() if k not in ("folder", "init")}
    stage = {
        **told,
        "ranks": ranks,
        "revision": revision(),
        "machine": f"{cpu_model()}, {platform.machine()}",
        "steps": 0,
        "clips": 0,
        "seconds": 0.0,
    }
    done["stages"].append(stage)
    before = done["seconds"]
    begin = logged = saved = time.perf_counter()
    sums, count, stop = torch.zeros(2), 0, False
    # The end of the step at work, then a checkpoint.
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, frame: asked.append(n))
    while not stop:
        spent = time.perf_counter() - begin
        left = 1 - min(1.0, spent / (60 * o.minutes))
        lr = o.lr * min(1.0, (stage["steps"] + 1) / o.warmup)
        lr *= o.lr_end + (1 - o.lr_end) * left
        generator.manual_seed((o.seed * 1_000_003 + done["step"]) * 64 + rank)
        clips = make_clips(world, o.batch, STAGES[o.stage], o.switch, generator)
        each = losses(training, forward, clips, o.stage, o, generator, getattr(torch, o.dtype))
        grads = torch.autograd.grad(each.mean(), list(training.params.values()))
        over = bool(asked) or left == 0 or (o.steps is not None and stage["steps"] + 1 >= o.steps)
        shared, stop = averaged(list(grads), over)
        norm = training.apply(dict(zip(training.params, shared, strict=True)), lr)
        now = time.perf_counter()
        for counts in (done, stage):
            counts["clips"] += o.batch * ranks
        stage["steps"] += 1
        stage["seconds"] = now - begin
        done["seconds"] = before + stage["seconds"]
        seen = each.detach()
        sums += torch.stack([seen[0], seen[1:].mean() if len(seen) > 1 else torch.zeros(())])
        count += 1
        if rank == 0 and (stop or now - logged > LOG_SECONDS):
            first, later = (sums / count).tolist()
            line = {
                "seconds": round(done["seconds"]),
                "step": done["step"],
                "stage": o.stage,
                "first": round(first, 4),
                "later": round(later, 4),
                "norm": round(norm, 3),
                "lr": round(lr, 6),
                "step_seconds": round((now - logged) / count, 3),
            }
            with open(o.folder / "log.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
            sums.zero_()
            count, logged = 0, now
        if rank == 0 and (stop or now - saved > SAVE_SECONDS):
            training.save(path)
            saved = now


if __name__ == "__main__":
    main()
