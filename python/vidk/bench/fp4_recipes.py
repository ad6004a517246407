"""Recipes of quantised attention, those of vidk and those to compare with, by their arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vidk.bench.fp4_data import Sample
from vidk.ops.fp4_quantize import fp4_quantize
from vidk.ops.nvfp4 import nvfp4_quantize
from vidk.reference import nvfp4
from vidk.reference.fp4 import RECIPES, TILE, decode_rows, tiles_of, unswizzled

Logits = Callable[[Sample], Tensor]
_BLOCK_Q, _BLOCK_K = 128, 64


def _exact(s: Sample) -> Tensor:
    return s.q @ s.k.transpose(1, 2)


def _rows(x: Tensor, s: Sample, role: str, recipe: str, order: Tensor | None) -> tuple[Tensor, ...]:
    """Quantise `[H, L, D]` as the package does and return the values, and the means if any."""
    tokens = s.frame_tokens if role == "k" else None
    codes, scales, mean = fp4_quantize(
        x.transpose(0, 1)[None], role=role, recipe=recipe, frame_tokens=tokens, perm=order
    )
    rows = tokens or x.size(1)
    values = decode_rows(codes, unswizzled(scales, rows, x.size(1) // rows))[0]
    return (values,) if mean is None else (values, mean[0].float())


def _package(recipe: str) -> Logits:
    def logits(s: Sample) -> Tensor:
        order = s.order if RECIPES[recipe].cross else None
        (q,) = _rows(s.q, s, "q", recipe, order)
        k, *mean = _rows(s.k, s, "k", recipe, order)
        product = q @ k.transpose(1, 2)
        if not mean:
            return product
        token = torch.arange(s.k.size(1))
        tile = token // s.frame_tokens * tiles_of(s.frame_tokens) + token % s.frame_tokens // TILE
        return product + (s.q @ mean[0].transpose(1, 2))[..., tile]

    return logits


def _rounded(x: Tensor, scale: str) -> Tensor:
    return nvfp4.nvfp4_dequantize(
        *(y[0] for y in nvfp4_quantize(x[None].contiguous(), recipe=scale))
    )


def _block_mean(x: Tensor, rows: int) -> Tensor:
    """Return the mean of each run of rows, one for every row."""
    return torch.cat([part.mean(1, keepdim=True).expand_as(part) for part in x.split(rows, 1)], 1)


def _nvfp4(scale: str, *, mean: bool = False) -> Logits:
    def logits(s: Sample) -> Tensor:
        k = s.k - s.k.mean(1, keepdim=True) if mean else s.k
        return _rounded(s.q, scale) @ _rounded(k, scale).transpose(1, 2)

    return logits


def _sage3(scale: str) -> Logits:
    """K less its mean; Q less the mean of 128 rows, whose product with K is not quantised."""

    def logits(s: Sample) -> Tensor:
        k = (s.k - s.k.mean(1, keepdim=True)).transpose(1, 2)
        mean = _block_mean(s.q, _BLOCK_Q)
        k_hat = _rounded(k.transpose(1, 2), scale).transpose(1, 2)
        return _rounded(s.q - mean, scale) @ k_hat + mean @ k

    return logits


def _principal(q: Tensor, k: Tensor) -> Tensor:
    """Return an orthogonal `[H, D, D]` whose leading columns hold most of q and k together."""
    spread = sum(x.transpose(1, 2) @ x / x.square().sum((1, 2))[:, None, None] for x in (q, k))
    assert isinstance(spread, Tensor)
    return torch.linalg.eigh(spread.double()).eigenvectors.flip(-1).float()


def _pca(cross: int) -> Logits:
    """The accurate recipe after a rotation of q and k to their principal axes."""

    def logits(s: Sample) -> Tensor:
        k = s.k - s.k.mean(1, keepdim=True)
        axes = _principal(s.q, k)
        q, k = s.q @ axes, k @ axes
        q_hat, k_hat = _rounded(q, "4/6"), _rounded(k, "4/6")
        top = slice(0, cross)
        q_low, k_low = (_rounded((x - y)[..., top], "4/6") for x, y in ((q, q_hat), (k, k_hat)))
        wide_q = torch.cat([q_hat, q_hat[..., top], q_low], -1)
        wide_k = torch.cat([k_hat, k_low, k_hat[..., top]], -1)
        return wide_q @ wide_k.transpose(1, 2)

    return logits


def _int8(x: Tensor, rows: int) -> Tensor:
    parts = []
    for part in x.split(rows, 1):
        step = part.abs().amax((1, 2), keepdim=True) / 127
        parts.append((part / step).round() * step)
    return torch.cat(parts, 1)


def _sage2(s: Sample) -> Tensor:
    k = _int8(s.k - s.k.mean(1, keepdim=True), _BLOCK_K)
    return _int8(s.q, _BLOCK_Q) @ k.transpose(1, 2)


@dataclass(frozen=True)
class Recipe:
    """`logits`, not scaled, and whether weights and values are FP8; `of_vidk`: a kernel has it."""

    label: str
    logits: Logits
    fp8: bool = False
    of_vidk: bool = False


STUDY: dict[str, Recipe] = {
    "plain": Recipe("NVFP4 plain", _package("plain"), of_vidk=True),
    "plain+fp8pv": Recipe("NVFP4 plain, FP8 PV", _package("plain"), fp8=True, of_vidk=True),
    "4/6": Recipe("NVFP4 4/6", _nvfp4("4/6")),
    "search": Recipe("NVFP4 search", _nvfp4("search")),
    "mean": Recipe("NVFP4, K mean", _nvfp4("plain", mean=True)),
    "default": Recipe("default: 4/6, tile means", _package("default"), of_vidk=True),
    "default+fp8pv": Recipe("default, FP8 PV", _package("default"), fp8=True, of_vidk=True),
    "sage3": Recipe("SageAttention3's Q and K", _sage3("plain")),
    "sage3+4/6": Recipe("the same with 4/6", _sage3("4/6")),
    "accurate": Recipe("accurate: depth 192", _package("accurate"), of_vidk=True),
    "accurate-pca": Recipe("depth 192, PCA axes", _pca(32)),
    "accurate256": Recipe("accurate256: depth 256", _package("accurate256"), of_vidk=True),
    "accurate256-pca": Recipe("depth 256, PCA axes", _pca(64)),
    "mxfp8": Recipe("MXFP8", _package("mxfp8"), of_vidk=True),
    "mxfp8+fp8pv": Recipe("MXFP8, FP8 PV", _package("mxfp8"), fp8=True, of_vidk=True),
    "int8": Recipe("INT8 128/64, K mean", _sage2),
    "fp8pv": Recipe("exact QK, FP8 PV", _exact, fp8=True),
}


def attend(s: Sample, recipe: Recipe | None) -> Tensor:
    """Return attention `[H, Lq, D]` by a recipe, or exactly."""
    logits = (_exact if recipe is None else recipe.logits)(s) / math.sqrt(s.q.size(-1))
    if recipe is None or not recipe.fp8:
        return logits.softmax(-1) @ s.v
    # 2**8 times a weight is at most 256 < 448: nothing saturates.
    weights = torch.exp(logits - logits.amax(-1, keepdim=True)) * 256
    values = nvfp4.e4m3_encode(s.v).float()
    return nvfp4.e4m3_encode(weights).float() @ values / weights.sum(-1, keepdim=True)
