"""The command line's frame: finds the command, and tells every error in one sentence."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from vidk._version import __version__
from vidk.cli.values import either, explain, wrong

COMMANDS = ("generate", "eval", "bench", "env", "convert", "plan")
# `vidk.cli.plan` is what a run of `generate` will do.
_MODULES = {"plan": "scaling"}
USAGE_ERROR, INTERRUPTED = 2, 130

# What argparse says, in the words of vidk: got, expected.
_WORDS = (
    (r"argument (.+?): invalid int value: (.+)", r"\1: got \2, expected a whole number"),
    (r"argument (.+?): invalid float value: (.+)", r"\1: got \2, expected a number"),
    (r"argument (.+?): expected one argument", r"\1: got no value, expected one"),
    (r"argument (.+?): expected (.+)", r"\1: got too few values, expected \2"),
    (r"argument (.+?): ignored explicit argument (.+)", r"\1: got \2, expected no value"),
    (r"argument (.+?): not allowed with argument (.+)", r"\1: got \2 too, expected one of them"),
    (r"the following arguments are required: (.+)", r"\1: got no value, expected one"),
    (r"argument (.+?): (.+)", r"\1: \2"),
)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that answers a wrong command line with one sentence."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation that works today would turn ambiguous with tomorrow's option.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # Not through `error`: versions of Python word and quote the choices in different ways.
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, str(wrong(value, either(action.choices))))

    def error(self, message: str) -> NoReturn:
        """Print `vidk command: option: got ..., expected ...` and leave with 2."""
        for pattern, words in _WORDS:
            if re.fullmatch(pattern, message, re.DOTALL):
                message = re.sub(pattern, words, message, flags=re.DOTALL)
                break
        self.exit(USAGE_ERROR, f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 is success, 2 anything that the user can mend, told in one sentence, 130 Ctrl-C. Set
    `VIDK_DEBUG=1` to see the traceback as well.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    command = words[0] if words and words[0] in COMMANDS else None
    parser, commands = _parser([command] if command else COMMANDS)
    try:
        args, unknown = parser.parse_known_args(words)
        if unknown:
            chosen = commands.choices[args.command] if args.command else parser
            chosen.error(f"{unknown[0]}: got an unknown argument, expected one of {chosen.prog} -h")
    except SystemExit as leave:
        # --help and --version leave with 0, Parser.error with 2.
        return leave.code if isinstance(leave.code, int) else USAGE_ERROR
    if args.command is None:
        parser.print_help()
        return 0
    return _guarded(args)


def _parser(names: Sequence[str]) -> tuple[Parser, argparse._SubParsersAction[Any]]:
    """Return the parser with some of the commands: importing all of them takes time."""
    parser = Parser(prog="vidk", description="Causal video diffusion, block by block.")
    parser.add_argument("--version", action="version", version=f"vidk {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name in names:
        module = importlib.import_module(f"vidk.cli.{_MODULES.get(name, name)}")
        module.add_parser(commands)
    return parser, commands


def _guarded(args: argparse.Namespace) -> int:
    """Run a command; turn an error into one sentence and an exit code."""
    try:
        code = args.run(args)
        sys.stdout.flush()
        return int(code)
    except KeyboardInterrupt:
        return _fail(args, "interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader, such as `head`, has had enough. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (MemoryError, ValueError, OSError, RuntimeError, ImportError) as error:
        return _fail(args, _sentence(error), USAGE_ERROR)


def _fail(args: argparse.Namespace, sentence: str, code: int) -> int:
    if os.environ.get("VIDK_DEBUG", "0") not in ("", "0"):
        import traceback

        traceback.print_exc()
    who = f"vidk {args.command}: "
    print(who + sentence.removeprefix(who), file=sys.stderr)
    return code


def _sentence(error: Exception) -> str:
    text = explain(error)
    if out_of_memory(error):
        return (
            f"out of memory ({text.splitlines()[0]}): take a smaller --size or --window, "
            "or --dtype bfloat16"
        )
    if isinstance(error, RuntimeError):
        # torch appends the C++ stack, Dynamo pages of advice.
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f"{lines[0]} (VIDK_DEBUG=1 shows all of it)" if len(lines) > 1 else lines[0]
    return text


def out_of_memory(error: Exception) -> bool:
    """Tell whether an error means that memory is exhausted; torch has no type for the CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )
