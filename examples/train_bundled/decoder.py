"""Train the pixel decoder: latents of the world's frames, a little noisy, to the frames."""

from __future__ import annotations

import argparse
import json
import os
import time

import torch
from torch import Tensor

from world import LatentWorld, random_words
from vidk.bundled.codec import PixelDecoder
from vidk.bundled.grammar import BACKGROUNDS, COLOURS, SHAPES
from vidk.bundled.scenes import CELL, GRID, PLACES, SIZE, shape_mask


def targets(masks: Tensor, words: Tensor, places: Tensor) -> Tensor:
    """Return colours `[N, 3, SIZE, SIZE]`; `masks` `[shapes, 2, 2, SIZE, SIZE]` by phase."""
    colours, grounds = (torch.tensor(list(x.values())) for x in (COLOURS, BACKGROUNDS))
    shift = (places - PLACES // 2).div(2, rounding_mode="floor") * CELL
    out = []
    for w, p, s in zip(words, places, shift, strict=True):
        mask = masks[w[1], p[1] % 2, p[0] % 2].roll((int(s[1]), int(s[0])), (0, 1))
        g = grounds[w[3]][:, None, None]
        out.append(g + mask * (colours[w[0]][:, None, None] - g))
    return torch.stack(out)


def main() -> None:
    a = argparse.ArgumentParser()
    a.add_argument("--codec", default="/work/train6/codec0.pt")
    a.add_argument("--out", default="/work/train6/decoder0.pt")
    a.add_argument("--minutes", type=float, default=5)
    a.add_argument("--batch", type=int, default=16)
    a.add_argument("--lr", type=float, default=3e-3)
    o = a.parse_args()
    torch.set_num_threads(int(os.environ.get("T", "2")))
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    weight, mean, _ = torch.load(o.codec)
    world = LatentWorld.build(weight, mean)
    mid = PLACES // 2
    masks = torch.stack([
        torch.stack([torch.stack([shape_mask(s, mid + x, mid + y) for x in (0, 1)]) for y in (0, 1)])
        for s in SHAPES
    ])
    net = PixelDecoder()
    opt = torch.optim.AdamW(net.parameters(), lr=o.lr, weight_decay=0.0)
    ema = {k: v.clone() for k, v in net.state_dict().items()}
    begin, step = time.perf_counter(), 0
    fast = torch.compile(net, dynamic=False)
    while (t := time.perf_counter() - begin) < o.minutes * 60:
        for group in opt.param_groups:
            group["lr"] = o.lr * min(1, (step + 1) / 30) * (1 - 0.98 * t / (o.minutes * 60))
        words = random_words(o.batch, g)
        places = torch.randint(0, PLACES, (o.batch, 2), generator=g)
        z = world.latents(words, places)
        level = torch.rand(o.batch, 1, 1, 1, generator=g) ** 2 * 0.2
        z = z + level * torch.randn(z.shape, generator=g)
        y = targets(masks, words, places)
        with torch.autocast("cpu", torch.bfloat16):
            out = fast(z)
        err = out.float() - y
        loss = err.square().mean() + 0.02 * err.abs().mean()
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        opt.step()
        step += 1
        for k, v in net.state_dict().items():
            ema[k].lerp_(v, 1 - min(0.99, step / (step + 10)))
        if step % 50 == 0:
            print(json.dumps({"t": round(t), "step": step, "psnr": round(-10 * err.detach().square().mean().log10().item(), 2)}), flush=True)
    net.load_state_dict(ema)
    with torch.no_grad():
        words, places = random_words(64, g), torch.randint(0, PLACES, (64, 2), generator=g)
        out = net(world.latents(words, places)).clamp(0, 1)
        psnr = -10 * (out - targets(masks, words, places)).square().mean().log10().item()
    print("final", psnr, step)
    torch.save(ema, o.out)


main()
