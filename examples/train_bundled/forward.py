"""The forward of `vidk.CausalWan` with gradients: many blocks of many clips at once.

The product's ops write a KV cache and have no gradient. Here keys are gathered instead: every
instance of a block names the instances it attends to, and the result equals what the product
computes block after block (a test holds the two together).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vidk.models.config import WanConfig
from vidk.models.layers import timestep_embedding
from vidk.rope import band_pairs, freq_table

HIDDEN = -1e4
# Query instances -> key instances.
Plan = Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]


def rope_angles(positions: Tensor, height: int, width: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin `[N, I, F * height * width, 1, head_dim / 2]` of positions `[N, I, F]`."""
    time_pairs, space_pairs = band_pairs(head_dim)
    n, i, f = positions.shape
    time = freq_table(positions.reshape(-1), time_pairs).view(n, i, f, 1, 1, time_pairs, 2)
    rows = freq_table(torch.arange(height), space_pairs)[:, None]
    cols = freq_table(torch.arange(width), space_pairs)[None]
    size = (n, i, f, height, width)
    angles = torch.cat(
        [
            time.expand(*size, -1, -1),
            rows.expand(*size, -1, -1),
            cols.expand(*size, -1, -1),
        ],
        dim=-2,
    ).flatten(2, 4)
    return angles[..., 0].unsqueeze(3), angles[..., 1].unsqueeze(3)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate interleaved pairs of `[N, I, S, H, D]`."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).type_as(x)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)).type_as(x) * weight


