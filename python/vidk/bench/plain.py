"""RoPE and norm as a good user would write them for `torch.compile`: float32, real, one graph.

They are given what can be computed once per block outside the graph: each token's cos and sin, and
the cache row as a number. (A model that passes such a number compiles a graph for every row.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidk.reference import kv_cache_write_public
from vidk.reference.exchange import pack
from vidk.reference.norm_rope import rms_norm


def rope_3d(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `[B, S, H, D]` by cos and sin `[S, 1, D / 2]`."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return pairs.flatten(-2).type_as(x)


def all_gather_rope(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Rotate into the only chunk of a group of one rank."""
    out.select(0, 0).copy_(rope_3d(x, cos, sin))


def qk_norm_rope_kv_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    row: int,
) -> Tensor:
    """Normalise and rotate q and k, write k and v, return q."""
    q = rope_3d(rms_norm(q.flatten(2), q_weight, eps).view(q.shape), cos, sin)
    k = rope_3d(rms_norm(k.flatten(2), k_weight, eps).view(k.shape), cos, sin)
    kv_cache_write_public(k, v, k_cache, v_cache, row)
    return q


def qk_norm_rope_pack(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    ranks: int,
) -> Tensor:
    """Normalise and rotate q and k, return q, k and v by ranks."""
    q = rope_3d(rms_norm(q.flatten(2), q_weight, eps).view(q.shape), cos, sin)
    k = rope_3d(rms_norm(k.flatten(2), k_weight, eps).view(k.shape), cos, sin)
    return pack([q, k, v], ranks)
