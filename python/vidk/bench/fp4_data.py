"""Queries, keys and values to measure attention recipes on: synthetic, and captured from a model.

The synthetic sets but `randn` are linear maps of smooth random video fields, rotated as Wan rotates
them: a head sees a few dozen latent directions, neighbours in space and time resemble each other.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vidk.cache_kinds import channel_order
from vidk.models.wan import CausalWan
from vidk.reference.fp4 import TILE
from vidk.rollout import Session
from vidk.rope import band_pairs, freq_table
from vidk.text import PromptEmbeds

HEAD_DIM = 128
# Standard deviation of the logits of each head: about 800, 90, 20 and 8 effective keys.
LOGIT_STD = (1.0, 2.0, 3.0, 4.5)
STRUCTURED = ("plain", "biasqk", "sink", "full256", "full128d")
SYNTHETIC = ("randn", *STRUCTURED)


@dataclass(frozen=True)
class Sample:
    """Inputs of attention: `q` `[H, Lq, D]`, `k` and `v` `[H, Lk, D]`, float32, rotated.

    `frame_tokens` keys make a slot; `order` `[H, D]` is that of the channels for the accurate
    recipes.
    """

    name: str
    q: Tensor
    k: Tensor
    v: Tensor
    frame_tokens: int
    order: Tensor


@dataclass(frozen=True)
class Grid:
    """Tokens of a synthetic video: frames, rows, columns."""

    frames: int = 8
    height: int = 16
    width: int = 16

    @property
    def frame_tokens(self) -> int:
        """Tokens of a frame."""
        return self.height * self.width

    @property
    def tokens(self) -> int:
        """Tokens of the video."""
        return self.frames * self.frame_tokens


def _fields(grid: Grid, count: int, generator: torch.Generator) -> Tensor:
    """Return smooth fields `[tokens, count]` of unit variance, each with a length of its own."""
    sizes = (grid.frames, grid.height, grid.width)
    noise = torch.randn((count, *sizes), generator=generator)
    lengths = 2 + 3 * torch.rand(count, generator=generator)
    spectrum = torch.fft.fftn(noise, dim=(1, 2, 3))
    for dim, size in enumerate(sizes, 1):
        frequency = torch.fft.fftfreq(size).view([-1 if i == dim else 1 for i in range(4)])
        spectrum *= torch.exp(-2 * (math.pi * frequency * lengths.view(-1, 1, 1, 1)) ** 2)
    fields = torch.fft.ifftn(spectrum, dim=(1, 2, 3)).real.flatten(1).T
    return (fields - fields.mean(0)) / fields.std(0)


def _rotate(x: Tensor, grid: Grid) -> Tensor:
    """Rotate `[H, tokens, D]` by the position of each token; pairs are interleaved."""
    time, space = band_pairs(x.size(-1))
    token = torch.arange(grid.tokens)
    place = token % grid.frame_tokens
    bands = (
        freq_table(token // grid.frame_tokens, time),
        freq_table(place // grid.width, space),
        freq_table(place % grid.width, space),
    )
    cos, sin = torch.cat(bands, 1).unbind(-1)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def _projected(name: str, grid: Grid, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return q, k and v of a structured set before the rotation."""
    heads = len(LOGIT_STD)
    count = {"full256": 256, "full128d": 128}.get(name, 48)
    fields = _fields(grid, count, generator)
    if name == "full128d":
        fields *= torch.exp(-torch.arange(count) / 32)
    if name == "full256":
        fields += torch.randn(fields.shape, generator=generator)
    maps = torch.randn((3, heads, count, HEAD_DIM), generator=generator)
    q, k, v = (fields @ maps) / fields.square().sum(1).mean().sqrt()
    # A value has a mean that attention cannot get wrong: a plain cosine would flatter.
    v = v + torch.randn((heads, 1, HEAD_DIM), generator=generator)
    return q, k, v