def layer_norm(x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return attention `[R, S, H * D]` of `[R, S, H, D]`; bias `[R, 1, 1, L]`."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def hidden_keys(numbers: Tensor, keys: Sequence[Sequence[int]], tokens: int) -> Tensor:
    """Return what hides keys of blocks that come again later: a cache holds a block once.

    `[len(keys) * N, 1, 1, tokens * keys of each]` for the block numbers `[N, I]` of instances.
    """
    rows = []
    for each in keys:
        own = numbers[:, list(each)]
        again = (own[:, :, None] == own[:, None, :]).triu(1).any(2)
        rows.append(torch.where(again, HIDDEN, 0.0).repeat_interleave(tokens, 1))
    return torch.cat(rows)[:, None, None]


def layer_forward(
    p: Mapping[str, Tensor],
    x: Tensor,
    time: Tensor,
    text: Tensor,
    cos: Tensor,
    sin: Tensor,
    hidden: Sequence[Tensor],
    plan: Plan,
    heads: int,
    eps: float,
) -> Tensor:
    """One layer over `[N, I, S, C]`; time `[N, I, 6, C]`, text `[N, I, L, C]`.

    `hidden` has for each group of the plan what is added to its scores, see `hidden_keys`.
    """
    i = x.size(1)
    mod = (p["modulation"] + time)[:, :, :, None]
    shift1, scale1, gate1, shift2, scale2, gate2 = mod.unbind(2)
    y = layer_norm(x, eps) * (1 + scale1) + shift1

    def lin(name: str, t: Tensor) -> Tensor:
        return F.linear(t, p[name + ".weight"], p[name + ".bias"])

    q = rms_norm(lin("self_attn.q", y), p["self_attn.norm_q.weight"], eps)
    k = rms_norm(lin("self_attn.k", y), p["self_attn.norm_k.weight"], eps)
    q, k = (rotate(t.unflatten(3, (heads, -1)), cos, sin) for t in (q, k))
    v = lin("self_attn.v", y).unflatten(3, (heads, -1))
    parts: dict[int, Tensor] = {}
    for (queries, keys), bias in zip(plan, hidden, strict=True):
        # Instances with the same number of keys are one product.
        qs = torch.cat([q[:, j] for j in queries])
        ks, vs = (
            torch.cat([torch.cat([t[:, c] for c in each], 1) for each in keys]) for t in (k, v)
        )
        out = attend(qs, ks, vs, bias).chunk(len(queries))
        parts.update(zip(queries, out, strict=True))
    x = x + lin("self_attn.o", torch.stack([parts[j] for j in range(i)], 1)) * gate1
    y = F.layer_norm(x, x.shape[-1:], p["norm3.weight"], p["norm3.bias"], eps)
    q = rms_norm(lin("cross_attn.q", y), p["cross_attn.norm_q.weight"], eps)
    k = rms_norm(lin("cross_attn.k", text), p["cross_attn.norm_k.weight"], eps)
    v = lin("cross_attn.v", text)
    q, k, v = (t.flatten(0, 1).unflatten(2, (heads, -1)) for t in (q, k, v))
    x = x + lin("cross_attn.o", attend(q, k, v)).view_as(x)
    y = layer_norm(x, eps) * (1 + scale2) + shift2
    y = lin("ffn.2", F.gelu(lin("ffn.0", y), approximate="tanh"))
    return x + y * gate2


class TrainForward:
    """Predicts x0 of `[N, I, F, C, h, w]` noisy latents with the parameters of a `CausalWan`."""

    def __init__(self, config: WanConfig, grid: int, *, compile: bool) -> None:
        self.config, self.grid = config, grid
        self.layer = torch.compile(layer_forward, dynamic=False) if compile else layer_forward

    def __call__(
        self,
        p: Mapping[str, Tensor],
        x: Tensor,
        sigma: Tensor,
        words: Tensor,
        numbers: Tensor,
        plan: Plan,
    ) -> Tensor:
        """Return x0 in float32.

        Parameters
        ----------
        p : parameters by name, in the dtype to compute in.
        x : noisy latents; sigma : `[N, I]`; words : `[N, I, text_len, text_dim]` embeddings;
        numbers : `[N, I]`, which block of the video each instance is.
        """
        config, dtype = self.config, p["head.head.weight"].dtype
        f = x.size(2)
        _, ph, pw = config.patch_size
        h, w = self.grid // ph, self.grid // pw
        t = x.to(dtype).unflatten(5, (-1, pw)).unflatten(4, (-1, ph))  # n i f c y p x q
        t = t.permute(0, 1, 2, 4, 6, 3, 5, 7).flatten(5).flatten(2, 4)
        weight = p["patch_embedding.weight"].flatten(1)
        t = F.linear(t, weight, p["patch_embedding.bias"])

        def mlp(name: str, y: Tensor, act: object, second: int = 2) -> Tensor:
            y = F.linear(y, p[f"{name}.0.weight"], p[f"{name}.0.bias"])
            return F.linear(act(y), p[f"{name}.{second}.weight"], p[f"{name}.{second}.bias"])  # type: ignore[operator]

        emb = timestep_embedding(sigma * 1000, config.freq_dim).to(dtype)
        emb = mlp("time_embedding", emb, F.silu)
        time = F.linear(F.silu(emb), p["time_projection.1.weight"], p["time_projection.1.bias"])
        time = time.unflatten(-1, (6, -1))
        text = mlp("text_embedding", words.to(dtype), lambda y: F.gelu(y, approximate="tanh"))
        positions = numbers[:, :, None] * f + torch.arange(f)
        cos, sin = rope_angles(positions, h, w, config.head_dim)
        hidden = [hidden_keys(numbers, keys, f * h * w).to(dtype) for _, keys in plan]
        for j in range(config.num_layers):
            prefix = f"blocks.{j}."
            own = {k[len(prefix) :]: v for k, v in p.items() if k.startswith(prefix)}
            t = self.layer(own, t, time, text, cos, sin, hidden, plan, config.num_heads, config.eps)
        shift, scale = (p["head.modulation"] + emb[:, :, None]).unbind(2)
        t = layer_norm(t, config.eps) * (1 + scale[:, :, None]) + shift[:, :, None]
        t = F.linear(t, p["head.head.weight"], p["head.head.bias"]).float()
        t = t.unflatten(3, (ph, pw, config.out_channels)).unflatten(2, (f, h, w))
        return t.permute(0, 1, 2, 7, 3, 5, 4, 6).flatten(6, 7).flatten(4, 5)
