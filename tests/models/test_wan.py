"""The causal Wan model."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.tiny import tiny_model
from vidk.models import CONFIGS, CausalWan, layers
from vidk.rollout import Session

Prompt = tuple[Tensor, Tensor]


def forward(model: CausalWan, prompt: Prompt, clean: bool | None) -> tuple[Tensor, Session]:
    session = Session(model, *prompt, (4, 6))
    session.cache.place(0, 3)
    x = torch.randn(1, 3, 16, 4, 6, generator=torch.Generator().manual_seed(0))
    flag = None if clean is None else torch.tensor(clean)
    with torch.no_grad():
        flow = model(x, torch.full((1, 3), 625.0), session.cache, session.context, flag)
    return flow, session


def test_the_clean_run_leaves_the_same_keys_and_skips_the_rest(
    model: CausalWan, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow, full = forward(model, prompt, None)
    same, _ = forward(model, prompt, False)
    assert torch.equal(flow, same)
    calls: list[str] = []
    last = model.blocks[-1]
    parts = {"head": model.head, "last attention": last.self_attn.o, "last ffn": last.ffn}
    for name, part in parts.items():
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
    nothing, clean = forward(model, prompt, True)
    assert not calls
    assert not nothing.any()
    assert nothing.shape == flow.shape
    assert nothing.stride() == flow.stride()
    assert torch.equal(clean.cache.k, full.cache.k)
    assert torch.equal(clean.cache.v, full.cache.v)


def test_patches_are_the_convolution(model: CausalWan) -> None:
    x = torch.randn(2, 3, 16, 4, 6)
    tokens = model._patchify(x)
    conv = model.patch_embedding(x.transpose(1, 2))
    assert torch.allclose(tokens, conv.permute(0, 2, 3, 4, 1).flatten(2, 3), atol=1e-5)


def test_every_frame_has_its_own_timestep(model: CausalWan, prompt: Prompt) -> None:
    session = Session(model, *prompt, (4, 6))
    session.cache.place(0, 3)
    x = torch.randn(1, 3, 16, 4, 6)
    base, changed = (
        model(x, torch.tensor([[500.0, 500.0, t]]), session.cache, session.context)
        for t in (500.0, 0.0)
    )
    per_frame = (base - changed).abs().amax(dim=(0, 2, 3, 4))
    assert per_frame[2] > 10 * per_frame[:2].max() > 0


def test_linear_in_float32_where_the_cpu_emulates(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, b = (torch.randn(*s).bfloat16() for s in ((5, 64), (32, 64), (32,)))
    monkeypatch.setattr(layers, "EMULATED_ON_CPU", frozenset({torch.bfloat16}))
    wide = layers.linear(x, w, b)
    assert wide.dtype == torch.bfloat16
    assert torch.equal(wide, F.linear(x.float(), w.float(), b.float()).bfloat16())
    monkeypatch.setattr(layers, "EMULATED_ON_CPU", frozenset())
    assert torch.equal(layers.linear(x, w, b), F.linear(x, w, b))


def test_errors(model: CausalWan, prompt: Prompt) -> None:
    session = Session(model, *prompt, (4, 6))
    cases = {
        "latents: got shape [1, 3, 16, 4, 8], expected [B, F, C, h, w] with C, h, w = [16, 4, 6]": (
            lambda: model(
                torch.zeros(1, 3, 16, 4, 8), torch.zeros(1, 3), session.cache, session.context
            )
        ),
        "prompt embeds: got shape [1, 3, 32], expected [B, text_len, text_dim] = [1, 16, 32]": (
            lambda: model.encode_text(torch.zeros(1, 3, 32), prompt[1], session.context)
        ),
        "latent size: got 5 x 6, expected multiples of the patch 2 x 2": (
            lambda: model.new_cache(5, 6, 3)
        ),
        "qk_norm: got False, expected True": (
            lambda: CausalWan(replace(CONFIGS["tiny"], qk_norm=False))
        ),
    }
    for text, call in cases.items():
        with pytest.raises(ValueError, match="vidk.CausalWan: " + re.escape(text)):
            call()
    with pytest.raises(ValueError, match="got 16 channels in and 12 out, expected equal numbers"):
        Session(tiny_model(out_channels=12), *prompt, (4, 6))
