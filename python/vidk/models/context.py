"""The text side of a session: cross-attention keys and values, computed once per prompt."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TextContext(nn.Module):
    """Keys and values of the prompt for every layer, in buffers of fixed address.

    Attributes
    ----------
    k, v : `[layers, B, text_len, heads, head_dim]`, filled by `CausalWan.encode_text`.
    lens : `[B]` int32, real text tokens of each batch row; the rest is padding.
    """

    k: Tensor
    v: Tensor
    lens: Tensor

    def __init__(
        self,
        *,
        layers: int,
        batch: int,
        text_len: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        shape = (layers, batch, text_len, heads, head_dim)
        self.register_buffer("k", torch.zeros(shape, dtype=dtype, device=device), persistent=False)
        self.register_buffer("v", torch.zeros(shape, dtype=dtype, device=device), persistent=False)
        lens = torch.zeros(batch, dtype=torch.int32, device=device)
        self.register_buffer("lens", lens, persistent=False)
