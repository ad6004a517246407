"""`vidk generate`: a video file out of a prompt, block by block."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vidk._files import atomic_path
from vidk.cache_kinds import NVFP4_RECIPES
from vidk.cli import ranks, values
from vidk.media import SUFFIXES, VideoWriter, check_output
from vidk.models.config import CONFIGS
from vidk.rollout.schedule import SAMPLERS

if TYPE_CHECKING:
    from vidk.cli.job import Job
    from vidk.parallel.launch import World


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `generate` command."""
    parser = subparsers.add_parser(
        "generate",
        help="make a video file",
        description="Make a video file, block by block. Without options a small bundled model, "
        "trained on coloured shapes that move, makes vidk.mp4 in the current folder, in seconds on "
        "any machine.",
    )
    add = parser.add_argument_group("model").add_argument
    add(
        "--config",
        metavar="NAME",
        help=f"{', '.join(CONFIGS)}, or a config.json (default: bundled, with its own weights)",
    )
    add("--model", metavar="PATH", help="checkpoint: .safetensors, its index, .pt, or a folder")
    add("--random-weights", action="store_true", help="seeded weights instead of a checkpoint")
    add(
        "--dtype",
        type=values.one_of(values.DTYPES),
        metavar="NAME",
        help="float32, bfloat16 or float16 (default: float32 for small models, else bfloat16)",
    )

    group = parser.add_argument_group("prompt")
    one = group.add_mutually_exclusive_group()
    one.add_argument("--prompt", metavar="TEXT", help="what to show")
    one.add_argument(
        "--prompt-script",
        metavar="FILE",
        help='prompts that follow each other, lines such as "2.5: a blue square moving up"',
    )
    one.add_argument("--prompt-embeds", metavar="FILE", help="embeddings, .safetensors or .pt")
    group.add_argument(
        "--text-encoder",
        metavar="PATH_OR_ID",
        help="umT5 for --prompt, through transformers (default: the bundled model's vocabulary; "
        "placeholder embeddings for other models)",
    )

    add = parser.add_argument_group("video").add_argument
    add(
        "--frames",
        type=values.whole(1),
        metavar="N",
        help="frames of the file (default: 81; bundled: 60; tiny: 45)",
    )
    add(
        "--size",
        type=values.size,
        metavar="HxW",
        help="height and width in pixels (default: 480x832; bundled: 192x192)",
    )
    add("--fps", type=values.positive, metavar="N", default=16.0, help="default: 16")
    add("--first-frames", metavar="FILE", help="continue a picture, a video, or latents")
    add(
        "--vae",
        metavar="PATH_OR_ID",
        help="Wan VAE, through diffusers (default: the bundled model's codec; a preview, which is "
        "no VAE, for other models)",
    )
    add("--out", metavar="PATH", default="vidk.mp4", help=f"one of {' '.join(SUFFIXES)}")
    add("--json", metavar="REPORT", help="also write the report to a .json file")

    add = parser.add_argument_group("rollout (in latent frames)").add_argument
    add("--block", type=values.whole(1, 1024), metavar="N", default=3, help="default: 3")
    add(
        "--window",
        type=values.whole(1),
        metavar="N",
        help="frames in the cache (default: 21; bundled: 12)",
    )
    add(
        "--sink",
        type=values.whole(0),
        metavar="N",
        help="first frames that stay in it (default: 0; bundled: 3)",
    )
    add("--independent-first-frame", action="store_true", help="a first block of 1 frame")
    add(
        "--kv",
        type=values.one_of(values.KV),
        metavar="KIND",
        help="keys and values in the cache: bf16, nvfp4 (FP4 keys), or fp8 (MXFP8 keys, FP8 "
        "values) (default: both in the dtype of the model)",
    )
    add(
        "--attention",
        type=values.one_of(values.ATTENTION),
        metavar="NAME",
        default="auto",
        help="fp4: on quantised keys, those of --kv nvfp4 unless --kv says fp8 (default: auto, as "
        "--kv asks for)",
    )
    add(
        "--fp4-recipe",
        type=values.one_of(NVFP4_RECIPES),
        metavar="NAME",
        help=f"of --kv nvfp4: {values.either(NVFP4_RECIPES)}",
    )
    add(
        "--steps",
        type=values.steps,
        metavar="N",
        help="number, or places such as 1000,500 (default: 4; bundled: 8)",
    )
    add("--shift", type=values.positive, metavar="X", help="default: 5; bundled: 3")
    add(
        "--sampler",
        choices=SAMPLERS,
        help="renoise for few-step models, euler for others (default: renoise; bundled: euler)",
    )
    add("--seed", type=values.any_whole, metavar="N", default=0, help="of the noise (default: 0)")

    group = parser.add_argument_group("machine")
    group.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N")
    group.add_argument("--threads", type=values.whole(1, 1024), metavar="N", help="CPU threads")
    mode = group.add_mutually_exclusive_group()
    mode.add_argument(
        "--compile",
        action="store_const",
        const="compile",
        dest="mode",
        help="torch.compile, or an error (default: torch.compile if a compiler is found)",
    )
    mode.add_argument(
        "--eager", action="store_const", const="eager", dest="mode", help="no torch.compile"
    )
    ranks.add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generate a video; raise ValueError, OSError or RuntimeError for what the user can mend."""
    from vidk.parallel.launch import from_environment, joined

    place = from_environment()
    if place is None:
        return _generate(args, None)
    with joined(place, gpu=ranks.wants_gpu(args), timeout=args.timeout) as world:
        return _generate(args, world)


def _generate(args: argparse.Namespace, world: World | None) -> int:
    from vidk.cli.report import as_text

    started = time.perf_counter()
    if world is None:
        job, json_file = _prepare(args, None)
    else:
        try:
            job, json_file = _prepare(args, world)
        except Exception as error:
            world.agree({}, error)
            raise
        world.agree(ranks.facts(args))
    leads = ranks.leads(world)
    if leads:
        for note in job.notes:
            say(note)
        say(job.announcement())
    report = job.run(say if leads else lambda text: None, progress=leads and sys.stderr.isatty())
    if not leads:
        return 0
    report["times"]["total"] = time.perf_counter() - started
    print(as_text(report))
    if json_file:
        with values.option("--json"), atomic_path(json_file) as temp:
            temp.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _prepare(args: argparse.Namespace, world: World | None) -> tuple[Job, Path | None]:
    # The parser must not wait for all this.
    from vidk.cli.prepare import prepare

    with values.option("--out"):
        check_output(args.out)
    if not args.out.lower().endswith(".safetensors"):
        with values.option("--fps"):
            VideoWriter(args.out, args.fps)
    with values.option("--json"):
        json_file = check_output(args.json, (".json",)) if args.json else None
    if args.threads:
        torch.set_num_threads(args.threads)
    return prepare(args, world), json_file


def say(text: str) -> None:
    """Tell the user something before the report."""
    print(f"vidk generate: {text}", file=sys.stderr, flush=True)
