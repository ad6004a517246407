"""`vidk plan`: what a model would need and take on P GPUs, before anyone has them."""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from vidk.cache_kinds import Plain, Sizes, make_kind
from vidk.cli import values
from vidk.cli.kv import DEFAULT_RECIPE
from vidk.cli.plan import check_size, parameter_count
from vidk.models.config import CONFIGS, WanConfig, load_config
from vidk.models.flops import forward_flops
from vidk.parallel.cost import ACCELERATORS, LINKS, Estimate, estimate
from vidk.parallel.planner import PATTERNS, choose_sharding

_RANKS = (1, 2, 4, 8, 16, 32, 64)
_SHORT = {name.removeprefix("wan-"): name for name in CONFIGS}
_KINDS = {"bf16": Plain.name}
_SCALE = 8  # pixels of a latent cell


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `plan` command."""
    parser = subparsers.add_parser(
        "plan",
        help="what a model needs and takes on several GPUs",
        description="Memory, traffic and time of one denoising forward on P GPUs, for every "
        "exchange that works. Bytes and messages are exact; times are estimates at assumed shares "
        "of published peak rates, without overlap.",
    )
    add = parser.add_argument
    add("--model", metavar="NAME", default="1.3b", help=f"{', '.join(_SHORT)} (default: 1.3b)")
    add("--size", type=values.size, metavar="HxW", default=(480, 832), help="default: 480x832")
    add("--gpus", type=values.whole(1, 1024), metavar="P", help="default: 1 to 64 side by side")
    add("--link", type=values.one_of(tuple(LINKS)), metavar="NAME", default="nvlink4",
        help=f"{', '.join(LINKS)} (default: nvlink4)")  # fmt: skip
    add("--gpu", type=values.one_of(tuple(ACCELERATORS)), metavar="NAME", default="h200",
        help=f"{', '.join(ACCELERATORS)} (default: h200)")  # fmt: skip
    add("--window", type=values.whole(1), metavar="N", default=21, help="latent frames (21)")
    add("--block", type=values.whole(1, 1024), metavar="N", default=3, help="latent frames (3)")
    add("--kv", type=values.one_of(values.KV), metavar="KIND", default="bf16",
        help="what the cache keeps, as of `vidk generate` (bf16)")  # fmt: skip
    add("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the plan."""
    with values.option("--model"):
        config = load_config(_SHORT.get(args.model, args.model))
    check_size(args.size, _SCALE, config.patch_size)
    if args.window < args.block:
        raise values.OptionError(
            f"--window: got {args.window}, expected at least {args.block}, the frames of a block"
        )
    counts = _RANKS if args.gpus is None else (args.gpus,)
    rows = [e for ranks in counts for e in _estimates(config, args, ranks)]
    if args.gpus is not None and not rows:
        with values.option("--gpus"):
            _sharding(config, args, args.gpus, None)
    if args.json:
        print(json.dumps([_record(e) for e in rows], indent=2))
    else:
        print(_text(config, args, rows))
    return 0


def _sharding(config: WanConfig, args: argparse.Namespace, ranks: int, pattern: Any) -> Any:
    return choose_sharding(
        config, ranks=ranks, frame_tokens=_frame_tokens(config, args), frames=args.block,
        itemsize=2, pattern=pattern,
    )  # fmt: skip


def _frame_tokens(config: WanConfig, args: argparse.Namespace) -> int:
    _, ph, pw = config.patch_size
    height, width = (pixels // _SCALE for pixels in args.size)
    return (height // ph) * (width // pw)


def _estimates(config: WanConfig, args: argparse.Namespace, ranks: int) -> list[Estimate]:
    """Return one estimate for each pattern that works, the fewest bytes first."""
    frame_tokens = _frame_tokens(config, args)
    flops = forward_flops(
        config,
        frames=args.block,
        frame_tokens=frame_tokens,
        kv_frames=args.window,
        text_keys=config.text_len,
    )
    with values.option("--kv"):
        kind = make_kind(_KINDS.get(args.kv, args.kv), DEFAULT_RECIPE, config.head_dim)
    sizes = Sizes(
        config.num_layers, 1, config.num_heads, config.head_dim, args.window, frame_tokens,
        torch.bfloat16,
    )  # fmt: skip
    cache = sum(s.bytes for s in kind.stored(sizes).values())
    found = []
    for pattern in PATTERNS if ranks > 1 else PATTERNS[:1]:
        try:
            sharding = _sharding(config, args, ranks, pattern)
        except ValueError:
            continue
        found.append(
            estimate(
                sharding,
                flops,
                weights=2 * parameter_count(config),
                cache=cache,
                link=LINKS[args.link],
                accelerator=ACCELERATORS[args.gpu],
            )
        )
    return sorted(found, key=lambda e: e.sharding.layer_bytes)


def _record(e: Estimate) -> dict[str, Any]:
    s = e.sharding
    return {
        "ranks": s.ranks,
        "exchange": s.pattern,
        "layout": s.kind,
        "head_ranks": s.head_ranks,
        "tokens": s.layout().shard_tokens(s.frames),
        "padding": s.layout().padding(s.frames),
        "weight_bytes": e.weights,
        "cache_bytes": e.cache,
        "layer_bytes": s.layer_bytes,
        "layer_messages": s.layer_messages,
        "forward_bytes": s.forward_bytes,
        "compute_s": e.compute,
        "communication_s": e.communication,
        "efficiency": e.efficiency,
    }


def _text(config: WanConfig, args: argparse.Namespace, rows: list[Estimate]) -> str:
    link, gpu = LINKS[args.link], ACCELERATORS[args.gpu]
    height, width = args.size
    lines = [
        f"{args.model}, {height}x{width}, bfloat16: a block of {args.block} latent frames "
        f"({args.block * _frame_tokens(config, args)} tokens) against a window of {args.window}; "
        f"{config.num_layers} layers, {config.num_heads} heads, --kv {args.kv}",
        f"{gpu.name} at {gpu.reach:.0%} of {gpu.flops / 1e12:.0f} TFLOP/s; {link.name} at "
        f"{link.reach:.0%} of {link.bandwidth / 1e9:.0f} GB/s, {link.latency * 1e6:g} us a message",
        "",
        f"{'P':>3} {'exchange':9}{'layout':11}{'memory':>9}{'a layer':>10}{'messages':>9}"
        f"{'compute':>10}{'exchange':>10}{'forward':>10}{'efficiency':>11}",
    ]
    for e in rows:
        s = e.sharding
        fits = "" if e.weights + e.cache <= gpu.memory else "  does not fit"
        lines.append(
            f"{s.ranks:>3} {s.pattern if s.ranks > 1 else '-':9}"
            f"{s.kind if s.ranks > 1 else '-':11}{(e.weights + e.cache) / 1e9:>6.1f} GB"
            f"{s.layer_bytes / 1e6:>7.2f} MB{s.layer_messages:>9}{1e3 * e.compute:>7.1f} ms"
            f"{1e3 * e.communication:>7.2f} ms{1e3 * e.seconds:>7.1f} ms{e.efficiency:>11.0%}{fits}"
        )
    lines += [
        "",
        "memory: weights and a rank's part of the cache. a layer: bytes that a rank sends, of one",
        "layer of one forward. Times are estimates, no measurement, and nothing overlaps in them.",
    ]
    return "\n".join(lines)
