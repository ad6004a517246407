"""Which blocks a training step looks at, and which of them attend to which.

A clip is a few blocks of a video; an instance is one of its blocks, clean or with noise of its
own. Stage 1 has first blocks only. Stage 2 adds teacher forcing: noisy blocks that attend to
clean ones: to the first block (the sink) and to the two just before, as the KV cache of a rollout
with 12 slots, 3 of them sink, holds them.
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
    # Blocks 0, p, p + 1, p + 2 clean; 0, p + 2, p + 3 noisy, the last two twice.
    2: Stage(
        (0, 1, 2, 3, 0, 3, 4, 3, 4),
        (0, 1, 2, 3),
        (
            ((0, 4), ((0,), (4,))),
            ((1,), ((0, 1),)),
            ((2,), ((0, 1, 2),)),
            (
                (3, 5, 6, 7, 8),
                ((0, 1, 2, 3), (0, 1, 2, 5), (0, 2, 3, 6), (0, 1, 2, 7), (0, 2, 3, 8)),
            ),
        ),
    ),
    # The same with more of what is the hardest: first blocks, three times; the others once.
    3: Stage(
        (0, 1, 2, 3, 0, 0, 0, 3, 4),
        (0, 1, 2, 3),
        (
            ((0, 4, 5, 6), ((0,), (4,), (5,), (6,))),
            ((1,), ((0, 1),)),
            ((2,), ((0, 1, 2),)),
            ((3, 7, 8), ((0, 1, 2, 3), (0, 1, 2, 7), (0, 2, 3, 8))),
        ),
    ),
}


@dataclass
class Clips:
    """A batch: `x0` `[N, I, BLOCK, C, h, w]`, `words` `[N, I, slots]`, `numbers` `[N, I]`.

    Numbers are those of the blocks in the video. Where two instances have the same number, they
    are the same block.
    """

    x0: Tensor
    words: Tensor
    numbers: Tensor


def make_clips(
    world: LatentWorld, count: int, stage: Stage, switch: float, generator: torch.Generator
) -> Clips:
    """Return a batch; with probability `switch` the prompt changes in the middle of a clip."""
    blocks = max(stage.blocks) + 1
    numbers = block_numbers(count, blocks, generator)
    words = random_words(count, generator)[:, None].repeat(1, blocks, 1)
    if blocks > 1:
        # From one of the later blocks on, other words in half of the slots.
        cut = torch.randint(1, blocks, (count,), generator=generator)
        cut[torch.rand(count, generator=generator) >= switch] = blocks
        keep = torch.rand(count, len(SIZES), generator=generator) < 0.5
        other = torch.where(keep, words[:, 0], random_words(count, generator))
        late = (torch.arange(blocks)[None] >= cut[:, None]) & (numbers > 0)
        words = torch.where(late[..., None], other[:, None], words)
    places = block_places(words, numbers, generator)
    flat = words[:, :, None].expand(-1, -1, BLOCK, -1).reshape(-1, len(SIZES))
    x0 = world.latents(flat, places.reshape(-1, 2)).view(count, blocks, BLOCK, -1, GRID, GRID)
    which = torch.tensor(stage.blocks)
    return Clips(x0[:, which], words[:, which], numbers[:, which])


def block_numbers(count: int, blocks: int, generator: torch.Generator) -> Tensor:
    """Return the places `[N, blocks]` in the video of blocks 0, p, p + 1, ...

    A quarter of the clips begin with the video, so that p, or p and p + 1, are the first block
    too; a quarter lie near its beginning, the others anywhere.
    """
    kind = torch.rand(count, generator=generator)
    gap = torch.randint(1, FARTHEST_BLOCK, (count,), generator=generator)
    gap = torch.where(kind < 0.5, gap % 4 + 1, gap)
    gap = torch.where(kind < 0.25, 0, gap)
    gap = torch.where(kind < 0.12, -1, gap)
    numbers = (gap[:, None] + torch.arange(-1, blocks - 1)).clamp(min=0)
    numbers[:, 0] = 0
    return numbers


def block_places(words: Tensor, numbers: Tensor, generator: torch.Generator) -> Tensor:
    """Return the centres `[N, blocks, BLOCK, 2]` of the shapes in blocks of these numbers.

    A shape goes on from where it was, in the direction of each block's own words. Over a gap it
    does so for half of the clips, and is anywhere for the others.
    """
    count, blocks = words.shape[:2]
    first = STEPS[words[:, 0, 2]]
    start = start_places(words[:, 0], generator)
    places = [start[:, None] + first[:, None] * torch.arange(BLOCK)[:, None]]
    anywhere = torch.rand(count, 1, generator=generator) < 0.5
    random = torch.randint(0, PLACES, (count, 2), generator=generator)
    for block in range(1, blocks):
        gap = (numbers[:, block] - numbers[:, block - 1] - 1)[:, None]
        at = places[-1][:, -1]
        at = torch.where(gap > 0, torch.where(anywhere, random, at + first * BLOCK * gap), at)
        step = STEPS[words[:, block, 2]][:, None]
        moved = at[:, None] + step * torch.arange(1, BLOCK + 1)[:, None]
        still = (numbers[:, block] == 0)[:, None, None]
        places.append(torch.where(still, places[0], moved))
    return torch.stack(places, 1)


def sigmas(shape: Sequence[int], shift: float, generator: torch.Generator) -> Tensor:
    """Return noise levels, uniform from `LOWEST` and then bent towards high noise by `shift`."""
    u = LOWEST + (1 - LOWEST) * torch.rand(tuple(shape), generator=generator)
    return shift * u / (1 + (shift - 1) * u)
