"""A rollout on the GPU: one graph, no synchronisation, and no second cache."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

from vidk.rollout import Session

from .models import gpu_model, gpu_prompt, gpu_session

FRAMES = 30


def rollout(session: Session) -> Tensor:
    """Fill the cache, wrap around, switch the prompt and recache; denoising steps re-run."""
    blocks = [b.latents for b in session.generate(FRAMES + 6)]
    session.set_prompt(*gpu_prompt(session.model, seed=1), recache=True)
    blocks += [b.latents for b in session.generate(3)]
    return torch.cat(blocks, dim=1)


@dataclass
class Compiled:
    """A compiled rollout and what compiling it left behind."""

    session: Session
    latents: Tensor
    source: str
    graphs: int
    breaks: int


@pytest.fixture(scope="module")
def compiled(gpu: None) -> Iterator[Compiled]:
    torch._dynamo.reset()
    counters.clear()
    session = gpu_session(gpu_model(), FRAMES, compile=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        latents, sources = run_and_get_code(rollout, session)
    graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    yield Compiled(session, latents, "\n".join(sources), graphs, breaks)
    torch._dynamo.reset()


def test_one_graph_without_recompiles(compiled: Compiled) -> None:
    assert (compiled.graphs, compiled.breaks) == (1, 0)


def test_compiled_is_eager_but_for_rounding(compiled: Compiled) -> None:
    eager = rollout(gpu_session(gpu_model(), FRAMES)).float()
    error = (compiled.latents.float() - eager).norm() / eager.norm()
    assert error <= 3e-2, f"relative error {error:.2g}"


def test_generated_code_holds_no_second_cache(compiled: Compiled) -> None:
    assert "vidk.qk_norm_rope_kv_write" in compiled.source
    shapes = re.findall(r"empty_strided_cuda\w*\(\(([\d, ]+)\)", compiled.source)
    sizes = [math.prod(int(n) for n in shape.split(",") if n.strip()) for shape in shapes]
    assert sizes, "no allocation was found: has the generated code changed its form?"
    one_layer = compiled.session.cache.k[0].numel()
    assert max(sizes) < one_layer / 4
    # Nor does a kernel read a cache: `numel` of every generated kernel is that of activations.
    numels = [int(n) for n in re.findall(r"xnumel\s*=\s*(\d+)", compiled.source)]
    assert numels and max(numels) < one_layer / 4


@pytest.mark.parametrize("kind", ["eager", "compiled"])
def test_no_synchronisation(kind: str, request: pytest.FixtureRequest) -> None:
    if kind == "compiled":
        session = request.getfixturevalue("compiled").session
    else:
        session = gpu_session(gpu_model(), 9)
        list(session.generate(6))
    torch.cuda.set_sync_debug_mode("error")
    try:
        blocks = list(session.generate(9))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(blocks) == 3 and all(b.latents.isfinite().all() for b in blocks)
    assert all(b.seconds > 0 for b in blocks)


def test_constant_memory() -> None:
    """Nothing that is allocated in one block outlives the next ones."""
    session = gpu_session(gpu_model(), 9)
    held, peaks = [], []
    for _ in session.generate(60):
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_allocated())
        peaks.append(torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()
    assert len(set(held[6:])) == 1 and len(set(peaks[6:])) == 1
