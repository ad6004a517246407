"""`vidk eval`: what the bundled model's videos show, measured, in one configuration or two."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

import torch

from vidk._files import atomic_path
from vidk._version import __version__
from vidk.bench.machine import cpu_model
from vidk.bundled.noise import BLOCK
from vidk.cli import generate, values
from vidk.media import check_output

if TYPE_CHECKING:
    from vidk.evaluate import Setup

_SHEET_ROWS = 12


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `eval` command."""
    parser = subparsers.add_parser(
        "eval",
        help="measure the quality of the bundled model's videos",
        description="Generate videos with the bundled model and measure in their pictures how far "
        "they show what their prompts say, with 95 % confidence intervals. --versus measures how "
        "far another configuration's videos are from them.",
    )
    add = parser.add_argument
    add("--pairs", type=values.whole(1), metavar="N", default=100, help="prompts, each with a seed")
    add("--blocks", type=values.whole(1), metavar="N", default=20, help="of 3 frames (default: 20)")
    add(
        "--setup",
        metavar="K=V,...",
        default="",
        help="dtype, compile (yes, no), window, sink, steps, shift, sampler, kv (plain, nvfp4, "
        "fp8), recipe (of nvfp4), ranks (1 to 8 processes on the CPU); default: as vidk generate",
    )
    add("--versus", metavar="K=V,...", help="also run with these changes, and compare")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N")
    add("--threads", type=values.whole(1, 1024), metavar="N", help="CPU threads")
    add("--json", metavar="REPORT", help="write the report to a .json file")
    add("--sheet", metavar="PICTURE", help="write a contact sheet to a .png file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate; raise ValueError, OSError or RuntimeError for what the user can mend."""
    from vidk.bundled import bundled_codec, provenance
    from vidk.evaluate import Setup, cases, compared, drift, gains, judged_blocks, validated

    with values.option("--setup"):
        setup = Setup.parse(Setup(), args.setup)
        device = _device(setup, args.device, args.blocks)
    other = None
    if args.versus:
        with values.option("--versus"):
            other = Setup.parse(setup, args.versus)
            _device(other, str(device), args.blocks)
    with values.option("--json"):
        json_file = check_output(args.json, (".json",)) if args.json else None
    with values.option("--sheet"):
        sheet = check_output(args.sheet, (".png",)) if args.sheet else None
    if args.threads:
        torch.set_num_threads(args.threads)
    begin = time.perf_counter()
    chosen = cases(args.pairs)
    codec = bundled_codec(device)
    frames, model = _frames(setup, chosen, args.blocks, device, codec)
    report: dict[str, Any] = {
        "versions": {"vidk": __version__, "torch": str(torch.__version__)},
        "machine": {
            "device": str(device),
            "cpu": cpu_model(),
            "threads": torch.get_num_threads(),
        },
        "model": provenance(),
        "setup": vars(setup),
        "pairs": len(chosen),
        "measurement": validated(codec, chosen),
        "blocks": judged_blocks(chosen, frames),
        "drift": drift(frames),
        "continuation": gains(model, codec, chosen, setup),
    }
    if other:
        theirs, _ = _frames(other, chosen, args.blocks, device, codec)
        report["versus"] = {
            "setup": vars(other),
            "blocks": judged_blocks(chosen, theirs),
            **compared(frames, theirs),
        }
    report["seconds"] = time.perf_counter() - begin
    print(as_text(report))
    if sheet:
        from vidk.evaluate.sheet import draw_sheet

        count = frames.size(1)
        columns = sorted({round(i * (count - 1) / 9) for i in range(10)})
        labels = [f"{c.scene.prompt}, seed {c.seed}".replace(" on ", "\non ") for c in chosen]
        rows = frames
        if other:
            # Below each clip that of the other configuration.
            rows = torch.stack([frames, theirs], 1).flatten(0, 1)
            labels = [text for label in labels for text in (label, f"versus\n{args.versus}")]
        draw_sheet(sheet, rows[:_SHEET_ROWS], labels[:_SHEET_ROWS], columns)
    if json_file:
        with values.option("--json"), atomic_path(json_file) as temp:
            temp.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _device(setup: Setup, name: str | None, blocks: int) -> torch.device:
    """Return the device of a setup; raise ValueError for what `vidk generate` would refuse."""
    from vidk.cli.main import Parser
    from vidk.cli.prepare import prepare
    from vidk.parallel.launch import Place, World

    parser = Parser()
    generate.add_parser(parser.add_subparsers(parser_class=Parser))
    options = parser.parse_args(["generate"])
    vars(options).update(vars(setup))
    options.device = name
    options.frames = BLOCK * blocks
    options.kv = None if setup.kv == "plain" else setup.kv
    options.fp4_recipe = setup.recipe if setup.kv == "nvfp4" else None
    options.mode = "compile" if setup.compile else "eager"
    world = None
    if setup.ranks > 1:
        world = World(Place(0, setup.ranks, 0, setup.ranks), options.timeout)
    try:
        device = prepare(options, world).device
    except values.OptionError as error:
        if str(error).startswith("--device"):
            raise
        # A setup's keys are options of `vidk generate`.
        raise ValueError(str(error).removeprefix("--")) from error
    if world and device.type != "cpu":
        raise values.OptionError(
            f"--device: got {device} for {setup.ranks} ranks, expected cpu, through which ranks of "
            "vidk eval exchange"
        )
    return device


def _frames(
    setup: Setup, chosen: Any, blocks: int, device: torch.device, codec: Any
) -> tuple[torch.Tensor, Any]:
    from vidk.bundled import bundled_model
    from vidk.evaluate import decoded, rollouts

    model = bundled_model(dtype=getattr(torch, setup.dtype), device=device)
    return decoded(codec, rollouts(model, chosen, setup, blocks)), model


def as_text(report: dict[str, Any]) -> str:
    """Lay the report out for reading."""
    keys = list(next(iter(report["blocks"].values())))
    lines = [f"{report['pairs']} pairs of prompt and seed, setup {_pairs(report['setup'])}"]
    lines.append("".join(f"{name:>12}" for name in ("", *keys)))

    def row(name: str, judged: dict[str, Any]) -> str:
        return f"{name:>12}" + "".join(f"{100 * judged[key]['share']:>10.1f} %" for key in keys)

    lines.append(row("true clips", report["measurement"]["right"]))
    every = list(report["blocks"])
    shown = [b for i, b in enumerate(every) if i in (0, 1, 4, 9, 14) or b == every[-1]]
    for block in shown:
        lines.append(row(f"block {block}", report["blocks"][block]))
    if "versus" in report:
        for block in dict.fromkeys((every[0], every[-1])):
            lines.append(row(f"versus, {block}", report["versus"]["blocks"][block]))
    first = report["blocks"]["1"]
    ends = [f"{key} {100 * first[key]['low']:.0f}-{100 * first[key]['high']:.0f}" for key in keys]
    lines.append(f"95 % intervals of block 1: {', '.join(ends)}")
    lines.append(f"codec: {_mean(report['measurement']['psnr'])} dB")
    smooth = report["drift"]
    lines.append(
        f"roughness of the background: {_mean(smooth['first_block'])} in the first block, "
        f"{_mean(smooth['last_block'])} in the last, of 255"
    )
    for block, found in report["continuation"].items():
        lines.append(
            f"true clip continued, block {block}: {_mean(found['psnr'])} dB, "
            f"{_mean(found['gain'])} dB more than repeating its last frame"
        )
    if "versus" in report:
        other = report["versus"]
        lines.append(
            f"versus {_pairs(other['setup'])}: PSNR {_mean(other['psnr'])} dB, "
            f"SSIM {_mean(other['ssim'], 5)}; SSIM of the first block "
            f"{_mean(other['first_block']['ssim'], 5)}, of the last "
            f"{_mean(other['last_block']['ssim'], 5)}"
            + (", identical" if other["identical"] else "")
        )
    lines.append(f"{report['seconds']:.0f} s")
    return "\n".join(lines)


def _pairs(setup: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in setup.items())


def _mean(found: dict[str, Any], digits: int = 2) -> str:
    half = (found["high"] - found["low"]) / 2
    return f"{found['mean']:.{digits}f} +- {half:.{digits}f}"
