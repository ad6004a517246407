"""Which blocks a training step looks at, and which of them attend to which.

A clip is a few blocks of a video; an instance is one of its blocks, clean or with noise of its
own. Stage 1 has first blocks only. Stage 2 adds teacher forcing: noisy blocks that attend to
clean ones, to the first block (the sink) and to the one just before, as the KV cache of a rollout
with a window of 9 frames holds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from forward import Plan
from torch import Tensor
from world import SIZES, STEPS, LatentWorld, random_words, start_places

from vidk.bundled.noise import BLOCK
from vidk.bundled.scenes import GRID, PLACES

# Frames whose number in the video is larger than this were not trained.
FARTHEST_BLOCK = 80
# A sampler of 8 steps ends with the step from 1 / 8, before the shift: lower noise is never seen.
LOWEST = 0.1


@dataclass(frozen=True)
class Stage:
    """Instances of a step: the block each one shows, whether it is clean, and what it sees."""

    blocks: Sequence[int]
    clean: Sequence[int]
    plan: Plan

    @property
    def noisy(self) -> list[int]:
        """Instances whose prediction counts."""
        return [i for i in range(len(self.blocks)) if i not in self.clean]


STAGES = {
    1: Stage((0,), (), (((0,), ((0,),)),)),
    # Blocks 0, p, p + 1 clean; 0, p + 1, p + 2 noisy, the last two twice.
    2: Stage(
        (0, 1, 2, 0, 2, 3, 2, 3),
        (0, 1, 2),
        (
            ((0, 3), ((0,), (3,))),
            ((1,), ((0, 1),)),
            ((2, 4, 5, 6, 7), ((0, 1, 2), (0, 1, 4), (0, 2, 5), (0, 1, 6), (0, 2, 7))),
        ),
    ),
}


@dataclass
class Clips:
    """A batch: `x0` `[N, I, BLOCK, C, h, w]`, `words` `[N, I, slots]`, `positions` `[N, I, BLOCK]`.

    `sink` `[N]` is very negative where the block next to the sink is the sink itself.
    """

    x0: Tensor
    words: Tensor
    positions: Tensor
    sink: Tensor


def make_clips(
    world: LatentWorld, count: int, stage: Stage, switch: float, generator: torch.Generator
) -> Clips:
    """Return a batch; with probability `switch` the prompt changes in the middle of a clip."""
    g = generator
    blocks = max(stage.blocks) + 1
    words = random_words(count, g)[:, None].repeat(1, blocks, 1)
    numbers = torch.zeros(count, blocks, dtype=torch.long)
    sink = torch.zeros(count)
    gap = torch.zeros(count, dtype=torch.long)
    if blocks > 1:
        # From one of the later blocks on, other words in half of the slots.
        cut = torch.randint(1, blocks, (count,), generator=g)
        cut[torch.rand(count, generator=g) >= switch] = blocks
        keep = torch.rand(count, len(SIZES), generator=g) < 0.5
        other = torch.where(keep, words[:, 0], random_words(count, g))
        late = torch.arange(blocks)[None] >= cut[:, None]
        words = torch.where(late[..., None], other[:, None], words)
        # Block p is the first one, near it, or anywhere.
        kind = torch.rand(count, generator=g)
        gap = torch.randint(1, FARTHEST_BLOCK, (count,), generator=g)
        gap = torch.where(kind < 0.25, 0, torch.where(kind < 0.5, gap % 4 + 1, gap))
        sink = torch.where(gap == 0, -1e4, 0.0)
        words[gap == 0, 1] = words[gap == 0, 0]
        numbers[:, 1:] = gap[:, None] + torch.arange(blocks - 1)
    places = block_places(words, gap, g)
    flat = words[:, :, None].expand(-1, -1, BLOCK, -1).reshape(-1, len(SIZES))
    x0 = world.latents(flat, places.reshape(-1, 2)).view(count, blocks, BLOCK, -1, GRID, GRID)
    which = torch.tensor(stage.blocks)
    positions = numbers[:, which, None] * BLOCK + torch.arange(BLOCK)
    return Clips(x0[:, which], words[:, which], positions, sink)


def block_places(words: Tensor, gap: Tensor, generator: torch.Generator) -> Tensor:
    """Return the centres `[N, blocks, BLOCK, 2]` of the shapes in blocks 0, p, p + 1, ...

    `words` `[N, blocks, slots]`; `gap` `[N]` is p. A shape goes on from where it was, in the
    direction of each block's own words; for half of the clips block p begins anywhere instead.
    """
    count, blocks = words.shape[:2]
    first = STEPS[words[:, 0, 2]]
    start = start_places(words[:, 0], generator)
    places = [start[:, None] + first[:, None] * torch.arange(BLOCK)[:, None]]
    at = places[0][:, -1] + first * (BLOCK * (gap - 1))[:, None]
    anywhere = torch.rand(count, 1, generator=generator) < 0.5
    at = torch.where(anywhere, torch.randint(0, PLACES, (count, 2), generator=generator), at)
    at = torch.where(gap[:, None] == 0, start - first, at)
    for block in range(1, blocks):
        step = STEPS[words[:, block, 2]][:, None]
        places.append(at[:, None] + step * torch.arange(1, BLOCK + 1)[:, None])
        at = places[-1][:, -1]
    return torch.stack(places, 1)


def sigmas(shape: Sequence[int], shift: float, generator: torch.Generator) -> Tensor:
    """Return noise levels, uniform from `LOWEST` and then bent towards high noise by `shift`."""
    u = LOWEST + (1 - LOWEST) * torch.rand(tuple(shape), generator=generator)
    return shift * u / (1 + (shift - 1) * u)
