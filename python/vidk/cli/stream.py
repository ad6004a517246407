"""The run itself: blocks out of the session, through the decoder, into the file, with a clock."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

from torch import Tensor

from vidk.cli.plan import Plan, pixel_frames
from vidk.media import VideoWriter, write_latents
from vidk.rollout import Session
from vidk.text import PromptEmbeds
from vidk.vae import Decoder


@dataclass(frozen=True)
class BlockTimes:
    """Seconds that a block took, and what it was.

    `denoise` is all of the model and the sampler, `forwards` its forwards alone, the clean re-run
    last; `decode` and `write` are 0 where nothing was decoded. `kv_frames` latent frames were in
    the cache. `pixel_frames` are those the block stands for, also where the file ends before.
    """

    latent_frames: int
    pixel_frames: int
    kv_frames: int
    forwards: tuple[float, ...]
    denoise: float
    decode: float
    write: float

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return self.denoise + self.decode + self.write


@dataclass(frozen=True)
class Change:
    """From the first block that begins at or after a pixel frame, another prompt holds."""

    frame: int
    prompt: PromptEmbeds


@dataclass
class Run:
    """What a finished run took and wrote."""

    blocks: list[BlockTimes] = field(default_factory=list)
    condition: float = 0.0
    codec: str | None = None
    notes: list[str] = field(default_factory=list)


class Output(Protocol):
    """Where blocks go; `codec` and `notes` are for the user's eyes."""

    @property
    def codec(self) -> str | None: ...

    @property
    def notes(self) -> list[str]: ...

    def add(self, latents: Tensor) -> tuple[float, float]:
        """Take the next latents `[1, F, C, h, w]`; return the seconds to decode and to write."""
        ...


class VideoOutput(AbstractContextManager["VideoOutput"]):
    """Decode the latents and write at most `frames` of their frames to a video or picture file."""

    def __init__(self, path: Path, fps: float, frames: int, decoder: Decoder) -> None:
        self._writer = VideoWriter(path, fps)
        self._left = frames
        self._decoder = decoder
        self._first = True

    def __enter__(self) -> VideoOutput:
        self._writer.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    @property
    def codec(self) -> str | None:
        """Name of the encoder."""
        return self._writer.codec

    @property
    def notes(self) -> list[str]:
        """What the user should know about the file."""
        return self._writer.notes

    def add(self, latents: Tensor) -> tuple[float, float]:
        """See `Output`."""
        begin = time.perf_counter()
        frames = self._decoder.decode(latents, self._first)[0, : self._left].cpu()
        decoded = time.perf_counter()
        self._writer.write(frames)
        self._first = False
        self._left -= len(frames)
        return decoded - begin, time.perf_counter() - decoded


class LatentOutput(AbstractContextManager["LatentOutput"]):
    """Keep the latents, which are small, and write them all at the end."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self.codec: str | None = "safetensors"
        self.notes: list[str] = []
        self._path, self._metadata = path, metadata
        self._blocks: list[Tensor] = []

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            write_latents(self._blocks, self._path, self._metadata)

    def add(self, latents: Tensor) -> tuple[float, float]:
        """See `Output`."""
        self._blocks.append(latents.cpu())
        return 0.0, 0.0


@contextmanager
def cancelled_by_ctrl_c(session: Session) -> Iterator[None]:
    """Let Ctrl-C cancel the session too: Python drops an exception raised in a callback."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def cancel(number: int, frame: FrameType | None) -> None:
        session.cancel()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def stream(
    session: Session,
    plan: Plan,
    output: Output,
    given: Tensor | None,
    changes: Sequence[Change] = (),
    *,
    ratio: int,
    progress: bool,
) -> Run:
    """Generate the blocks of a plan and hand each one to the output as it is done.

    Parameters
    ----------
    session : at the start of a video.
    plan : how many blocks.
    output : opened.
    given : clean latents `[1, plan.given, C, h, w]` that the video begins with.
    changes : of the prompt, in the order of their frames.
    ratio : the decoder's `frames_per_latent`.
    progress : show a progress bar.

    Raises
    ------
    KeyboardInterrupt : the session was cancelled before its last block.
    """
    run = Run()
    begin = time.perf_counter()
    if given is not None:
        session.condition(given)
        run.condition = time.perf_counter() - begin
        output.add(given)
    waiting = deque(changes)

    def follow() -> None:
        while waiting and waiting[0].frame <= pixel_frames(session.frame, ratio):
            prompt = waiting.popleft().prompt
            session.set_prompt(prompt.embeds, prompt.context_lens)

    follow()
    begin = time.perf_counter()
    for block in session.generate(sum(plan.blocks), progress=progress):
        forwards = block.forward_seconds  # waits for the device
        denoise = time.perf_counter() - begin
        decode, write = output.add(block.latents)
        count = block.latents.size(1)
        end = block.start_frame + count
        run.blocks.append(
            BlockTimes(
                latent_frames=count,
                pixel_frames=pixel_frames(end, ratio) - pixel_frames(block.start_frame, ratio),
                kv_frames=session.cache.policy.used,
                forwards=forwards,
                denoise=denoise,
                decode=decode,
                write=write,
            )
        )
        begin = time.perf_counter()
        follow()
    if len(run.blocks) < len(plan.blocks):
        raise KeyboardInterrupt
    return run
