"""Reading golden files, and the order of frames in the reference's cache."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from vidk.cache import KVCache


@dataclass(frozen=True)
class Golden:
    """Parameters and tensors of one file."""

    params: dict[str, Any]
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def weights(self) -> dict[str, Tensor]:
        """Weights under the source's parameter names, float32."""
        return {k[2:]: v.float() for k, v in self.tensors.items() if k.startswith("w.")}


def read(path: Path) -> Golden:
    """Read a file; its own metadata hold the parameters where it has any."""
    with safe_open(path, "pt") as f:
        params = json.loads((f.metadata() or {}).get("params", "{}"))
        return Golden(params, {k: f.get_tensor(k) for k in f.keys()})  # noqa: SIM118


def close(got: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Assert the largest absolute error, in float64."""
    assert got.shape == expected.shape, f"{what}: {list(got.shape)} != {list(expected.shape)}"
    error = (got.double() - expected.double()).abs().max().item() if got.numel() else 0.0
    assert error <= tolerance, f"{what}: error {error:.3g} > {tolerance:.3g}"


def reference_frames(global_end: int, local_end: int, sink: int, frame_tokens: int) -> list[int]:
    """Return the frames in the reference's cache in its order: the sink, then the last ones."""
    last, held = global_end // frame_tokens, local_end // frame_tokens
    first = min(sink, held)
    return [*range(first), *range(last - (held - first), last)]


def check_cache(
    cache: KVCache, layer: int, k: Tensor, v: Tensor, frames: list[int], k_tol: float, v_tol: float
) -> None:
    """Compare a layer's slots with the reference's rows, frame by frame."""
    n = cache.frame_tokens
    held = cache.policy.frame_in
    for row, frame in enumerate(frames):
        if frame not in held:
            continue
        ours = slice(held.index(frame) * n, (held.index(frame) + 1) * n)
        theirs = slice(row * n, (row + 1) * n)
        close(cache.k[layer, :, ours], k[:, theirs], k_tol, f"layer {layer} frame {frame} k")
        close(cache.v[layer, :, ours], v[:, theirs], v_tol, f"layer {layer} frame {frame} v")


def bits(x: Tensor) -> Tensor:
    """Return 16-bit floats as ordered integers, so that a difference of 1 is 1 ulp."""
    raw = x.view(torch.int16).int()
    return torch.where(raw < 0, -32768 - raw, raw)
