"""A streaming session: blocks of latents, one after the other, out of one compiled graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vidk.cache import CacheSnapshot
from vidk.models.wan import CausalWan
from vidk.rollout.noise import Noise, SeededNoise
from vidk.rollout.schedule import Schedule, add_noise, x0_from_flow
from vidk.rollout.timing import Stopwatch


@dataclass(frozen=True)
class Block:
    """One generated block.

    `latents` is `[B, F, C, h, w]`, clean, in the dtype of the model; `start_frame` its place in the
    video, in latent frames; `timings` the stopwatch of each forward, the clean re-run last.
    """

    latents: Tensor
    start_frame: int
    timings: tuple[Stopwatch, ...]

    @property
    def forward_seconds(self) -> tuple[float, ...]:
        """Time of each forward; waits for the device."""
        return tuple(t.seconds for t in self.timings)

    @property
    def seconds(self) -> float:
        """Time of all forwards of the block; waits for the device."""
        return sum(self.forward_seconds)


@dataclass(frozen=True)
class SessionSnapshot:
    """The state of a session between two blocks, made by `Session.snapshot`."""

    cache: CacheSnapshot
    history: tuple[tuple[int, Tensor], ...]
    frame: int
    text: tuple[Tensor, Tensor, Tensor]


class Session:
    """Generates a video block by block, and can be spoken to between blocks.

    Parameters
    ----------
    model : the transformer, in evaluation mode and on its device.
    embeds, lens : prompt embeddings `[B, text_len, text_dim]`, zero past each row's length, and
        the lengths `[B]` int32.
    latent_size : height and width of a latent frame.
    frames : capacity of the cache in latent frames: the length of the video for a global cache
        (the default: 21), the window otherwise.
    sink : leading frames that never leave the cache.
    block_frames : latent frames of a block.
    independent_first_frame : the video's first block has a single frame.
    schedule : denoising steps; default 4 steps at shift 5.
    context_noise : timestep of the clean re-run.
    kind, recipe : what the cache keeps, see `vidk.cache.KVCache`.
    seed, noise : seed of the noise, or a source of one's own instead.
    compile : compile the model with `torch.compile(fullgraph=True)`; a mapping is handed to
        `torch.compile` as further options.
    """

    def __init__(
        self,
        model: CausalWan,
        embeds: Tensor,
        lens: Tensor,
        latent_size: tuple[int, int],
        *,
        frames: int = 21,
        sink: int = 0,
        block_frames: int = 3,
        independent_first_frame: bool = False,
        schedule: Schedule | None = None,
        context_noise: float = 0.0,
        kind: str = "plain",
        recipe: str = "default",
        seed: int = 0,
        noise: Noise | None = None,
        compile: bool | Mapping[str, Any] = False,
    ) -> None:
        channels = (model.config.in_channels, model.config.out_channels)
        if channels[0] != channels[1]:
            raise ValueError(
                f"vidk.Session: model: got {channels[0]} channels in and {channels[1]} out, "
                "expected equal numbers: models with extra conditioning channels are not supported"
            )
        self.model = model
        self.schedule = schedule or Schedule()
        self.noise: Noise = noise or SeededNoise(seed)
        self.block_frames = block_frames
        self.independent_first_frame = independent_first_frame
        self.context_noise = context_noise
        self.latent_size = latent_size
        self.batch = embeds.size(0)
        self.cache = model.new_cache(
            *latent_size,
            frames,
            sink=sink,
            batch=self.batch,
            block_frames=block_frames,
            kind=kind,
            recipe=recipe,
        )
        self.context = model.new_context(self.batch)
        model.encode_text(embeds, lens, self.context)
        self.frame = 0
        self._history: dict[int, Tensor] = {}
        self._cancelled = False
        forward: Callable[..., Tensor] = model
        if compile:
            options = dict(compile) if isinstance(compile, Mapping) else {}
            forward = torch.compile(model, fullgraph=True, **options)
        self._forward = forward
        self._clean = {flag: torch.tensor(flag) for flag in (False, True)}

    def generate(
        self, frames: int, *, initial_latents: Tensor | None = None, progress: bool = False
    ) -> Iterator[Block]:
        """Yield the blocks of the next latent frames as they are done.

        A later call goes on where the last one ended. The last block may reach past `frames`.

        Parameters
        ----------
        frames : latent frames to generate, initial latents not counted.
        initial_latents : `[B, F, C, h, w]`, clean latents to continue (an encoded image or video),
            only at the start of a video.
        progress : show a progress bar over the forwards.
        """
        self._cancelled = False
        if initial_latents is not None:
            self.condition(initial_latents)
        sizes = self._block_sizes(frames)
        forwards = len(sizes) * (len(self.schedule.timesteps) + 1)
        with tqdm(total=forwards, unit="forward", disable=not progress) as bar:
            for size in sizes:
                block = self._denoise(size, bar)
                if block is None:
                    return
                yield block

    def cancel(self) -> None:
        """Stop `generate` before its next forward. The unfinished block is done anew next time."""
        self._cancelled = True

    def condition(self, latents: Tensor) -> None:
        """Continue given clean latents `[B, F, C, h, w]`: only the clean run of each block."""
        if self.frame:
            raise ValueError(
                f"vidk.Session: initial latents: got them at frame {self.frame}, expected only at "
                "the start of a video"
            )
        expected = (self.batch, self.model.config.in_channels, *self.latent_size)
        if latents.dim() != 5 or (latents.size(0), *latents.shape[2:]) != expected:
            raise ValueError(
                f"vidk.Session: initial latents: got shape {list(latents.shape)}, expected "
                f"[B, F, C, h, w] with B, C, h, w = {list(expected)}"
            )
        sizes = self._block_sizes(latents.size(1))
        if sum(sizes) != latents.size(1):
            raise ValueError(
                f"vidk.Session: initial latents: got {latents.size(1)} frames, expected whole "
                f"blocks of {self.block_frames}"
                + (" after a first frame" if self.independent_first_frame else "")
            )
        weight = self.model.patch_embedding.weight
        for part in latents.to(weight.device, weight.dtype).split(sizes, dim=1):
            self.cache.place(self.frame, part.size(1))
            self._commit(part)

    def set_prompt(self, embeds: Tensor, lens: Tensor, *, recache: bool = False) -> None:
        """Change the prompt from the next block on.

        By default the cache keeps what it saw under the old prompt, which makes a smooth change.
        `recache` runs the cached frames again under the new prompt, which makes it follow at once.
        """
        self.model.encode_text(embeds, lens, self.context)
        if not recache:
            return
        blocks = sorted(self._history.items())
        self.cache.reset()
        for start, latents in blocks:
            self.cache.place(start, latents.size(1))
            self._run(latents, self.context_noise, clean=True)

    def snapshot(self) -> SessionSnapshot:
        """Copy the state between two blocks."""
        text = (self.context.k.clone(), self.context.v.clone(), self.context.lens.clone())
        history = tuple(self._history.items())
        return SessionSnapshot(self.cache.snapshot(), history, self.frame, text)

    def restore(self, snapshot: SessionSnapshot) -> None:
        """Go back to a snapshot of this session; generation continues from there bit for bit."""
        self.cache.restore(snapshot.cache)
        for buffer, saved in zip(
            (self.context.k, self.context.v, self.context.lens), snapshot.text, strict=True
        ):
            buffer.copy_(saved)
        self._history = dict(snapshot.history)
        self.frame = snapshot.frame

    def _block_sizes(self, frames: int) -> list[int]:
        single = frames > 0 and self.independent_first_frame and self.frame == 0
        return [1] * single + [self.block_frames] * -(-(frames - single) // self.block_frames)

    def _denoise(self, frames: int, bar: tqdm) -> Block | None:
        weight = self.model.patch_embedding.weight
        shape = (self.batch, frames, self.model.config.in_channels, *self.latent_size)
        start = self.frame

        def noise(step: int) -> Tensor:
            drawn = self.noise(start, step, shape).to(weight.dtype)
            return drawn.to(weight.device, non_blocking=True)

        timings = []
        x = noise(0)
        self.cache.place(start, frames)
        sigmas = self.schedule.sigmas
        for step, timestep in enumerate(self.schedule.timesteps):
            if self._cancelled:
                return None
            flow, timing = self._run(x, timestep, clean=False)
            timings.append(timing)
            x = x0_from_flow(flow, x, sigmas[step])
            if step + 1 < len(sigmas):
                x = add_noise(x, noise(step + 1), sigmas[step + 1])
            bar.update()
        if self._cancelled:
            return None
        timings.append(self._commit(x))
        bar.update()
        return Block(x, start, tuple(timings))

    def _commit(self, latents: Tensor) -> Stopwatch:
        """Overwrite the block's keys and values with clean ones and step past it."""
        _, timing = self._run(latents, self.context_noise, clean=True)
        self._history[self.frame] = latents
        held = self.cache.policy.frame_in
        self._history = {
            start: x
            for start, x in self._history.items()
            if any(start + i in held for i in range(x.size(1)))
        }
        self.frame += latents.size(1)
        return timing

    @torch.no_grad()
    def _run(self, x: Tensor, timestep: float, *, clean: bool) -> tuple[Tensor, Stopwatch]:
        timing = Stopwatch(x.device)
        timesteps = torch.full(x.shape[:2], timestep, dtype=torch.float32, device=x.device)
        flow = self._forward(x, timesteps, self.cache, self.context, self._clean[clean])
        timing.stop()
        return flow, timing
