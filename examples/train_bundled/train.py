"""Train the bundled model."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from data import PLACES, SIZES, STEPS, LatentWorld, random_words, start_places
from forward import TrainForward
from optim import Muon
from vidk.bundled.grammar import embed_words
from vidk.bundled.noise import pattern
from vidk.bundled.scenes import GRID
from vidk.models.config import CONFIGS
from vidk.models.seeded import seeded_model

# Instances of a clip's blocks in a step: stage 1 has first blocks only; stage 2 has the clean
# blocks 0, p, p + 1 and the noisy 0, p + 1, p + 2, the last two twice with other noise.
FIRST = (0,), (((0,),),)
PLANS = {
    1: (((0,), ((0,),)),),
    2: (
        ((0, 3), ((0,), (3,))),
        ((1,), ((0, 1),)),
        ((2, 4, 5, 6, 7), ((0, 1, 2), (0, 1, 4), (0, 2, 5), (0, 1, 6), (0, 2, 7))),
    ),
}
BLOCK_OF = {1: (0,), 2: (0, 1, 2, 0, 2, 3, 2, 3)}
NOISY = {1: (0,), 2: (3, 4, 5, 6, 7)}


def clips(world: LatentWorld, n: int, stage: int, opts, g: torch.Generator):
    """Return x0 `[n, I, 3, C, h, w]`, words `[n, I, 4]`, positions `[n, I, 3]`, sink `[n]`."""
    blocks = 1 if stage == 1 else 4
    words = random_words(n, g)[:, None].repeat(1, blocks, 1)
    start = start_places(words[:, 0], g)
    first = torch.zeros(n, blocks, dtype=torch.long)
    sink = torch.zeros(n)
    if stage == 2:
        # From block c on other words, in a part of the slots.
        cut = torch.randint(1, 4, (n,), generator=g)
        cut[torch.rand(n, generator=g) >= opts.switch] = 4
        other = random_words(n, g)
        keep = torch.rand(n, len(SIZES), generator=g) < 0.5
        other = torch.where(keep, words[:, 0], other)
        late = torch.arange(4)[None] >= cut[:, None]
        words = torch.where(late[..., None], other[:, None], words)
        # Block p lies at any distance from the sink, a quarter of the time at none.
        gap = torch.randint(1, opts.max_blocks, (n,), generator=g)
        near = torch.rand(n, generator=g)
        gap = torch.where(near < 0.25, 0, torch.where(near < 0.5, gap % 4 + 1, gap))
        first = torch.stack([torch.zeros_like(gap), gap, gap + 1, gap + 2], 1)
        sink = torch.where(gap == 0, -1e4, 0.0)
        words[gap == 0, 1] = words[gap == 0, 0]
    places = [start[:, None] + STEPS[words[:, 0, 2]][:, None] * torch.arange(3)[None, :, None]]
    if stage == 2:
        jump = torch.rand(n, generator=g) < 0.5
        at = places[0][:, -1] + STEPS[words[:, 0, 2]] * (3 * (gap - 1))[:, None]
        at = torch.where(jump[:, None], torch.randint(0, PLACES, (n, 2), generator=g), at)
        at[gap == 0] = (start - STEPS[words[:, 0, 2]])[gap == 0]
        for b in range(1, 4):
            step = STEPS[words[:, b, 2]][:, None]
            places.append(at[:, None] + step * torch.arange(1, 4)[None, :, None])
            at = places[-1][:, -1]
    places = torch.stack(places, 1)
    flat = words[:, :, None].expand(-1, -1, 3, -1).reshape(-1, 4)
    x0 = world.latents(flat, places.reshape(-1, 2)).view(n, blocks, 3, -1, GRID, GRID)
    which = torch.tensor(BLOCK_OF[stage])
    positions = first[:, which, None] * 3 + torch.arange(3)
    return x0[:, which], words[:, which], positions, sink


def sigmas(shape, shift: float, g: torch.Generator) -> Tensor:
    u = torch.rand(shape, generator=g)
    return shift * u / (1 + (shift - 1) * u)


def main() -> None:
    a = argparse.ArgumentParser()
    a.add_argument("--folder", type=Path, default=Path("/work/train6/run1"))
    a.add_argument("--stage", type=int, default=1)
    a.add_argument("--minutes", type=float, default=10)
    a.add_argument("--batch", type=int, default=64)
    a.add_argument("--lr", type=float, default=1.5e-3)
    a.add_argument("--lr-end", type=float, default=0.1)
    a.add_argument("--shift", type=float, default=3.0)
    a.add_argument("--switch", type=float, default=0.3)
    a.add_argument("--max-blocks", type=int, default=80)
    a.add_argument("--context-noise", type=float, default=0.0)
    a.add_argument("--codec", default="/work/train6/codec0.pt")
    a.add_argument("--eager", action="store_true")
    a.add_argument("--bench", type=int, default=0)
    a.add_argument("--dtype", default="bfloat16")
    a.add_argument("--seed", type=int, default=0)
    a.add_argument("--init", default="", help="state to start from")
    o = a.parse_args()
    torch.set_num_threads(int(os.environ.get("T","2")))
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1:
        dist.init_process_group("gloo")
    o.folder.mkdir(parents=True, exist_ok=True)
    dtype = getattr(torch, o.dtype)
    weight, mean, _ = torch.load(o.codec)
    world = LatentWorld.build(weight, mean)
    config = CONFIGS["bundled"]
    model = seeded_model(config)
    torch.nn.init.zeros_(model.head.head.weight)
    p = {k: v.detach().clone().requires_grad_() for k, v in model.named_parameters()}
    matrix = [k for k in p if k.startswith("blocks.") and p[k].dim() == 2]
    rest = [k for k in p if k not in matrix]
    muon = Muon([p[k] for k in matrix])
    adam = torch.optim.AdamW([p[k] for k in rest], lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)
    ema = {k: v.detach().clone() for k, v in p.items()}
    g = torch.Generator()
    done = {"step": 0, "seconds": 0.0, "clips": 0, "log": []}
    path = o.folder / "state.pt"
    if path.exists() or o.init:
        s = torch.load(path if path.exists() else o.init)
        for k in p:
            p[k].data.copy_(s["model"][k])
            ema[k].copy_(s["ema"][k])
        for m, saved in zip(muon.moments, s["muon"], strict=True):
            m.copy_(saved)
        adam.load_state_dict(s["adam"])
        done = s["done"]

    def save() -> None:
        if rank:
            return
        temp = path.with_suffix(".tmp")
        torch.save(
            {
                "model": {k: v.detach() for k, v in p.items()},
                "ema": ema,
                "muon": muon.moments,
                "adam": adam.state_dict(),
                "done": done,
                "config": {k: str(v) for k, v in vars(o).items()},
            },
            temp,
        )
        os.replace(temp, path)

    mean_noise = pattern()
    forward = TrainForward(config, GRID, compile=not o.eager)
    plan, noisy = PLANS[o.stage], torch.tensor(NOISY[o.stage])
    clean = [i for i in range(len(BLOCK_OF[o.stage])) if i not in NOISY[o.stage]]
    begin = time.perf_counter()
    spent0, last, saved, total = done["seconds"], begin, begin, o.minutes * 60
    sums = torch.zeros(4)
    count = 0
    names = list(p)
    local = 0
    stop = False
    while True:
        now = time.perf_counter()
        elapsed = now - begin
        if stop or (o.bench and local >= o.bench):
            break
        frac = min(1.0, elapsed / total)
        lr = o.lr * min(1.0, (local + 1) / 50) * (1 - (1 - o.lr_end) * frac)
        g.manual_seed((o.seed * 1_000_003 + done["step"]) * 64 + rank)
        x0, words, positions, sink = clips(world, o.batch, o.stage, o, g)
        sigma = sigmas(x0.shape[:2], o.shift, g)
        sigma[:, clean] = 0
        plain = torch.randn(x0.shape, generator=g)
        noise = plain + mean_noise
        s = sigma[:, :, None, None, None, None]
        xt = (1 - s) * x0 + s * noise
        if clean and o.context_noise:
            level = torch.rand(len(x0), len(clean), generator=g) * o.context_noise
            xt[:, clean] += plain[:, clean] * level[:, :, None, None, None, None]
        low = {k: v.to(dtype) for k, v in p.items()}
        out = forward(low, xt, sigma, embed_words(words, config.text_len, config.text_dim), positions, sink, plan)
        err = (out[:, noisy] - x0[:, noisy]).square().mean((2, 3, 4, 5))
        w = sigma[:, noisy].clamp(min=0.1).square().reciprocal()
        loss = (err * w).mean()
        grads = torch.autograd.grad(loss, [p[k] for k in names])
        if ranks > 1:
            flat = torch.cat([x.reshape(-1) for x in grads])
            # One more number: whether a rank's time is up, so that all stop at the same step.
            flat = torch.cat([flat, torch.tensor([float(elapsed > total)])])
            dist.all_reduce(flat)
            flat /= ranks
            stop = flat[-1].item() > 0
            grads = [
                f.view_as(x)
                for f, x in zip(flat[:-1].split([x.numel() for x in grads]), grads, strict=True)
            ]
        else:
            stop = elapsed > total
        norm = torch.stack([x.square().sum() for x in grads]).sum().sqrt()
        scale = min(1.0, 1.0 / (norm.item() + 1e-6))
        by = dict(zip(names, grads, strict=True))
        for k in rest:
            p[k].grad = by[k] * scale
        for group in adam.param_groups:
            group["lr"] = lr * 0.7
        adam.step()
        muon.step([by[k] for k in matrix], lr, 0.01)
        decay = min(0.998, (done["step"] + 1) / (done["step"] + 10))
        with torch.no_grad():
            torch._foreach_lerp_([ema[k] for k in names], [p[k] for k in names], 1 - decay)
        done["step"] += 1
        local += 1
        done["clips"] += o.batch * ranks
        done["seconds"] = spent0 + time.perf_counter() - begin
        e = (err * w).detach().mean(0)
        sums += torch.tensor([loss.item(), e[0].item(), e[1:].mean().item() if len(e) > 1 else 0, norm.item()])
        count += 1
        now = time.perf_counter()
        if rank == 0 and now - last > 20 or (o.bench and local == o.bench):
            m = (sums / count).tolist()
            line = {"t": round(done["seconds"]), "step": done["step"], "stage": o.stage, "loss": m[0], "first": m[1], "next": m[2], "norm": m[3], "lr": lr, "s/step": (now - last) / count}
            done["log"].append(line)
            print(json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()}), flush=True)
            sums.zero_()
            count, last = 0, now
        if now - saved > 120:
            save()
            saved = now
    save()


if __name__ == "__main__":
    main()
