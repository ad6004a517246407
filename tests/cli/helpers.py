"""A tiny model for the tests of `vidk generate`."""

from __future__ import annotations

from vidk.cli import main
from vidk.models import CONFIGS

TINY = CONFIGS["tiny"]
# One thread: on a busy machine two would wait for each other longer than they work.
MODEL = ("--config", "tiny", "--random-weights", "--eager", "--size", "32x48", "--threads", "1")


def generate(*words: object) -> int:
    """Run `vidk generate` on the tiny model; return the exit code."""
    return main(["generate", *MODEL, *map(str, words)])
