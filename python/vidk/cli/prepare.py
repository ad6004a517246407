"""From the command line of `vidk generate` to a job: everything is checked before weights load."""

from __future__ import annotations

import argparse

import torch

from vidk.bundled.noise import BLOCK
from vidk.cli import plan as plans
from vidk.cli import ranks
from vidk.cli.inputs import (
    FirstFrames,
    ModelSource,
    load_decoder,
    load_prompts,
    model_ops,
    pick_device,
)
from vidk.cli.job import Job
from vidk.cli.kv import choose_kind, kind_name
from vidk.cli.system import compile_obstacle, kernel
from vidk.cli.values import OptionError
from vidk.parallel.launch import World
from vidk.rollout import Schedule


def prepare(args: argparse.Namespace, world: World | None = None) -> Job:
    """Check the command line and load all but the weights; raise ValueError for what is wrong."""
    ops = model_ops(kind_name(args), world.place.ranks if world else 1)
    device, note = pick_device(ranks.device_name(args, world.place) if world else args.device, ops)
    notes = [note] if note else []
    missing = [op for op in ops if kernel(op, device.type) is None]
    if missing:
        raise OptionError(
            f"--device: got {device}, for which this build has no kernel of {', '.join(missing)} "
            "(vidk env says why)"
        )
    source = ModelSource.of(args)
    kind = choose_kind(args, source.config, source.dtype, device)
    defaults = plans.defaults(source.kind)
    args = _filled(args, defaults)
    eager = _why_eager(args.mode, device)
    schedule = Schedule(args.steps, shift=args.shift, sampler=args.sampler)
    decoder = load_decoder(args, source, device)
    first = FirstFrames(args, decoder) if args.first_frames else None
    natural = first.pixel_size(decoder.scale) if first else None
    size = args.size or natural or defaults.size
    if source.bundled:
        _check_bundled(args, size, defaults)
    plans.check_size(size, decoder.scale, source.config.patch_size)
    given = first.load(decoder, source.config, size) if first else None
    plan = plans.make_plan(
        size=size,
        frames=args.frames or defaults.frames,
        scale=decoder.scale,
        ratio=decoder.frames_per_latent,
        block=args.block,
        window=args.window,
        sink=args.sink,
        single_first=args.independent_first_frame,
        given=0 if given is None else given.size(1),
        usual_window=defaults.window,
    )
    sharding = ranks.shard(args, world.place, source.config, plan, source.dtype) if world else None
    head_ranks = sharding.head_ranks if sharding else 1
    stored = plans.stored(source.config, plan, source.dtype, kind, head_ranks)
    plans.check_memory(stored, source.dtype, device, source.parameters)
    prompt, prompt_source, changes = load_prompts(args, source, device)
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
        changes=changes,
        schedule=schedule,
        eager=eager,
        notes=notes,
        world=world,
        sharding=sharding,
    )


def _check_bundled(
    args: argparse.Namespace, size: tuple[int, int], defaults: plans.Defaults
) -> None:
    """Refuse what the bundled model was not trained for: it would show nothing of use."""
    if size != defaults.size:
        got, expected = ("x".join(map(str, pair)) for pair in (size, defaults.size))
        raise OptionError(
            f"--size: got {got}, expected {expected}, which the bundled model was trained for"
        )
    if args.block != BLOCK:
        raise OptionError(
            f"--block: got {args.block}, expected {BLOCK}, which the bundled model was trained for"
        )
    if args.independent_first_frame:
        raise OptionError(
            "--independent-first-frame: got it for the bundled model, expected a model that was "
            "trained with a first block of 1 frame"
        )


def _filled(args: argparse.Namespace, defaults: plans.Defaults) -> argparse.Namespace:
    """Put the model's defaults where the command line says nothing."""
    filled = argparse.Namespace(**vars(args))
    for name in ("sink", "steps", "shift", "sampler"):
        if getattr(filled, name) is None:
            setattr(filled, name, getattr(defaults, name))
    return filled


def _why_eager(mode: str | None, device: torch.device) -> str | None:
    if mode == "eager":
        return "--eager"
    obstacle = compile_obstacle(device)
    if obstacle and mode == "compile":
        raise OptionError(f"--compile: {obstacle}")
    return obstacle
