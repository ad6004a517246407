"""From the command line of `vidk generate` to a job: everything is checked before weights load."""

from __future__ import annotations

import argparse

import torch

from vidk.cli import plan as plans
from vidk.cli.inputs import (
    FirstFrames,
    ModelSource,
    load_decoder,
    load_prompt,
    model_ops,
    pick_device,
)
from vidk.cli.job import Job
from vidk.cli.kv import choose_kind, kind_name
from vidk.cli.system import compile_obstacle, kernel
from vidk.cli.values import OptionError
from vidk.rollout import Schedule


def prepare(args: argparse.Namespace) -> Job:
    """Check the command line and load all but the weights; raise ValueError for what is wrong."""
    ops = model_ops(kind_name(args))
    device, note = pick_device(args.device, ops)
    notes = [note] if note else []
    missing = [op for op in ops if kernel(op, device.type) is None]
    if missing:
        raise OptionError(
            f"--device: got {device}, for which this build has no kernel of {', '.join(missing)} "
            "(vidk env says why)"
        )
    source = ModelSource.of(args)
    kind = choose_kind(args, source.config, source.dtype, device)
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
    stored = plans.stored(source.config, plan, source.dtype, kind)
    plans.check_memory(stored, source.dtype, device, source.parameters)
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
        kind=kind,
        given=given,
        prompt=prompt.to(device, source.dtype),
        prompt_source=prompt_source,
        schedule=schedule,
        eager=eager,
        notes=notes,
    )


def _why_eager(mode: str | None, device: torch.device) -> str | None:
    if mode == "eager":
        return "--eager"
    obstacle = compile_obstacle(device)
    if obstacle and mode == "compile":
        raise OptionError(f"--compile: {obstacle}")
    return obstacle
