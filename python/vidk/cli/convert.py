"""`vidk convert`: rewrite a checkpoint in another layout or dtype."""

from __future__ import annotations

import argparse
from pathlib import Path

DTYPES = ("float32", "bfloat16", "float16")
LAYOUTS = ("original", "diffusers", "self-forcing")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `convert` command."""
    parser = subparsers.add_parser(
        "convert",
        help="rewrite a checkpoint in another layout or dtype",
        description="Rewrite a checkpoint in another layout or dtype. DST appears whole or not at "
        "all. Writing safetensors needs memory for one tensor, writing .pt for all of them.",
    )
    parser.add_argument("src", metavar="SRC", help=".safetensors, its index, .pt, or a folder")
    parser.add_argument("dst", metavar="DST", help=".safetensors, .pt, or a folder")
    parser.add_argument(
        "--to",
        choices=LAYOUTS,
        help="layout of DST (default: self-forcing for .pt, original for .safetensors, diffusers "
        "for a folder)",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default: each tensor keeps its own")
    parser.add_argument("--key", help="part of a .pt (default: generator_ema, then generator)")
    parser.add_argument("--config", help="name or config.json, where SRC does not tell its sizes")
    parser.add_argument("--force", action="store_true", help="replace an existing checkpoint")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert `args.src` to `args.dst`; raise ValueError for anything the user can mend."""
    import torch

    from vidk.models.checkpoint import open_checkpoint
    from vidk.models.config import load_config
    from vidk.models.save import save_checkpoint

    suffix = Path(args.dst).suffix
    by_suffix = {".pt": "self-forcing", ".pth": "self-forcing", ".safetensors": "original"}
    layout = args.to or by_suffix.get(suffix, "diffusers")
    config = load_config(args.config) if args.config else None
    with open_checkpoint(args.src, key=args.key, config=config) as checkpoint:
        print(f"read  {checkpoint.describe()}")
        save_checkpoint(
            checkpoint,
            args.dst,
            layout.replace("-", "_"),
            dtype=getattr(torch, args.dtype) if args.dtype else None,
            overwrite=args.force,
            progress=True,
        )
    with open_checkpoint(args.dst) as written:
        print(f"wrote {written.describe()}")
    return 0
