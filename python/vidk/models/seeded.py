"""A model with random weights: the same on every machine, for trying things out and for timing."""

from __future__ import annotations

import hashlib
import math
import os
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from tqdm import tqdm

from vidk.models.checkpoint import assign
from vidk.models.config import WanConfig
from vidk.models.wan import CausalWan

_CHUNK = 1 << 20
# The last matrix of each branch of a layer.
_RESIDUAL = (".o.weight", ".ffn.2.weight")


def meta_model(config: WanConfig) -> CausalWan:
    """Return the model on the meta device: every shape, no memory."""
    with torch.device("meta"):
        return CausalWan(config)


def seeded_model(
    config: WanConfig,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = False,
) -> CausalWan:
    """Return a model in evaluation mode whose weights depend on config and seed only.

    Matrices have variance `1 / fan_in`, less for those that add to the residual stream, so that
    activations neither grow nor vanish with depth; norms are the identity. Memory is that of one
    copy of the weights in `dtype`, and weights of two dtypes are roundings of the same numbers.

    Parameters
    ----------
    config : sizes of the model.
    dtype, device : of the weights.
    seed : of the random numbers.
    progress : show a progress bar on a terminal.
    """
    model = meta_model(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}

    def make(name: str) -> Tensor:
        gain = 1 / math.sqrt(config.num_layers) if name.endswith(_RESIDUAL) else 1.0
        return _weight(name, shapes[name], gain, dtype, seed).to(device)

    order = sorted(shapes, key=lambda name: -shapes[name].numel())
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        bar = tqdm(
            pool.map(make, order),
            total=len(order),
            desc="weights",
            unit="tensor",
            leave=False,
            disable=None if progress else True,
        )
        state = dict(zip(order, bar, strict=True))
    assign(model, state)
    return model.eval()


def _weight(name: str, shape: torch.Size, gain: float, dtype: torch.dtype, seed: int) -> Tensor:
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=dtype)
    if len(shape) == 1:
        return torch.ones(shape, dtype=dtype)
    fan_in = shape[-1] if name.endswith("modulation") else math.prod(shape[1:])
    bound = gain * math.sqrt(3 / fan_in)
    word = hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(word, "little", signed=True))
    weight = torch.empty(shape, dtype=dtype)
    # Uniform rather than normal: its bits are the same on every CPU.
    for part in weight.view(-1).split(_CHUNK):
        part.copy_(torch.empty(part.shape).uniform_(-bound, bound, generator=generator))
    return weight
