"""Outputs that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def published(target: Path) -> Iterator[Path]:
    """Yield a free path beside `target`; rename it to `target` if the block succeeds.

    A killed process can leave only the hidden path with the suffix `.tmp` behind.
    """
    stem = f"{target.parent}/.{target.name[:64]}.{secrets.token_hex(6)}"
    temporary, old = Path(f"{stem}.tmp"), Path(f"{stem}.old.tmp")
    try:
        yield temporary
        if temporary.is_dir() and target.exists():
            # A folder cannot be replaced in one step; the old one moves out of the way first.
            try:
                target.rename(old)
                temporary.rename(target)
            except BaseException:
                if old.exists() and not target.exists():
                    old.rename(target)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.replace(target)
        with suppress(OSError):  # some file systems cannot; the rename itself is done
            sync_folder(target.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a new temporary file beside `path`; it replaces `path` if the body ends well.

    On any exception, KeyboardInterrupt included, the temporary file is removed and an existing
    `path` keeps its bytes. Raises OSError.
    """
    with published(path) as temp:
        # O_CREAT with 0666 rather than mkstemp: the result gets the mode that the umask asks for.
        os.close(os.open(temp, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temp
        with open(temp, "rb") as file:
            os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Put a folder's entries on the disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
