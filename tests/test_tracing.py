"""One graph for everything: counted by Dynamo, read in the generated code, exported, faked."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.tiny import tiny_model, tiny_prompt
from vidk.models import CONFIGS, CausalWan
from vidk.rollout import Session

SIZE = (8, 12)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def rollout(model: CausalWan, compile: bool | dict[str, object]) -> tuple[Tensor, Session]:
    """Fill, wrap twice with a sink, switch the prompt and recache; denoising steps re-run."""
    session = Session(model, *tiny_prompt(model), SIZE, frames=6, sink=1, seed=3, compile=compile)
    blocks = [b.latents for b in session.generate(12)]
    session.set_prompt(*tiny_prompt(model, seed=1, tokens=5), recache=True)
    blocks += [b.latents for b in session.generate(6)]
    return torch.cat(blocks, dim=1), session


@pytest.mark.parametrize("dynamic", [None, True, False])
def test_one_graph_serves_a_whole_rollout(
    dynamic: bool | None, caplog: pytest.LogCaptureFixture
) -> None:
    torch._logging.set_logs(recompiles=True, graph_breaks=True)
    try:
        with caplog.at_level(logging.DEBUG, logger="torch._dynamo"):
            compiled, _ = rollout(tiny_model(), {"dynamic": dynamic})
    finally:
        torch._logging.set_logs()
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert not [r for r in caplog.records if "Recompiling" in r.getMessage()]
    eager, _ = rollout(tiny_model(), compile=False)
    assert (compiled - eager).abs().max() <= 2e-5


def test_a_long_stream_past_the_rope_table_stays_in_its_graph(model: CausalWan) -> None:
    session = Session(model, *tiny_prompt(model), SIZE, frames=6, sink=1, compile=True)
    session.frame = 1019
    eager = Session(model, *tiny_prompt(model), SIZE, frames=6, sink=1)
    eager.frame = 1019
    for ours, plain in zip(session.generate(9), eager.generate(9), strict=True):
        assert torch.allclose(ours.latents, plain.latents, atol=2e-5)
    assert session.frame == 1028
    assert counters["stats"]["unique_graphs"] == 1


def test_a_first_block_of_one_frame_has_the_only_other_graph(model: CausalWan) -> None:
    options = {"frames": 7, "sink": 1, "independent_first_frame": True}
    compiled, eager = (
        Session(model, *tiny_prompt(model), SIZE, compile=flag, **options) for flag in (True, False)
    )
    for ours, plain in zip(compiled.generate(13), eager.generate(13), strict=True):
        assert torch.allclose(ours.latents, plain.latents, atol=2e-5)
    assert counters["stats"]["unique_graphs"] == 2


def test_generated_code_holds_no_second_cache(model: CausalWan) -> None:
    session = Session(model, *tiny_prompt(model), SIZE, frames=60, compile=True)
    _, sources = run_and_get_code(lambda: next(iter(session.generate(3))))
    source = "\n".join(sources)
    assert "vidk.qk_norm_rope_kv_write" in source
    shapes = re.findall(r"empty_strided\w*\(\(([\d, ]+)\)", source)
    sizes = [math.prod(int(n) for n in shape.split(",") if n.strip()) for shape in shapes]
    assert sizes, "no allocation was found: has the generated code changed its form?"
    assert max(sizes) < session.cache.k[0].numel() / 4


class Step(nn.Module):
    """A model with its state, as `torch.export` takes it."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.model, self.cache, self.context = session.model, session.cache, session.context

    def forward(self, latents: Tensor, timesteps: Tensor, clean: Tensor) -> Tensor:
        return self.model(latents, timesteps, self.cache, self.context, clean)


def test_export(model: CausalWan) -> None:
    session = Session(model, *tiny_prompt(model), SIZE)
    session.cache.place(0, 3)
    x, t = torch.randn(1, 3, 16, *SIZE), torch.full((1, 3), 625.0)
    step = Step(session)
    with torch.no_grad():
        program = torch.export.export(step, (x, t, torch.tensor(False)))
        expected = step(x, t, torch.tensor(False))
        keys = session.cache.k.clone()
        exported = program.module()
        assert torch.allclose(exported(x, t, torch.tensor(False)), expected, atol=1e-6)
        assert not exported(x, t, torch.tensor(True)).any()
    assert torch.allclose(dict(exported.named_buffers())["cache.k"], keys, atol=1e-6)
    targets = {str(n.target) for n in program.graph.nodes}
    assert {"vidk.qk_norm_rope_kv_write.default", "vidk.attention.default"} <= targets


def pretend_cuda(module: nn.Module) -> None:
    """Swap every parameter and buffer for a fake one on a GPU; call under `FakeTensorMode`."""
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, x in table.items():
                fake = torch.empty(x.shape, dtype=x.dtype, device="cuda")
                table[name] = nn.Parameter(fake, False) if table is part._parameters else fake


def test_fake_cuda_device() -> None:
    """The model traces for a GPU on a machine that has none."""
    with torch.device("meta"):
        model = CausalWan(CONFIGS["wan-1.3b"]).bfloat16()
    cache, context = model.new_cache(60, 104, 6, sink=1), model.new_context()
    with FakeTensorMode():
        for module in (model, cache, context):
            pretend_cuda(module)
        latents = torch.empty(1, 3, 16, 60, 104, dtype=torch.bfloat16, device="cuda")
        flow = model(latents, torch.empty(1, 3, device="cuda"), cache, context)
    assert flow.device.type == "cuda"
    assert flow.shape == latents.shape
    assert flow.stride() == latents.stride()
    assert flow.dtype == torch.bfloat16
