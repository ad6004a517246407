"""Output paths, checked before any work is done."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIXES = (".mp4", ".gif", ".png", ".safetensors")


class MediaError(ValueError):
    """A file that cannot be read or written, told in one sentence."""


def check_output(path: str | os.PathLike[str], suffixes: Collection[str] = SUFFIXES) -> Path:
    """Return the real path of an output file, or say why it could not be written.

    Parameters
    ----------
    path : file to be written; symbolic links are followed, so that the link itself survives.
    suffixes : the suffixes that the caller can write.

    Raises
    ------
    MediaError : unknown suffix, folder missing or not writable, or `path` is no regular file.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in suffixes:
        got = f"suffix '{suffix}'" if suffix else "no suffix"
        raise MediaError(f"{path}: got {got}, expected one of {', '.join(suffixes)}")
    try:
        target = Path(os.path.realpath(path))
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        mode = None
    except (OSError, ValueError) as error:
        raise MediaError(f"{path}: cannot be written: {_reason(error)}") from error
    if not target.parent.is_dir():
        raise MediaError(f"{path}: the folder {target.parent} does not exist (create it first)")
    if mode is not None and not stat.S_ISREG(mode):
        raise MediaError(f"{path}: exists and is not a regular file")
    # os.replace would overwrite a read-only file without a word, so its mode is asked too.
    if mode is not None and not os.access(target, os.W_OK):
        raise MediaError(f"{path}: exists and is not writable")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise MediaError(f"{path}: the folder {target.parent} is not writable")
    return target


@contextmanager
def media_errors(path: str | os.PathLike[str], verb: str) -> Iterator[None]:
    """Turn an error of the system or of a codec into a MediaError that names the file."""
    try:
        yield
    except MediaError:
        raise
    except Exception as error:
        raise MediaError(f"{path}: cannot be {verb}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
