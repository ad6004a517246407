"""The streaming writer: blocks of frames in, one whole file out."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch

from vidk._files import atomic_path
from vidk.media.output import MediaError, check_output, media_errors

Frames = np.ndarray | torch.Tensor

# Codec libraries are slow to import and may be absent, so a sink is looked up when it is used.
_SINKS = {
    ".mp4": ("vidk.media.mp4", "Mp4Sink"),
    ".gif": ("vidk.media.gif", "GifSink"),
    ".png": ("vidk.media.sheet", "SheetSink"),
}


class Sink(Protocol):
    """What a format has to do; `codec` and `notes` are for the user's eyes."""

    codec: str
    notes: list[str]

    def write(self, frame: np.ndarray) -> None: ...

    def finish(self) -> None: ...

    def abort(self) -> None: ...


class VideoWriter:
    """Write blocks of uint8 `[n, H, W, 3]` frames to one .mp4, .gif or .png (contact sheet).

    Use as a context manager. The file appears, whole, when the block ends; after an exception
    (KeyboardInterrupt included) nothing is left and an existing file keeps its bytes. The same
    frames give the same bytes.

    Parameters
    ----------
    path : output file; the suffix chooses the format.
    fps : frames per second, above 0.
    size : `(H, W)` in pixels; taken from the first frames if None.

    Attributes
    ----------
    codec : name of the encoder, once a frame was written.
    notes : what the user should know about the file (padding, frames left out), as sentences.
    frames : number of frames written.

    Raises
    ------
    MediaError : bad path or fps (at once, before any work), bad frames, no frames, a full disk.
    """

    def __init__(
        self, path: str | os.PathLike[str], fps: float = 16, size: tuple[int, int] | None = None
    ) -> None:
        self.path = check_output(path, tuple(_SINKS))
        if not (isinstance(fps, int | float | Fraction) and math.isfinite(fps) and fps > 0):
            raise MediaError(f"fps: got {fps!r}, expected a number above 0")
        self._fps = Fraction(fps).limit_denominator(1001)  # 1001: NTSC rates stay exact
        if self._fps == 0:
            raise MediaError(f"fps: got {fps!r}, expected at least 0.001")
        if size is not None and min(size) < 1:
            raise MediaError(f"size: got {size!r}, expected (height, width) of at least 1 pixel")
        self.frames = 0
        self.notes: list[str] = []
        self.codec: str | None = None
        self._size = size
        self._sink: Sink | None = None
        self._temp: Path | None = None
        self._atomic: AbstractContextManager[Path] | None = None

    def __enter__(self) -> VideoWriter:
        self._atomic = atomic_path(self.path)
        with media_errors(self.path, "written"):
            self._temp = self._atomic.__enter__()
        return self

    def write(self, frames: Frames) -> None:
        """Append frames, uint8 `[n, H, W, 3]` (n may be 0), NumPy or torch on any device."""
        if self._temp is None:
            raise MediaError(f"{self.path}: write() outside of 'with VideoWriter(...)'")
        block = self._checked(frames)
        with media_errors(self.path, "written"):
            for frame in block:
                if self._sink is None:
                    self._sink = self._open(self._temp, block.shape[1:3])
                self._sink.write(np.ascontiguousarray(frame))
                self.frames += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._atomic is not None
        atomic, self._atomic, self._temp = self._atomic, None, None
        failure = error
        if failure is None:
            try:
                self._finish()
            except BaseException as own:
                failure = own
        if failure is not None and self._sink is not None:
            self._sink.abort()
        with media_errors(self.path, "written"):
            atomic.__exit__(type(failure) if failure else None, failure, trace)
            if failure is not None and failure is not error:
                raise failure

    def _finish(self) -> None:
        if self._sink is None:
            raise MediaError(f"{self.path}: got no frames, expected at least 1")
        self._sink.finish()
        self.notes += self._sink.notes

    def _open(self, temp: Path, size: tuple[int, int]) -> Sink:
        module, name = _SINKS[self.path.suffix.lower()]
        sink: Sink = getattr(importlib.import_module(module), name)(temp, size, self._fps)
        self.codec = sink.codec
        return sink

    def _checked(self, frames: Any) -> np.ndarray:
        if isinstance(frames, torch.Tensor):
            frames = frames.detach().cpu()
            kind = str(frames.dtype).removeprefix("torch.")
        elif isinstance(frames, np.ndarray):
            kind = frames.dtype.name
        else:
            got = type(frames).__name__
            raise MediaError(f"frames: got {got}, expected a NumPy array or a torch tensor")
        shape = list(frames.shape)
        if len(shape) != 4 or shape[3] != 3 or 0 in shape[1:]:
            raise MediaError(f"frames: got shape {shape}, expected [n, H, W, 3]")
        if kind != "uint8":
            raise MediaError(f"frames: got dtype {kind}, expected uint8")
        size = (shape[1], shape[2])
        if self._size is not None and size != tuple(self._size):
            height, width = self._size
            raise MediaError(
                f"frames: got {size[0]} x {size[1]} (H x W) after frame {self.frames}, "
                f"expected {height} x {width} for the whole file"
            )
        self._size = size
        return frames.numpy() if isinstance(frames, torch.Tensor) else frames


def write_video(
    frames: Frames | Iterable[Frames], path: str | os.PathLike[str], fps: float = 16
) -> VideoWriter:
    """Write uint8 `[n, H, W, 3]` frames, one array or blocks of them as they come, to `path`.

    Returns the closed writer, which tells `frames`, `codec` and `notes`. Errors are those of
    `VideoWriter`; an exception of the iterator leaves no file either.
    """
    blocks = [frames] if isinstance(frames, np.ndarray | torch.Tensor) else frames
    with VideoWriter(path, fps) as writer:
        for block in blocks:
            writer.write(block)
    return writer
