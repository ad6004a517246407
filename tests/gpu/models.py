"""A tiny model on the GPU, with heads of 128 so that it runs the kernels that a real one runs."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.tiny import tiny_model, tiny_prompt
from vidk.models import CausalWan
from vidk.rollout import Session

SIZE = (8, 12)


def gpu_model() -> CausalWan:
    """Return a model of two layers of two heads in bfloat16."""
    return tiny_model(dim=256, ffn_dim=256).to("cuda", torch.bfloat16)


def gpu_prompt(model: CausalWan, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a prompt on the GPU."""
    embeds, lens = tiny_prompt(model, seed)
    return embeds.cuda(), lens.cuda()


def gpu_session(model: CausalWan, frames: int, *, compile: bool = False) -> Session:
    """Return a session with a window of `frames` and one sink frame."""
    return Session(model, *gpu_prompt(model), SIZE, frames=frames, sink=1, compile=compile)
