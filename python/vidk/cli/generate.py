"""`vidk generate`: a video file out of a prompt, block by block."""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch

from vidk._files import atomic_path
from vidk.cache_kinds import NVFP4_RECIPES
from vidk.cli import values
from vidk.media import SUFFIXES, VideoWriter, check_output
from vidk.models.config import CONFIGS


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `generate` command."""
    parser = subparsers.add_parser(
        "generate",
        help="make a video file",
        description="Make a video file, block by block. Without options a small bundled model "
        "makes vidk.mp4 in the current folder, in seconds on any machine.",
    )
    add = parser.add_argument_group("model").add_argument
    add("--config", metavar="NAME", help=f"{', '.join(CONFIGS)}, or a config.json")
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
    one.add_argument("--prompt-embeds", metavar="FILE", help="embeddings, .safetensors or .pt")
    group.add_argument(
        "--text-encoder",
        metavar="PATH_OR_ID",
        help="umT5 for --prompt, through transformers (default: placeholder embeddings)",
    )

    add = parser.add_argument_group("video").add_argument
    add(
        "--frames",
        type=values.whole(1),
        metavar="N",
        help="frames of the file (default: 81; bundled and tiny: 45)",
    )
    add(
        "--size",
        type=values.size,
        metavar="HxW",
        help="height and width in pixels (default: 480x832; bundled: 160x288)",
    )
    add("--fps", type=values.positive, metavar="N", default=16.0, help="default: 16")
    add("--first-frames", metavar="FILE", help="continue a picture, a video, or latents")
    add(
        "--vae",
        metavar="PATH_OR_ID",
        help="Wan VAE, through diffusers (default: a preview, which is no VAE)",
    )
    add("--out", metavar="PATH", default="vidk.mp4", help=f"one of {' '.join(SUFFIXES)}")
    add("--json", metavar="REPORT", help="also write the report to a .json file")

    add = parser.add_argument_group("rollout (in latent frames)").add_argument
    add("--block", type=values.whole(1, 1024), metavar="N", default=3, help="default: 3")
    add("--window", type=values.whole(1), metavar="N", help="frames in the cache (default: 21)")
    add("--sink", type=values.whole(0), metavar="N", default=0, help="first frames that stay in it")
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
        default=4,
        help="number, or places such as 1000,500 (default: 4)",
    )
    add("--shift", type=values.positive, metavar="X", default=5.0, help="default: 5")
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
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generate a video; raise ValueError, OSError or RuntimeError for what the user can mend."""
    # The parser must not wait for all this.
    from vidk.cli.prepare import prepare
    from vidk.cli.report import as_text

    started = time.perf_counter()
    with values.option("--out"):
        check_output(args.out)
    if not args.out.lower().endswith(".safetensors"):
        with values.option("--fps"):
            VideoWriter(args.out, args.fps)
    with values.option("--json"):
        json_file = check_output(args.json, (".json",)) if args.json else None
    if args.threads:
        torch.set_num_threads(args.threads)
    job = prepare(args)
    for note in job.notes:
        say(note)
    say(job.announcement())
    report = job.run(say, progress=sys.stderr.isatty())
    report["times"]["total"] = time.perf_counter() - started
    print(as_text(report))
    if json_file:
        with values.option("--json"), atomic_path(json_file) as temp:
            temp.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def say(text: str) -> None:
    """Tell the user something before the report."""
    print(f"vidk generate: {text}", file=sys.stderr, flush=True)
