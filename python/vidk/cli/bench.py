"""`vidk bench`: time the ops or a step of the model, or measure the accuracy of FP4 attention."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace

DTYPES = ("float32", "bfloat16", "float16")
ACCURACY = "fp4-accuracy"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `bench` command."""
    parser = subparsers.add_parser(
        "bench",
        help="time the ops against a copy and the public forms",
        description="Time every op on shapes of the Wan models, next to a plain copy, the op "
        "sequence of the public code and torch.compile of the plain-PyTorch form, all in one run. "
        f"`vidk bench {ACCURACY}` measures the errors of FP4 recipes instead.",
    )
    parser.add_argument(
        "ops", metavar="op", nargs="*", help=f"ops to time (default: all), or {ACCURACY}"
    )
    parser.add_argument(
        "--shape", nargs="+", metavar="NAME", help="1.3b-480p, 14b-480p or tiny (default: the two)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--json", metavar="OUT", help="write all figures to a file")
    parser.add_argument("--repeat", type=int, metavar="N", help="rounds (default: as time allows)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--quick", action="store_true", help="one shape, a tenth of the time")
    end_to_end = parser.add_argument_group("end to end")
    end_to_end.add_argument(
        "--end-to-end",
        action="store_true",
        help="time a step of the model instead of the ops (with ops named: as well)",
    )
    end_to_end.add_argument(
        "--layers",
        type=int,
        metavar="N",
        help="layers of the model (default: at most 4)",
    )
    accuracy = parser.add_argument_group(ACCURACY)
    accuracy.add_argument("--plot", metavar="OUT", help="write a picture, .png")
    accuracy.add_argument(
        "--model",
        metavar="PATH",
        help="checkpoint whose q and k are captured, and whose rollouts compared (default: the "
        "bundled model)",
    )
    compare = parser.add_argument_group("compare two files of --json")
    compare.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="exit with 1 if B is slower than A"
    )
    compare.add_argument("--percent", type=float, default=10.0, help="least change (default: 10)")
    compare.add_argument(
        "--absolute-ms", type=float, default=0.1, help="and least difference (default: 0.1)"
    )
    parser.set_defaults(run=run)


def _known(what: str, names: Iterable[str], known: Iterable[str]) -> list[str]:
    names, known = list(names), list(known)
    for name in names:
        if name not in known:
            raise ValueError(
                f"vidk bench: {what}: got {name!r}, expected one of {', '.join(known)}"
            )
    return list(dict.fromkeys(names))


def _at_least_one(what: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"vidk bench: {what}: got {value}, expected at least 1")


def _check_device(device: str) -> None:
    import torch

    if device not in ("cpu", "cuda"):
        raise ValueError(f"vidk bench: --device: got {device!r}, expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        reason = "sees no GPU" if torch.version.cuda else "was built without CUDA"
        raise ValueError(
            f"vidk bench: --device: got 'cuda', expected cpu, since this PyTorch {reason}"
        )


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; raise ValueError for anything the user can mend."""
    if args.compare:
        return _compare(args)
    if ACCURACY in args.ops:
        return _accuracy(args)
    for what in ("plot", "model"):
        if getattr(args, what):
            raise ValueError(f"vidk bench: --{what}: got it without {ACCURACY}, which it is for")

    import torch

    from vidk.bench.cases import DEFAULT_SHAPES, SHAPES
    from vidk.bench.report import check_writable, table, write_json
    from vidk.bench.run import Plan, run
    from vidk.ops.registry import OPS

    ops = _known("op", args.ops or ([] if args.end_to_end else OPS), OPS)
    one_shape = args.quick or args.end_to_end
    shapes = _known("--shape", args.shape or DEFAULT_SHAPES[: 1 if one_shape else None], SHAPES)
    for what in ("repeat", "threads", "layers"):
        _at_least_one(f"--{what}", getattr(args, what))
    _check_device(args.device)
    if args.json:
        check_writable(args.json)
    if args.threads:
        torch.set_num_threads(args.threads)
    plan = Plan(
        ops=ops,
        shapes=shapes,
        dtype=getattr(torch, args.dtype),
        device=args.device,
        repeat=args.repeat,
        end_to_end=args.end_to_end,
        layers=args.layers,
    )
    if args.quick:
        plan = replace(plan, budget_s=plan.budget_s / 10, limit_s=plan.limit_s / 10)
    document = run(plan)
    print(table(document))
    if args.json:
        write_json(document, args.json)
    return 0


def _compare(args: argparse.Namespace) -> int:
    from vidk.bench.compare import compare, load

    for what, value in (("--percent", args.percent), ("--absolute-ms", args.absolute_ms)):
        if not value >= 0:
            raise ValueError(f"vidk bench: {what}: got {value:g}, expected at least 0")
    before, after = (load(path) for path in args.compare)
    text, regressed = compare(before, after, args.percent, args.absolute_ms / 1e3)
    print(text)
    return int(regressed)


def _accuracy(args: argparse.Namespace) -> int:
    import torch

    from vidk.bench.fp4_accuracy import run, table
    from vidk.bench.fp4_plot import draw
    from vidk.bench.report import check_writable, write_json
    from vidk.media import check_output
    from vidk.models.checkpoint import load_model

    if args.ops != [ACCURACY]:
        raise ValueError(f"vidk bench: op: got {ACCURACY} and others, expected it alone")
    if args.json:
        check_writable(args.json)
    plot = check_output(args.plot, (".png",)) if args.plot else None
    _at_least_one("--threads", args.threads)
    if args.threads:
        torch.set_num_threads(args.threads)
    model = load_model(args.model, dtype=torch.float32) if args.model else None
    document = run(quick=args.quick, model=model)
    print(table(document))
    if args.json:
        write_json(document, args.json)
    if plot:
        draw(document, plot)
    return 0