def _biased(q: Tensor, k: Tensor, generator: torch.Generator) -> None:
    """Give eight channels of each head a mean, as trained models have them."""
    for head in range(q.size(0)):
        channels = torch.randperm(HEAD_DIM, generator=generator)[:8]
        for x, size in ((q, 2.4), (k, 4.0)):
            sign = torch.randint(0, 2, (8,), generator=generator) * 2 - 1
            x[head, :, channels] += size * sign


def _draw_to_first_frame(q: Tensor, k: Tensor, grid: Grid, generator: torch.Generator) -> None:
    """Give the first frame's keys what all queries look for, in pairs that hardly rotate."""
    slow = torch.cat([torch.arange(2 * 16, 2 * 22), torch.arange(2 * 37, 2 * 43)])
    direction = torch.randn((q.size(0), slow.numel()), generator=generator)
    direction *= 4 / direction.norm(dim=1, keepdim=True)
    q[:, :, slow] += direction[:, None]
    k[:, : grid.frame_tokens, slow] += direction[:, None]


def synthetic(name: str, grid: Grid | None = None, seed: int = 0) -> Sample:
    """Make one of `SYNTHETIC`.

    `randn`: independent normal q, k, v, as published figures take. `plain`: 48 latent directions.
    `biasqk`: eight channels of q and k with a mean. `sink`: keys of the first frame that draw
    attention. `full256`: 256 directions and noise. `full128d`: 128, of falling strength.
    """
    grid = grid or Grid()
    generator = torch.Generator().manual_seed(seed)
    if name == "randn":
        shape = (3, len(LOGIT_STD), grid.tokens, HEAD_DIM)
        q, k, v = torch.randn(shape, generator=generator)
        return _sample(name, q, k, v, grid.frame_tokens)
    q, k, v = _projected(name, grid, generator)
    if name == "biasqk":
        _biased(q, k, generator)
    if name == "sink":
        _draw_to_first_frame(q, k, grid, generator)
    q, k = _rotate(q, grid), _rotate(k, grid)
    logits = q @ k.transpose(1, 2) / math.sqrt(HEAD_DIM)
    spread = logits.std(-1).mean(-1)
    return _sample(
        name, q * (torch.tensor(LOGIT_STD) / spread)[:, None, None], k, v, grid.frame_tokens
    )


def _sample(name: str, q: Tensor, k: Tensor, v: Tensor, frame_tokens: int) -> Sample:
    tiles = [part - part.mean(1, keepdim=True) for part in k.split(TILE, 1)]
    centred = torch.cat(tiles, 1)
    order = channel_order(q.square().mean(1), centred.square().mean(1))
    return Sample(name, q, k, v, frame_tokens, order)


class _Attention(TorchDispatchMode):
    """Keeps what the last calls of attention were given."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls: deque[tuple[Tensor, ...]] = deque(maxlen=calls)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.vidk.attention.default:
            q, k, v, length = args
            rows = (q, k[:, : int(length)], v[:, : int(length)])
            self.calls.append(tuple(x[0].transpose(0, 1).float().clone() for x in rows))
        return func(*args, **(kwargs or {}))


def captured(
    model: CausalWan, prompt: PromptEmbeds, latent_size: tuple[int, int], *, blocks: int = 4
) -> Sample:
    """Run a rollout and take q, k and v of all layers in the last denoising step of its last block.

    Layers are put side by side as further heads. The channels' order is what `CausalWan.new_cache`
    computes from the weights.
    """
    layers = model.config.num_layers
    session = Session(
        model, prompt.embeds, prompt.context_lens, latent_size, frames=3 * blocks, seed=0
    )
    for _ in session.generate(3 * (blocks - 1)):
        pass
    # The clean run comes last, and has no attention in its last layer.
    clean = layers - 1
    with _Attention(layers + clean) as attention:
        for _ in session.generate(3):
            pass
    steps = list(attention.calls)[:layers]
    q, k, v = (torch.cat(parts) for parts in zip(*steps, strict=True))
    order = torch.cat([block.self_attn.channel_order() for block in model.blocks])
    return Sample("captured", q, k, v, session.cache.frame_tokens, order)
