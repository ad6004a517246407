"""Golden files made with diffusers' Wan transformer: names, model, cache, padded text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vidk
from tests.golden.files import Golden, check_cache, close, read, reference_frames
from vidk.cache import KVCache
from vidk.models import CausalWan, TextContext, WanConfig
from vidk.models.names import rename


def load(folder: Path, text: Tensor) -> CausalWan:
    """Build the model of a folder; its weights carry diffusers' names."""
    meta = json.loads((folder / "meta.json").read_text())
    config = WanConfig.from_diffusers(meta["config"], text_len=text.size(1))
    (path,) = folder.glob("weights*.safetensors")
    state = {rename(k, "diffusers", "original"): v.float() for k, v in read(path).tensors.items()}
    model = CausalWan(config).eval()
    model.load_state_dict(state)
    return model


def context_of(model: CausalWan, text: Tensor) -> TextContext:
    """Encode padded text; the padding is what is zero at the end of a row."""
    lens = (text != 0).any(-1).sum(-1).int()
    context = model.new_context(text.size(0))
    model.encode_text(text, lens, context)
    return context


def frames_first(latents: Tensor) -> Tensor:
    """`[B, C, F, h, w]` to `[B, F, C, h, w]` and back."""
    return latents.transpose(1, 2)


@torch.no_grad()
def check_bidirectional(folder: Path, golden: Golden) -> None:
    for case in sorted({k.split(".")[0] for k in golden.tensors}):
        latents = frames_first(golden[f"{case}.in.latents"])
        text = golden[f"{case}.in.text"]
        model = load(folder, text)
        cache = model.new_cache(
            *latents.shape[3:],
            latents.size(1),
            batch=latents.size(0),
            block_frames=latents.size(1),
        )
        cache.place(0, latents.size(1))
        if f"{case}.in.timestep_per_frame" in golden:
            t = golden[f"{case}.in.timestep_per_frame"].float()
        else:
            t = golden[f"{case}.in.timestep"].float()[:, None].expand(latents.shape[:2])
        flow = model(latents, t, cache, context_of(model, text))
        close(frames_first(flow), golden[f"{case}.out.sample"], 5e-5, case)


@torch.no_grad()
def check_causal(folder: Path, golden: Golden, p: dict[str, Any]) -> None:
    text = golden["in.text"]
    model = load(folder, text)
    context = context_of(model, text)
    first = frames_first(golden["c0.s0.in.latents"])
    frames = p["cache_tokens"] // p["frame_tokens"]
    cache = model.new_cache(
        *first.shape[3:],
        frames,
        sink=p["sink_size"],
        batch=first.size(0),
        block_frames=p["frames_per_chunk"],
    )
    for chunk in range(p["chunks"]):
        cache.place(chunk * p["frames_per_chunk"], p["frames_per_chunk"])
        for step, timestep in enumerate(p["timesteps_per_chunk"]):
            x = frames_first(golden[f"c{chunk}.s{step}.in.latents"])
            t = torch.full(x.shape[:2], float(timestep))
            flow = model(x, t, cache, context)
            name = f"c{chunk}.s{step}"
            close(frames_first(flow), golden[f"{name}.out.flow"], 5e-5, name)
        valid, end = (int(golden[f"c{chunk}.cache.{x}"]) for x in ("valid_tokens", "global_end"))
        assert int(cache.kv_len) == valid
        _check_layers(cache, golden, chunk, reference_frames(end, valid, p["sink_size"],
                                                             p["frame_tokens"]))  # fmt: skip


def _check_layers(cache: KVCache, golden: Golden, chunk: int, held: list[int]) -> None:
    for layer in range(cache.k.size(0)):
        if f"c{chunk}.cache.k{layer}" in golden:
            k, v = (golden[f"c{chunk}.cache.{x}{layer}"] for x in "kv")
            check_cache(cache, layer, k, v, held, 5e-6, 5e-6)


def check_padding(golden: Golden) -> None:
    q, k, v = golden["q"], golden["k"], golden["v"]
    lens = golden["context_lens"].int()
    for pad, name in {"trained": "out_unmasked", "mask": "out_masked"}.items():
        close(vidk.cross_attention(q, k, v, lens, pad=pad), golden[name], 2e-6, name)


def test_golden_diffusers(diffusers_case: tuple[Path, str]) -> None:
    folder, name = diffusers_case
    golden = read(folder / f"{name}.safetensors")
    case = json.loads((folder / "meta.json").read_text())["cases"][name]
    if "chunks" in case:
        check_causal(folder, golden, case)
    elif "context_lens" in golden:
        check_padding(golden)
    elif any(k.endswith("out.sample") for k in golden.tensors):
        check_bidirectional(folder, golden)
    else:
        pytest.fail(f"a golden case of an unknown kind: {name}")
