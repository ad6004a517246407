"""A model so small that whole rollouts run in a test."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vidk.models import CONFIGS, CausalWan


def tiny_model(seed: int = 0, **changes: object) -> CausalWan:
    """Return a two-layer model whose output depends visibly on every input."""
    model = CausalWan(replace(CONFIGS["tiny"], **changes)).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        scale = 0.1 if parameter.dim() > 1 else 0.05
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
        parameter.data += "norm" in name and name.endswith("weight")
    return model.requires_grad_(False)


def tiny_prompt(model: CausalWan, seed: int = 0, tokens: int = 9) -> tuple[Tensor, Tensor]:
    """Return the embeddings `[1, text_len, text_dim]` and length of a random prompt."""
    config = model.config
    embeds = torch.zeros(1, config.text_len, config.text_dim)
    generator = torch.Generator().manual_seed(seed)
    embeds[:, :tokens] = torch.randn(1, tokens, config.text_dim, generator=generator)
    return embeds, torch.tensor([tokens], dtype=torch.int32)
