"""CUDA graphs: captured once, replayed with other data at the same addresses, bits as in eager."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.helpers import ints
from tests.ops.samples import outputs, overload
from vidk.ops.registry import OPS, Args

from .helpers import SMALL, gpu_call, same_bits
from .models import SIZE, gpu_model, gpu_prompt


def variant(op: str, seed: int) -> Args:
    """Return a call with other numbers and other indices than another seed's."""
    generator = torch.Generator().manual_seed(seed)
    args, kwargs = OPS[op].sample(SMALL, torch.bfloat16, "cpu", generator)
    other = {
        "frame_pos": torch.randperm(64, generator=generator)[: SMALL.frames].int(),
        "frame_slot": torch.randperm(SMALL.cache_frames, generator=generator)[: SMALL.frames].int(),
        "kv_len": ints((360, 0, 1, 177)[seed]),
        "context_lens": ints((11, 0, 64, 1)[seed]),
    }
    names = [a.name for a in overload(op)._schema.arguments]
    args = tuple(other.get(n, x) for n, x in zip(names, args, strict=False))
    return args, kwargs


@pytest.mark.parametrize("op", OPS)
def test_every_op(op: str) -> None:
    args, kwargs = gpu_call(variant(op, 0))
    overload(op)(*args, **kwargs)  # loads its code, which no capture may do
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = outputs(overload(op)(*args, **kwargs))
    for seed in (1, 2, 3, 0):
        fresh, _ = gpu_call(variant(op, seed))
        for x, y in zip(args, fresh, strict=True):
            if isinstance(x, Tensor):
                x.copy_(y)
        graph.replay()
        expected = outputs(overload(op)(*fresh, **kwargs))
        for a, b in zip(captured, expected, strict=True):
            assert same_bits(a, b)
        for x, y in zip(args, fresh, strict=True):
            if isinstance(x, Tensor):
                assert same_bits(x, y)


@torch.no_grad()
def test_seven_blocks_of_a_model() -> None:
    """The cache fills, wraps around its sink and is overwritten, all in one captured graph."""
    model = gpu_model()
    context = model.new_context()
    model.encode_text(*gpu_prompt(model), context)
    replayed, eager = (model.new_cache(*SIZE, 9, sink=1) for _ in range(2))
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (1, 3, model.config.in_channels, *SIZE)
    latents = torch.zeros(shape, dtype=torch.bfloat16, device="cuda")
    timesteps = torch.zeros(1, 3, device="cuda")

    replayed.place(0, 3)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        model(latents, timesteps, replayed, context)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        flow = model(latents, timesteps, replayed, context)

    for block in range(7):
        replayed.place(3 * block, 3)
        eager.place(3 * block, 3)
        for timestep in (1000.0, 625.0, 0.0):
            latents.normal_(generator=generator)
            timesteps.fill_(timestep)
            graph.replay()
            expected = model(latents, timesteps, eager, context)
            assert flow.abs().max() > 0
            assert same_bits(flow, expected), f"block {block}, timestep {timestep:g}"
    for name in ("k", "v", "frame_pos", "frame_slot", "kv_len"):
        assert same_bits(getattr(replayed, name), getattr(eager, name)), name
