"""What a rollout holds in memory: weights, cache and the activations of one block."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.tiny import tiny_prompt
from vidk.models import CausalWan
from vidk.rollout import Session


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that ops have made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.users: dict[int, int] = {}
        self.now = self.peak = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {
            x.untyped_storage().data_ptr()
            for x in tree_leaves((args, kwargs))
            if isinstance(x, torch.Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.numel():
                self._track(x, inputs)
        return out

    def _track(self, x: torch.Tensor, inputs: set[int]) -> None:
        key, size = x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()
        if key in inputs and key not in self.users:
            return
        if key not in self.users:
            self.users[key] = 0
            self.now += size
            self.peak = max(self.peak, self.now)
            self.largest = max(self.largest, size)
        self.users[key] += 1
        weakref.finalize(x, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self.users[key] -= 1
        if not self.users[key]:
            del self.users[key]
            self.now -= size


def test_fifty_blocks_in_constant_memory(model: CausalWan) -> None:
    session = Session(model, *tiny_prompt(model), (4, 6), frames=40, sink=1)
    hidden = 18 * model.config.dim * 4
    ffn = hidden * model.config.ffn_dim // model.config.dim
    peaks, held = [], []
    with LiveBytes() as live:
        for block in session.generate(150):
            assert block.latents.shape[1] == 3
            peaks.append(live.peak)
            held.append(live.now)
            live.peak = live.now
    assert len(peaks) == 50
    assert max(peaks[15:]) == min(peaks[15:])
    assert max(held[15:]) == min(held[15:])
    cache = session.cache.k.numel() * 4
    assert live.largest < cache / 4
    assert max(peaks) < 20 * hidden + 4 * ffn
