"""A sharded rollout, for the processes and for the test that compares."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tiny import tiny_model, tiny_prompt
from vidk.cache import KVCache
from vidk.cli.report import GraphCount
from vidk.models import CausalWan
from vidk.parallel import Exchange, choose_sharding, make_exchange
from vidk.rollout import Session

SIZE = (6, 10)  # 15 tokens a frame: 2, 4 and 8 ranks divide neither that nor a block's 45
CHANNELS = 48


def model_of(heads: int, channels: int = CHANNELS) -> CausalWan:
    return tiny_model(num_heads=heads, dim=channels)


@functools.cache
def exchange(
    ranks: int, heads: int, *, channels: int = CHANNELS, **options: Any
) -> Exchange | None:
    """Return this rank's part of a sharding among the first ranks; every rank calls this."""
    sharding = choose_sharding(
        model_of(heads, channels).config, ranks=ranks, frame_tokens=SIZE[0] * SIZE[1] // 4,
        frames=3, itemsize=4, **options,
    )  # fmt: skip
    return make_exchange(sharding, range(ranks))


def rollout(
    model: CausalWan, *, compile: bool | Mapping[str, Any] = False, **options: Any
) -> Tensor:
    """Fill, wrap around a sink, switch the prompt and recache."""
    options = {"frames": 6, "sink": 1, **options}
    session = Session(model, *tiny_prompt(model), SIZE, seed=3, compile=compile, **options)
    blocks = [b.latents for b in session.generate(9)]
    session.set_prompt(*tiny_prompt(model, seed=1, tokens=5), recache=True)
    blocks += [b.latents for b in session.generate(3)]
    return torch.cat(blocks, dim=1)


def digest(x: Tensor) -> str:
    return hashlib.sha256(x.numpy().tobytes()).hexdigest()


def sharded_rollout(
    ranks: int,
    heads: int,
    pattern: str | None,
    kind: str | None,
    options: dict[str, Any],
    channels: int = CHANNELS,
) -> tuple[Tensor | None, str, str] | None:
    """Return rank 0's video, every rank's digest of it, and what the planner said."""
    part = exchange(ranks, heads, channels=channels, pattern=pattern, kind=kind)
    if part is None:
        return None
    model = model_of(heads, channels)
    model.parallelize(part)
    video = rollout(model, **options)
    return None if part.layout.rank else video, digest(video), str(part.sharding)


class Counted(TorchDispatchMode):
    """Counts what collectives send to other ranks, and keeps the order of ops."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.messages = 0
        self.ops: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        self.ops.append(name)
        if name == "_c10d_functional::all_to_all_single":
            x, outgoing, incoming, _ = args
            assert outgoing == incoming == [1] * x.size(0)
            self.bytes += x.nbytes // len(x) * (len(x) - 1)
            self.messages += len(x) - 1
        elif name == "_c10d_functional::all_gather_into_tensor":
            x, ranks, _ = args
            self.bytes += x.nbytes * (ranks - 1)
            self.messages += ranks - 1
        else:
            assert not name.startswith("_c10d_functional") or name.endswith("wait_tensor"), name
            assert not name.startswith("c10d::"), name
        return func(*args, **(kwargs or {}))


def counted_forwards(
    ranks: int,
    heads: int,
    pattern: str,
    kind: str,
    options: Mapping[str, Any] | None = None,
    channels: int = CHANNELS,
) -> Any:
    """Return the sharding, and what each forward of a rollout sent; one count a forward."""
    part = exchange(ranks, heads, channels=channels, pattern=pattern, kind=kind)
    if part is None:
        return None
    model = model_of(heads, channels)
    model.parallelize(part)
    session = Session(model, *tiny_prompt(model), SIZE, frames=6, sink=1, **(options or {}))
    forward, counts = session._forward, []

    def counting(*args: Any) -> Tensor:
        with Counted() as count:
            flow = forward(*args)
        counts.append((count.bytes, count.messages, count.ops))
        return flow

    session._forward = counting
    for _ in session.generate(12):
        pass
    return part.sharding, counts


def compiled_rollout(
    ranks: int,
    heads: int,
    backend: str,
    options: Mapping[str, Any] | None = None,
    channels: int = CHANNELS,
) -> Any:
    """Return graphs, breaks and recompiles of a compiled rollout, and its distance from eager."""
    part = exchange(ranks, heads, channels=channels)
    if part is None:
        return None
    model = model_of(heads, channels)
    model.parallelize(part)
    torch._dynamo.reset()
    graphs = GraphCount()
    options = options or {}
    compiled = rollout(model, compile={"backend": backend, "dynamic": False}, **options)
    return graphs.result(), (compiled - rollout(model, **options)).abs().max().item()


def rank_cache(ranks: int, heads: int, options: Mapping[str, Any], channels: int) -> Any:
    """Return the first head that a rank owns, its cache's bytes, and its order of channels."""
    part = exchange(ranks, heads, channels=channels)
    if part is None:
        return None
    model = model_of(heads, channels)
    model.parallelize(part)
    cache = model.new_cache(*SIZE, 6, **options)
    first = part.layout.rank % part.sharding.head_ranks * part.local_heads
    return first, cache_bytes(cache), cache.perm


def cache_bytes(cache: KVCache) -> int:
    """Return the bytes of all that a cache keeps."""
    return sum(getattr(cache, name).nbytes for name in cache.kind.stored(cache.sizes))
