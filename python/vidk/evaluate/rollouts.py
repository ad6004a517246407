"""Rollouts of the bundled model for measurement: several prompts at once, in one configuration."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from vidk.bundled.grammar import SLOTS, Scene, WordEncoder
from vidk.bundled.noise import BLOCK, PlacedNoise
from vidk.bundled.scenes import GRID, render, start_place, walk
from vidk.evaluate.ranks import on_ranks
from vidk.evaluate.setup import Setup
from vidk.models.wan import CausalWan
from vidk.parallel import choose_sharding, make_exchange
from vidk.rollout import Schedule, Session
from vidk.vae import Decoder

# Sessions hold so many prompts: more take memory and save no time.
_BATCH = 16


@dataclass(frozen=True)
class Case:
    """One prompt and one seed."""

    scene: Scene
    seed: int


def cases(count: int) -> list[Case]:
    """Return pairs of prompt and seed: prompts shuffled, each with a seed of its own.

    Every word of a slot is equally frequent, as far as `count` allows.
    """
    every = [Scene(*words) for words in itertools.product(*SLOTS.values())]
    order: list[Scene] = []
    for round_ in itertools.count():
        if len(order) >= count:
            break
        generator = torch.Generator().manual_seed(1000 + round_)
        order += [every[i] for i in torch.randperm(len(every), generator=generator)]
    return [Case(scene, 10_000 + i) for i, scene in enumerate(order[:count])]


class _EachSeed:
    """The noise that each row's own session would have."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._sources = [PlacedNoise(seed) for seed in seeds]

    def __call__(self, start_frame: int, step: int, shape: Sequence[int]) -> Tensor:
        rows = [source(start_frame, step, (1, *shape[1:])) for source in self._sources]
        return torch.cat(rows)


def rollouts(
    model: CausalWan,
    chosen: Sequence[Case],
    setup: Setup,
    blocks: int,
    given: Tensor | None = None,
) -> Tensor:
    """Return latents `[N, 3 * blocks, C, h, w]`, float32 on the CPU.

    Parameters
    ----------
    model : in the dtype of the setup; on the CPU for several ranks, which share its weights.
    chosen : prompts and seeds; each gets the noise that `vidk generate --seed` gives it.
    setup : how to run it.
    blocks : to generate, after `given` `[N, F, C, h, w]`, true latents to continue.
    """
    if setup.ranks == 1:
        return _in_this_process(model, chosen, setup, blocks, given)
    out = torch.empty(len(chosen), BLOCK * blocks, model.config.out_channels, GRID, GRID)
    on_ranks(setup.ranks, _on_a_rank, model, chosen, setup, blocks, given, out)
    return out


def _on_a_rank(
    model: CausalWan,
    chosen: Sequence[Case],
    setup: Setup,
    blocks: int,
    given: Tensor | None,
    out: Tensor,
) -> None:
    """Take a rank's share of `rollouts`; rank 0 fills `out`."""
    _, ph, pw = model.config.patch_size
    sharding = choose_sharding(
        model.config,
        ranks=setup.ranks,
        frame_tokens=(GRID // ph) * (GRID // pw),
        frames=BLOCK,
        itemsize=model.patch_embedding.weight.itemsize,
        batch=min(len(chosen), _BATCH),
    )
    model.parallelize(make_exchange(sharding))
    made = _in_this_process(model, chosen, setup, blocks, given)
    if dist.get_rank() == 0:
        out.copy_(made)


@torch.no_grad()
def _in_this_process(
    model: CausalWan, chosen: Sequence[Case], setup: Setup, blocks: int, given: Tensor | None
) -> Tensor:
    config = model.config
    device = model.patch_embedding.weight.device
    encoder = WordEncoder(config.text_len, config.text_dim)
    # A compiled graph is for one batch size and one session.
    batch = len(chosen) if setup.compile else _BATCH
    done = []
    for begin in range(0, len(chosen), batch):
        part = chosen[begin : begin + batch]
        prompt = encoder.encode([case.scene.prompt for case in part]).to(
            device, getattr(torch, setup.dtype)
        )
        session = Session(
            model,
            prompt.embeds,
            prompt.context_lens,
            (GRID, GRID),
            frames=setup.window,
            sink=setup.sink,
            block_frames=BLOCK,
            schedule=Schedule(setup.steps, shift=setup.shift, sampler=setup.sampler),
            kind=setup.kv,
            recipe=setup.recipe,
            noise=_EachSeed([case.seed for case in part]),
            compile={"dynamic": False} if setup.compile else False,
        )
        first = None if given is None else given[begin : begin + batch]
        made = [
            block.latents.float().cpu()
            for block in session.generate(BLOCK * blocks, initial_latents=first)
        ]
        done.append(torch.cat(made, 1))
    return torch.cat(done)


def true_clips(chosen: Sequence[Case], frames: int) -> Tensor:
    """Return rendered frames uint8 `[N, frames, SIZE, SIZE, 3]`: what a perfect model shows."""
    clips = []
    for case in chosen:
        places = walk(case.scene, start_place(case.scene, case.seed), frames)
        clips.append(render([case.scene] * frames, places))
    return torch.stack(clips)


def decoded(decoder: Decoder, latents: Tensor) -> Tensor:
    """Return the frames uint8 `[N, F, H, W, 3]` of latents, a clip at a time."""
    return torch.cat([decoder.decode(clip[None], True) for clip in latents])
