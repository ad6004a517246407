"""One step of the model: the public op sequence against vidk compiled, on the same weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vidk.bench.baselines import COMPILE_ERRORS, Mismatch, compile_reason
from vidk.bench.cases import BLOCK_FRAMES, CACHE_FRAMES, SHAPES, ModelShape
from vidk.bench.machine import Machine
from vidk.bench.public_model import PublicForm
from vidk.bench.timer import Clock, Thunk, interleave, ratio, summarize
from vidk.cache import KVCache
from vidk.models import CausalWan, TextContext
from vidk.models.config import WanConfig
from vidk.models.layers import linear
from vidk.ops.registry import BlockShape

# Relative L2 error of the flow between two forms that round in different places.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
DEFAULT_LAYERS = 4
TIMESTEP = 937.5


def step_flops(config: WanConfig, block: BlockShape) -> tuple[int, int]:
    """Return the FLOPs of one layer's linear layers and of its two attentions, per step."""
    linears = 2 * block.tokens * (6 * config.dim**2 + 2 * config.dim * config.ffn_dim)
    keys = block.kv_frames * block.frame_tokens + config.text_len
    return linears, 4 * block.tokens * keys * config.dim


def affordable_layers(
    shape: ModelShape, dtype: torch.dtype, machine: Machine, limit_s: float
) -> int:
    """Return 4 layers, or fewer where the public form would take too long for a check and a round.

    Its linear layers run at the rate of the dtype, which some CPUs emulate.
    """
    linears, attentions = step_flops(shape.model, shape.block)
    public = linears / machine.matmul[dtype].median + attentions / machine.flops_per_s
    others = 2 * (linears + attentions) / machine.flops_per_s
    return max(1, min(DEFAULT_LAYERS, int(limit_s / (2 * (public + others)))))


class Step:
    """A model with random weights, and the inputs of a new block on a full window of 6 frames."""

    def __init__(self, shape: ModelShape, layers: int, dtype: torch.dtype, device: str) -> None:
        self.config = dataclasses.replace(shape.model, num_layers=layers)
        block = shape.block
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = CausalWan(self.config).to(dtype).to(device).eval()
            for name, parameter in self.model.named_parameters():
                if name.endswith("modulation"):
                    parameter.copy_(torch.randn(parameter.shape) / self.config.dim**0.5)
            _, ph, pw = self.config.patch_size
            size = (shape.height * ph, shape.width * pw)
            latents = torch.randn(1, BLOCK_FRAMES, self.config.in_channels, *size)
            self.latents = latents.to(device, dtype)
            self.cache = self._full_cache(size)
            self.context = self._prompt(min(block.text_tokens, self.config.text_len))
        self.timesteps = torch.full((1, BLOCK_FRAMES), TIMESTEP, device=device)

    def _full_cache(self, size: tuple[int, int]) -> KVCache:
        cache = self.model.new_cache(*size, CACHE_FRAMES, block_frames=BLOCK_FRAMES)
        for start in range(0, CACHE_FRAMES, BLOCK_FRAMES):
            cache.place(start, BLOCK_FRAMES)
        for layer in (*cache.k, *cache.v):
            layer.copy_(torch.randn(layer.shape))
        return cache

    def _prompt(self, tokens: int) -> TextContext:
        context = self.model.new_context()
        weight = self.model.patch_embedding.weight
        embeds = torch.randn(1, self.config.text_len, self.config.text_dim)
        embeds[:, tokens:] = 0
        self.model.encode_text(
            embeds.to(weight.device, weight.dtype),
            torch.tensor([tokens], dtype=torch.int32, device=weight.device),
            context,
        )
        return context

    def forms(self) -> dict[str, Thunk]:
        """Return the three forms; each call is a step that starts the block at frame 6."""
        publics = {
            "public": PublicForm(self.model, self.context, self.cache, CACHE_FRAMES, F.linear),
            "public_vidk_linears": PublicForm(
                self.model, self.context, self.cache, CACHE_FRAMES, linear
            ),
        }
        self.cache.place(CACHE_FRAMES, BLOCK_FRAMES)
        compiled = torch.compile(self.model, fullgraph=True)
        clean = torch.tensor(False)

        def vidk() -> Tensor:
            return compiled(self.latents, self.timesteps, self.cache, self.context, clean)

        def call(public: PublicForm) -> Thunk:
            return lambda: public(self.latents, self.timesteps)

        return {name: call(p) for name, p in publics.items()} | {"vidk_compiled": vidk}


def flow_error(got: Tensor, expected: Tensor) -> float:
    """Return the relative L2 error."""
    return float((got.float() - expected.float()).norm() / expected.float().norm())


def _flow(form: Thunk) -> Tensor:
    try:
        flow = form()
    except COMPILE_ERRORS as error:
        raise ValueError(
            f"vidk bench: end to end: the model cannot be compiled ({compile_reason(error)})"
        ) from error
    assert isinstance(flow, Tensor)
    return flow


@torch.no_grad()
def run_end_to_end(
    shape_name: str,
    *,
    layers: int | None,
    dtype: torch.dtype,
    device: str,
    machine: Machine,
    clock: Clock,
    budget_s: float,
    limit_s: float,
    repeat: int | None,
) -> dict[str, Any]:
    """Check that the three forms agree, then time them in interleaved rounds."""
    shape = SHAPES[shape_name]
    chosen = layers or affordable_layers(shape, dtype, machine, limit_s)
    forms = Step(shape, chosen, dtype, device).forms()
    flows = {name: _flow(form) for name, form in forms.items()}
    errors = {
        name: flow_error(flows[name], flows["public_vidk_linears"])
        for name in ("public", "vidk_compiled")
    }
    for name, error in errors.items():
        # Written so that a NaN fails.
        if not error <= TOLERANCE[dtype]:
            raise Mismatch(
                f"vidk bench: end to end: {name} differs from the public op sequence by "
                f"{error:.1e} (relative L2), expected at most {TOLERANCE[dtype]:.1e}; nothing "
                "was timed"
            )
    samples = interleave(forms, clock, budget_s=budget_s, repeat=repeat)
    linears, attentions = step_flops(shape.model, shape.block)
    flops = chosen * (linears + attentions)
    vidk = samples["vidk_compiled"]
    return {
        "shape": shape_name,
        "config": shape.config,
        "layers": chosen,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device,
        "sizes": dataclasses.asdict(shape.block),
        "flops": flops,
        "seconds": {name: summarize(s).to_json() for name, s in samples.items()},
        "flops_per_s": summarize([flops / t for t in vidk]).to_json(),
        "speedup_over_public": ratio(samples["public"], vidk).to_json(),
        "speedup_over_public_vidk_linears": ratio(samples["public_vidk_linears"], vidk).to_json(),
        "check": {"relative_l2_error": errors, "tolerance": TOLERANCE[dtype]},
    }
