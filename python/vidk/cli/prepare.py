"""From the command line of `vidk generate` to a job: everything is checked before weights load."""

from __future__ import annotations

import argparse

import torch

from vidk.cli import plan as plans
from vidk.cli import ranks
from vidk.cli.inputs import (
    MODEL_OPS,
    RANK_OPS,
    FirstFrames,
    ModelSource,
    load_decoder,
    load_prompt,
    pick_device,
)
from vidk.cli.job import Job
from vidk.cli.system import compile_obstacle, kernel
from vidk.cli.values import OptionError
from vidk.parallel.launch import World
from vidk.rollout import Schedule


def prepare(args: argparse.Namespace, world: World | None = None) -> Job:
    """Check the command line and load all but the weights; raise ValueError for what is wrong."""
    device, note = pick_device(ranks.device_name(args, world.place) if world else args.device)
    notes = [note] if note else []
    ops = (*MODEL_OPS, *RANK_OPS) if world else MODEL_OPS
    missing = [op for op in ops if kernel(op, device.type) is None]
    if missing:
        raise OptionError(
            f"--device: got {device}, for which this build has no kernel of {', '.join(missing)} "
            "(vidk env says why)"
        )
    source = ModelSource.of(args)
    eager = _why_eager(args.mode, device)
    schedule = Schedule(args.steps, shift=args.shift)
    decoder = load_decoder(args, source.config, device)
    first = FirstFrames(args) if args.first_frames else None
    natural = first.pixel_size(decoder.scale) if first else None
    size = args.size or natural or plans.default_size(source.name)
    plans.check_size(size, decoder.scale, source.config.patch_size)
    given = first.load(decoder, source.config, size) if first else None
    plan = plans.make_plan(
        size=size,
        frames=args.frames or plans.default_frames(source.name),
        scale=decoder.scale,
        block=args.block,
        window=args.window,
        sink=args.sink,
        single_first=args.independent_first_frame,
        given=0 if given is None else given.size(1),
    )
    sharding = ranks.shard(args, world.place, source.config, plan, source.dtype) if world else None
    head_ranks = sharding.head_ranks if sharding else 1
    plans.check_memory(source.config, plan, source.dtype, device, source.parameters, head_ranks)
    prompt, prompt_source = load_prompt(args, source.config, device)
    if args.model and not (args.prompt_embeds or args.text_encoder):
        notes.append(
            "the prompt is only placeholder embeddings, which mean nothing to a trained model: "
            "give --prompt-embeds or --text-encoder"
        )
    return Job(
        args=args,
        device=device,
        source=source,
        decoder=decoder,
        plan=plan,
        given=given,
        prompt=prompt.to(device, source.dtype),
        prompt_source=prompt_source,
        schedule=schedule,
        eager=eager,
        notes=notes,
        world=world,
        sharding=sharding,
    )


def _why_eager(mode: str | None, device: torch.device) -> str | None:
    if mode == "eager":
        return "--eager"
    obstacle = compile_obstacle(device)
    if obstacle and mode == "compile":
        raise OptionError(f"--compile: {obstacle}")
    return obstacle
