"""The exchanges between ranks: functional collectives around the local kernels, traceable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from vidk.cache import KVCache
from vidk.ops.exchange import qk_norm_rope_pack
from vidk.parallel.layout import Layout
from vidk.parallel.planner import Sharding

Projection = Callable[[Tensor], Tensor]


def _all_to_all(x: Tensor, ranks: int, group: str) -> Tensor:
    """Start to send `x[r]` to rank r; `_wait` for what the ranks sent, in their order."""
    rows = [1] * ranks
    return torch.ops._c10d_functional.all_to_all_single(x, rows, rows, group)


def _all_gather(x: Tensor, ranks: int, group: str) -> Tensor:
    """Start to gather all ranks' x along the first dimension; `_wait` for it."""
    return torch.ops._c10d_functional.all_gather_into_tensor(x, ranks, group)


def _wait(x: Tensor) -> Tensor:
    return torch.ops._c10d_functional.wait_tensor(x)


@dataclass(frozen=True)
class Exchange:
    """What one rank of a sharded model does where the whole model would do nothing.

    All state is numbers and names of process groups, so that a compiled graph holds them as
    constants. Nothing is gathered to be rotated, and what the cache holds is never sent again.

    Parameters
    ----------
    sharding : how the ranks share the model.
    layout : the rank's tokens.
    world : name of the process group of all P ranks.
    head_group : of the U ranks that share this rank's queries.
    token_group : of the R ranks that own this rank's heads.
    """

    sharding: Sharding
    layout: Layout
    world: str
    head_group: str
    token_group: str

    @property
    def local_heads(self) -> int:
        """Heads that the rank's cache holds."""
        return self.sharding.heads // self.sharding.head_ranks

    def own_heads(self, x: Tensor) -> Tensor:
        """Return the part of `[layers, H, ...]` of the heads that the rank's cache holds."""
        first = self.layout.rank % self.sharding.head_ranks * self.local_heads
        return x.narrow(1, first, self.local_heads).contiguous()

    def write(
        self,
        x: Tensor,
        projections: tuple[Projection, Projection, Projection],
        weights: tuple[Tensor, Tensor],
        eps: float,
        cache: KVCache,
        layer: int,
        frames: int,
    ) -> Tensor:
        """Cache the rank's heads of the whole block's keys and values.

        V first, then K, then Q: each exchange runs while the next projection is computed.

        Parameters
        ----------
        x : `[B, G, m, C]`, the rank's tokens.
        projections : to q, k and v.
        weights, eps : of the norms of q and k.
        cache, layer : where keys and values go.
        frames : of the block.

        Returns
        -------
        `[U, B, S_r, H / U, D]`, the rotated queries, packed for `queries`.
        """
        to_q, to_k, to_v = projections
        w_q, w_k = weights

        def heads(y: Tensor) -> Tensor:
            return y.flatten(1, 2).unflatten(2, (self.sharding.heads, -1))

        def pack(
            q: Tensor | None = None,
            k: Tensor | None = None,
            v: Tensor | None = None,
            w_q: Tensor | None = None,
            w_k: Tensor | None = None,
        ) -> Tensor:
            return qk_norm_rope_pack(
                q,
                k,
                v,
                w_q,
                w_k,
                eps,
                cache.frame_pos.narrow(0, 0, frames),
                cache.rope.time,
                cache.rope.space,
                cache.height,
                cache.width,
                self.sharding.head_ranks,
                token_offset=self.layout.token_offset(frames),
                slice_tokens=self.layout.slice_tokens,
            ).flatten(0, 1)

        v = self._to_heads(pack(v=heads(to_v(x))))
        k = heads(to_k(x))
        v = self._to_tokens(v)
        k = self._to_heads(pack(k=k, w_k=w_k))
        q = heads(to_q(x))
        k = self._to_tokens(k)
        packed = pack(q=q, w_q=w_q)
        received = self._received(k), self._received(v)
        cache.receive(layer, frames, *received, self.layout.slice_tokens)
        return packed

    def queries(self, packed: Tensor) -> Tensor:
        """Return `[B, U * S_r, H / U, D]`: the rank's heads of its group's queries."""
        q = packed
        if self.sharding.head_ranks > 1:
            q = _wait(self._to_heads(packed))
        return q.transpose(0, 1).flatten(1, 2)

    def outputs(self, out: Tensor) -> Tensor:
        """Return all heads of the rank's tokens `[B, S_r, C]`, of `[B, U * S_r, H / U, D]`."""
        ranks = self.sharding.head_ranks
        parts = out.unflatten(1, (ranks, -1)).transpose(0, 1)  # of each rank's tokens
        if ranks > 1:
            parts = _wait(_all_to_all(parts.contiguous(), ranks, self.head_group))
        return parts.permute(1, 2, 0, 3, 4).flatten(2)  # of each rank's heads

    def gather(self, x: Tensor, frames: int) -> Tensor:
        """Return the block `[B, F, n, C]` on every rank, of the ranks' `[B, G, m, C]`."""
        ranks = self.sharding.ranks
        whole = _wait(_all_gather(x.contiguous(), ranks, self.world))
        return self.layout.join(whole.unflatten(0, (ranks, -1)), frames)

    def _to_heads(self, packed: Tensor) -> Tensor:
        if self.sharding.head_ranks == 1:
            return packed
        return _all_to_all(packed, self.sharding.head_ranks, self.head_group)

    def _to_tokens(self, x: Tensor) -> Tensor:
        if self.sharding.token_ranks == 1:
            return x
        if self.sharding.head_ranks > 1:
            x = _wait(x)
        return _all_gather(x, self.sharding.token_ranks, self.token_group)

    def _received(self, x: Tensor) -> Tensor:
        return x if self.sharding.ranks == 1 else _wait(x)


def make_exchange(sharding: Sharding, ranks: Sequence[int] | None = None) -> Exchange | None:
    """Make the process groups of a sharding; every rank of the world calls this.

    Parameters
    ----------
    sharding : how the ranks share the model.
    ranks : which ranks of the world they are; default: all.

    Returns
    -------
    The rank's part; None for a rank that has none.
    """
    world = dist.group.WORLD
    if world is None:
        raise ValueError("vidk.parallel: group: got no process group, expected an initialised one")
    ranks = list(range(world.size()) if ranks is None else ranks)
    if len(ranks) != sharding.ranks:
        raise ValueError(
            f"vidk.parallel: group: got {len(ranks)} ranks, expected the {sharding.ranks} of the "
            "sharding"
        )

    def own(parts: list[list[int]]) -> str:
        """Make a process group of each part, in one order on all ranks, and name one's own."""
        if len(parts[0]) == 1:
            return ""
        if len(parts[0]) == world.size():
            return world.group_name
        made = [dist.new_group([ranks[part] for part in members]) for members in parts]
        return next((g.group_name for g in made if g is not dist.GroupMember.NON_GROUP_MEMBER), "")

    across, down = sharding.head_ranks, sharding.token_ranks
    every = own([list(range(sharding.ranks))])
    by_heads = own([[r * across + u for u in range(across)] for r in range(down)])
    by_tokens = own([[r * across + u for r in range(down)] for u in range(across)])
    if world.rank() not in ranks:
        return None
    layout = sharding.layout(ranks.index(world.rank()))
    return Exchange(sharding, layout, every, by_heads, by_tokens)
