"""Blocks of whole models with random weights on a GPU: `python -m vidk.bench.gpu_model --json OUT`.

A block is 4 forwards of 3 latent frames at 480 x 832 pixels. The first block attends to 3 frames,
the sixth to 18, as in a video of 5 seconds (21 latent frames, no eviction).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vidk.bench.gpu_ops import command
from vidk.bench.machine import environment
from vidk.bench.public_model import PublicForm
from vidk.bench.report import align, number
from vidk.bench.timer import Clock, Thunk, summarize
from vidk.models import CONFIGS, CausalWan, TextContext
from vidk.models.config import WanConfig

SCHEMA = 1
FORWARDS, BLOCK_FRAMES, VIDEO_FRAMES, TEXT_TOKENS = 4, 3, 21, 70
LATENT_SIZE = (60, 104)
ROUNDS = 5
# Of the 14B model's 40 equal layers: their ratio needs no more, and weights are made in no time.
LARGE_LAYERS = 10
Span = tuple[float, float]


class Model:
    """A model with random weights, its cache and its inputs, all made on the device."""

    def __init__(
        self, config: WanConfig, size: tuple[int, int], dtype: torch.dtype, device: str
    ) -> None:
        with torch.device("meta"):
            model = CausalWan(config)
        self.model = model.to(dtype).to_empty(device=device).eval().requires_grad_(False)
        generator = torch.Generator(device).manual_seed(0)
        for name, parameter in self.model.named_parameters():
            parameter.normal_(std=0.02, generator=generator)
            if name.endswith("weight") and parameter.dim() == 1:
                parameter.add_(1)  # of a norm
        self.cache = self.model.new_cache(*size, VIDEO_FRAMES, block_frames=BLOCK_FRAMES)
        self.context = self._prompt(dtype, device, generator)
        shape = (1, BLOCK_FRAMES, config.in_channels, *size)
        self.latents = torch.randn(shape, dtype=dtype, device=device, generator=generator)
        self.timesteps = torch.full((1, BLOCK_FRAMES), 625.0, device=device)
        self.clean = torch.tensor(False)

    def _prompt(self, dtype: torch.dtype, device: str, generator: torch.Generator) -> TextContext:
        config, context = self.model.config, self.model.new_context()
        tokens = min(TEXT_TOKENS, config.text_len)
        embeds = torch.zeros(1, config.text_len, config.text_dim, dtype=dtype, device=device)
        embeds[:, :tokens].normal_(generator=generator)
        lens = torch.tensor([tokens], dtype=torch.int32, device=device)
        self.model.encode_text(embeds, lens, context)
        return context

    def fill(self, blocks: int) -> None:
        """Put random keys and values of so many blocks in front of the next one."""
        self.cache.reset()
        for i in range(blocks + 1):
            self.cache.place(i * BLOCK_FRAMES, BLOCK_FRAMES)
        self.cache.k.normal_()
        self.cache.v.normal_()

    def forward(self, call: Callable[..., Tensor]) -> Tensor:
        """Run one step of the block that the cache is placed on."""
        return call(self.latents, self.timesteps, self.cache, self.context, self.clean)


def block_of(model: Model, call: Callable[..., Tensor]) -> Thunk:
    """Return the forwards of one block."""

    def block() -> None:
        for _ in range(FORWARDS):
            model.forward(call)

    return block


def busy_share(kernels: Sequence[Span]) -> float:
    """Return the share of the time between the first start and the last end that has a kernel."""
    busy, reached = 0.0, min(start for start, _ in kernels)
    begin = reached
    for start, end in sorted(kernels):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy / (reached - begin)


def kernel_spans(call: Thunk) -> list[Span]:
    """Return start and end, in microseconds, of all that a call has the device do."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        call()
        torch.cuda.synchronize()
    # Annotations, as compiled regions have them, are no work though they lie on the device's line.
    return [
        (e.time_range.start, e.time_range.end)
        for e in seen.events() or ()
        if str(e.device_type).endswith("CUDA") and not e.is_user_annotation
    ]


