"""Train the pixel decoder: latents of the world's frames, a little noisy, to the frames.

    python decoder.py FOLDER --minutes 5

writes FOLDER/decoder.pt, and goes on from it where there is one.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from encoder import fitted
from torch import Tensor
from world import LatentWorld, random_words

from vidk.bundled.codec import PixelDecoder
from vidk.bundled.grammar import BACKGROUNDS, COLOURS, SHAPES
from vidk.bundled.scenes import CELL, PLACES, shape_mask

FILE = "decoder.pt"
NOISE = 0.2


class Pictures:
    """Frames of the world as colours, by rolling a mask of every shape at every phase."""

    def __init__(self) -> None:
        middle = PLACES // 2
        self.masks = [
            [[shape_mask(s, middle + x, middle + y) for x in (0, 1)] for y in (0, 1)]
            for s in SHAPES
        ]
        self.colours, self.grounds = (
            torch.tensor(list(table.values()))[..., None, None] for table in (COLOURS, BACKGROUNDS)
        )

    def __call__(self, words: Tensor, places: Tensor) -> Tensor:
        """Return `[N, 3, SIZE, SIZE]`, 0 to 1, of words `[N, slots]` and centres `[N, 2]`."""
        out = []
        for (colour, shape, _, ground), (x, y) in zip(words.tolist(), places.tolist(), strict=True):
            mask = self.masks[shape][y % 2][x % 2]
            cells = [(place - PLACES // 2) // 2 * CELL for place in (y, x)]
            behind = self.grounds[ground]
            out.append(behind + mask.roll(cells, (0, 1)) * (self.colours[colour] - behind))
        return torch.stack(out)


def psnr(out: Tensor, target: Tensor) -> float:
    """Return the PSNR in dB of colours in 0..1."""
    return float(-10 * (out.detach() - target).square().mean().log10())


def main() -> None:
    """Train for some minutes."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("folder", type=Path)
    add("--minutes", type=float, default=5.0)
    add("--batch", type=int, default=8)
    add("--lr", type=float, default=2e-3)
    add("--threads", type=int, default=2)
    add("--seed", type=int, default=0)
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    torch.manual_seed(o.seed)
    generator = torch.Generator().manual_seed(o.seed)
    world, pictures = LatentWorld.build(*fitted(o.folder)), Pictures()
    net, path = PixelDecoder(), o.folder / FILE
    if path.exists():
        net.load_state_dict(torch.load(path))
    average = {k: v.clone() for k, v in net.state_dict().items()}
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=0.0)
    fast = torch.compile(net, dynamic=False)
    begin, step, left = time.perf_counter(), 0, 1.0
    while left > 0:
        left = 1 - (time.perf_counter() - begin) / (60 * o.minutes)
        for group in optimiser.param_groups:
            group["lr"] = o.lr * min(1, (step + 1) / 30) * max(0.02, left)
        words = random_words(o.batch, generator)
        places = torch.randint(0, PLACES, (o.batch, 2), generator=generator)
        latents = world.latents(words, places)
        # The model's latents are never exact. Most of them nearly are.
        level = torch.rand(o.batch, 1, 1, 1, generator=generator).square() * NOISE
        latents = latents + level * torch.randn(latents.shape, generator=generator)
        target = pictures(words, places)
        with torch.autocast("cpu", torch.bfloat16):
            out = fast(latents)
        error = out.float() - target
        # The absolute error keeps flat areas flat.
        loss = error.square().mean() + 0.02 * error.abs().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        optimiser.step()
        step += 1
        for name, value in net.state_dict().items():
            average[name].lerp_(value, 1 - min(0.99, step / (step + 10)))
        if step % 100 == 0:
            print(
                json.dumps({"step": step, "psnr": round(psnr(out.float(), target), 2)}), flush=True
            )
    net.load_state_dict(average)
    with torch.no_grad():
        words = random_words(64, generator)
        places = torch.randint(0, PLACES, (64, 2), generator=generator)
        out = net(world.latents(words, places)).clamp(0, 1)
    print(json.dumps({"step": step, "psnr without noise": psnr(out, pictures(words, places))}))
    torch.save(average, path)


if __name__ == "__main__":
    main()
