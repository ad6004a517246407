"""The public form of the model step against vidk on the same weights."""

import pytest
import torch

from tests.bench.helpers import MACHINE, machine
from vidk.bench import public_model
from vidk.bench.baselines import Mismatch
from vidk.bench.cases import SHAPES
from vidk.bench.end_to_end import TOLERANCE, Step, affordable_layers, run_end_to_end, step_flops
from vidk.bench.public_model import PublicForm
from vidk.bench.timer import Clock


def step(dtype, **changes):
    options = {"layers": 2, "device": "cpu", "clock": Clock("cpu"), "budget_s": 0.1}
    options |= {"limit_s": 1.0, "repeat": 2, "machine": MACHINE}
    return run_end_to_end("tiny", dtype=dtype, **(options | changes))


def test_document(tiny_document):
    end = tiny_document["end_to_end"]
    assert (end["shape"], end["config"], end["layers"]) == ("tiny", "tiny", 2)
    assert set(end["seconds"]) == {"public", "public_vidk_linears", "vidk_compiled"}
    assert end["speedup_over_public"]["median"] > 0
    assert end["speedup_over_public_vidk_linears"]["n"] == end["seconds"]["public"]["n"]
    assert max(end["check"]["relative_l2_error"].values()) <= end["check"]["tolerance"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forms_agree(dtype, light):
    end = step(dtype)
    assert max(end["check"]["relative_l2_error"].values()) <= TOLERANCE[dtype]


def test_wrong_rotation_stops_the_run(monkeypatch, light):
    def unrotated(head_dim, device):
        return torch.ones(1024, head_dim // 2, dtype=torch.complex128)

    monkeypatch.setattr(public_model, "public_freqs", unrotated)
    with pytest.raises(Mismatch, match=r"vidk_compiled differs .* nothing was timed"):
        step(torch.float32)


@torch.no_grad()
def test_public_cache_rolls():
    made = Step(SHAPES["tiny"], 2, torch.float32, "cpu")
    old = made.cache.k.clone()
    form = PublicForm(made.model, made.context, made.cache, 6)
    form(made.latents, made.timesteps)
    n = 3 * made.cache.frame_tokens
    assert torch.equal(form.k[:, :, :n], old[:, :, n:])
    assert not torch.equal(form.k[:, :, n:], old[:, :, n:])
    assert torch.equal(made.cache.k, old)


@torch.no_grad()
def test_both_caches_hold_the_same_frames():
    made = Step(SHAPES["tiny"], 2, torch.float32, "cpu")
    form = PublicForm(made.model, made.context, made.cache, 6)
    form(made.latents, made.timesteps)
    made.cache.place(6, 3)
    made.model(made.latents, made.timesteps, made.cache, made.context)
    n = 3 * made.cache.frame_tokens
    ours = torch.cat([made.cache.k[:, :, n:], made.cache.k[:, :, :n]], dim=2)
    torch.testing.assert_close(ours, form.k, rtol=1e-4, atol=1e-4)


def test_layers_follow_the_matmul_rate():
    shape = SHAPES["1.3b-480p"]
    linears, attentions = step_flops(shape.model, shape.block)
    # The arithmetic of the 1.3B model: 390 GFLOP in linear layers and 283 in attention.
    assert (round(linears / 1e9), round(attentions / 1e9)) == (390, 284)
    assert affordable_layers(shape, torch.bfloat16, machine(1e12), 240) == 4
    assert affordable_layers(shape, torch.bfloat16, machine(60e9, emulated=6e9), 240) == 1
    assert affordable_layers(shape, torch.float32, machine(60e9, emulated=6e9), 240) == 3