def measure_blocks(
    model: Model, clock: Clock, spans: Callable[[Thunk], list[Span]]
) -> dict[str, Any]:
    """Time the first and the sixth block, eager and compiled, and the gaps between kernels."""
    compiled = torch.compile(model.model, fullgraph=True)
    result: dict[str, Any] = {}
    for name, before in (("first block", 0), ("sixth block", 5)):
        model.fill(before)
        entry: dict[str, Any] = {"kv_frames": (before + 1) * BLOCK_FRAMES, "seconds": {}}
        for form, call in (("eager", model.model), ("compiled", compiled)):
            block = block_of(model, call)
            block()
            entry["seconds"][form] = summarize([clock(block) for _ in range(ROUNDS)]).to_json()
            entry.setdefault("busy_share", {})[form] = busy_share(spans(block))
        medians = {form: t["median"] for form, t in entry["seconds"].items()}
        entry["compiled_over_eager"] = medians["eager"] / medians["compiled"]
        result[name] = entry
    return result


def measure_public(model: Model, clock: Clock) -> dict[str, Any]:
    """Time one step on a full window of 21 frames: the public op sequence, and vidk compiled."""
    blocks = VIDEO_FRAMES // BLOCK_FRAMES
    model.fill(blocks - 1)
    public = PublicForm(model.model, model.context, model.cache, VIDEO_FRAMES)
    model.cache.place(VIDEO_FRAMES, BLOCK_FRAMES)
    compiled = torch.compile(model.model, fullgraph=True)
    forms: dict[str, Thunk] = {
        "public": lambda: public(model.latents, model.timesteps),
        "eager": lambda: model.forward(model.model),
        "compiled": lambda: model.forward(compiled),
    }
    seconds = {}
    for name, form in forms.items():
        form()
        seconds[name] = summarize([clock(form) for _ in range(ROUNDS)]).to_json()
    return {
        "layers": model.model.config.num_layers,
        "kv_frames": VIDEO_FRAMES,
        "seconds": seconds,
        "speedup_over_public": seconds["public"]["median"] / seconds["compiled"]["median"],
    }


def run(
    device: str,
    clock: Clock,
    spans: Callable[[Thunk], list[Span]],
    *,
    small: WanConfig = CONFIGS["wan-1.3b"],
    large: WanConfig = CONFIGS["wan-14b"],
    size: tuple[int, int] = LATENT_SIZE,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Any]:
    """Return the document."""
    blocks = measure_blocks(Model(small, size, dtype, device), clock, spans)
    torch._dynamo.reset()
    layers = min(LARGE_LAYERS, large.num_layers)
    cut = dataclasses.replace(large, num_layers=layers)
    public = measure_public(Model(cut, size, dtype, device), clock)
    return {
        "schema": SCHEMA,
        "environment": environment(device),
        "forwards": FORWARDS,
        "blocks": blocks,
        "public": public,
    }


def table(document: dict[str, Any]) -> str:
    """Return the document for reading."""
    rows = [("block", "eager ms", "compiled ms", "over eager", "busy eager", "busy compiled")]
    for name, entry in document["blocks"].items():
        times = [number(1e3 * entry["seconds"][f]["median"]) for f in ("eager", "compiled")]
        busy = [f"{100 * entry['busy_share'][f]:.1f}%" for f in ("eager", "compiled")]
        rows.append((name, *times, f"{entry['compiled_over_eager']:.2f}x", *busy))
    public = document["public"]
    steps = [("form", "ms")]
    steps += [(n, number(1e3 * t["median"])) for n, t in public["seconds"].items()]
    return "\n\n".join(
        [
            f"1.3B-shaped, random weights, {document['forwards']} forwards a block:",
            align(rows, text_columns=1),
            f"14B-shaped, {public['layers']} layers, one step on {public['kv_frames']} frames: "
            f"compiled {public['speedup_over_public']:.2f}x over the public op sequence",
            align(steps, text_columns=1),
        ]
    )


def main() -> int:
    """Measure this machine's GPU."""
    return command(lambda: run("cuda", Clock("cuda"), kernel_spans), table)


if __name__ == "__main__":
    sys.exit(main())
