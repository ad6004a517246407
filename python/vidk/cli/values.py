"""Values of options: each function reads one, or says what it expected."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager

DTYPES = ("float32", "bfloat16", "float16")
KV = ("bf16", "nvfp4", "fp8")
ATTENTION = ("auto", "fp4")


class OptionError(ValueError):
    """A value of an option that does not fit, told in one sentence that begins with the option."""


@contextmanager
def option(name: str) -> Iterator[None]:
    """Put the name of the option in front of what is wrong with its value."""
    try:
        yield
    except (ValueError, OSError) as error:
        if isinstance(error, OptionError):
            raise
        # What raised it may have named the same thing already.
        text = explain(error).removeprefix(f"{name.lstrip('-')}: ")
        raise OptionError(f"{name}: {text}") from error


def explain(error: BaseException) -> str:
    """Return the message of an error; the system's own are put as `file: reason`."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def wrong(got: object, expected: str) -> argparse.ArgumentTypeError:
    """Return the error for a value, in the words that all errors of vidk have."""
    text = str(got)
    return argparse.ArgumentTypeError(
        f"got {text if text and text.isprintable() else ascii(text)}, expected {expected}"
    )


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a reader of whole numbers."""
    expected = f"a whole number of at least {least}"
    if most is not None:
        expected = f"a whole number from {least} to {most}"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise wrong(text, expected) from None
        if value < least or (most is not None and value > most):
            raise wrong(text, expected)
        return value

    return read


def any_whole(text: str) -> int:
    """Read a whole number of any size and sign."""
    try:
        return int(text)
    except ValueError:
        raise wrong(text, "a whole number") from None


def positive(text: str) -> float:
    """Read a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise wrong(text, "a number above 0")
    return value


def either(names: Iterable[object]) -> str:
    """Return `a, b or c`."""
    *most, last = map(str, names)
    return f"{', '.join(most)} or {last}" if most else last


def one_of(names: Collection[str]) -> Callable[[str], str]:
    """Return a reader of one word of several."""

    def read(text: str) -> str:
        if text not in names:
            raise wrong(text, either(names))
        return text

    return read


def size(text: str) -> tuple[int, int]:
    """Read `HEIGHTxWIDTH` in pixels."""
    match = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", text, re.ASCII)
    if not match:
        raise wrong(text, "HEIGHTxWIDTH in pixels, such as 480x832")
    return int(match[1]), int(match[2])


def steps(text: str) -> int | list[float]:
    """Read a number of denoising steps, or their places in the schedule."""
    from vidk.rollout.schedule import Schedule

    try:
        value = [float(part) for part in text.split(",")] if "," in text else int(text)
        Schedule(value)
    except ValueError:
        expected = "a number of steps, or decreasing places in (0, 1000], such as 1000,750,500,250"
        raise wrong(text, expected) from None
    return value
