"""`vidk::attention` and `vidk::cross_attention`."""

from __future__ import annotations

import torch
from torch import Tensor

from vidk.ops import _check
from vidk.ops._library import define

SCHEMA = (
    "attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor kv_len, *, "
    "float? scale=None) -> (Tensor, Tensor)"
)
CROSS_SCHEMA = (
    "cross_attention(Tensor q, Tensor k, Tensor v, Tensor context_lens, *, "
    'str pad="trained", float? scale=None) -> Tensor'
)
PADS = ("trained", "mask")


def _fake(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, kv_len: Tensor, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    op = "attention"
    _check.activation(op, "q", q)
    _check.cache(op, "k_cache", k_cache, "q", q)
    _check.like(op, "v_cache", v_cache, "k_cache", k_cache)
    _length_vector(op, "kv_len", kv_len, q, 1, "1 element")
    return q.new_empty(q.shape), q.new_empty((q.size(0), q.size(2), q.size(1)), dtype=torch.float32)


def _length_vector(op: str, arg: str, x: Tensor, q: Tensor, size: int, expected: str) -> None:
    _check.int_vector(op, arg, x, "q", q)
    _check.check(x.size(0) == size, op, arg, f"{x.size(0)} elements", expected)


def _cross_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context_lens: Tensor,
    *,
    pad: str = "trained",
    scale: float | None = None,
) -> Tensor:
    op = "cross_attention"
    _check.activation(op, "q", q)
    _check.cache(op, "k", k, "q", q)
    _check.like(op, "v", v, "k", k)
    _length_vector(op, "context_lens", context_lens, q, q.size(0), "one length for each batch row")
    _check.check(pad in PADS, op, "pad", f"'{pad}'", "'trained' or 'mask'")
    return q.new_empty(q.shape)


define(SCHEMA, _fake)
define(CROSS_SCHEMA, _cross_fake)


def attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    kv_len: Tensor,
    *,
    scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend to the first `kv_len` cached tokens, without a mask.

    Parameters
    ----------
    q : `[B, S, H, D]` float32, bfloat16 or float16, any strides with contiguous D.
    k_cache, v_cache : `[B, S_cap, H, D]`, the dtype of q, any strides with contiguous D.
    kv_len : `[1]` int32 on the device of q: how many cached tokens are valid, 0 to `S_cap`.
    scale : factor of the logits; default `1 / sqrt(D)`.
    return_lse : also return the log-sum-exp of the scaled logits.

    Returns
    -------
    `[B, S, H, D]`, contiguous, the dtype of q; zeros where `kv_len` is 0. With `return_lse` also
    `[B, H, S]` float32, natural logarithm, -inf where `kv_len` is 0.

    Raises
    ------
    RuntimeError
        If a shape, dtype, stride or device does not fit, or (CPU) `kv_len` is out of range.

    Source: flash attention, arXiv 2205.14135; the read of Self-Forcing's cache.
    """
    out, lse = torch.ops.vidk.attention(q, k_cache, v_cache, kv_len, scale=scale)
    return (out, lse) if return_lse else out


def cross_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context_lens: Tensor,
    *,
    pad: str = "trained",
    scale: float | None = None,
) -> Tensor:
    """Attend to text keys whose tail is padding.

    Wan is trained with zero-padded text and no mask, so every padded row becomes one and the same
    key and value. `pad="trained"` folds those rows into the first of them with `log(n_pad)` added
    to its logit, which is exactly the unmasked result; it relies on rows `context_lens[b]` and
    beyond being equal. `pad="mask"` leaves them out.

    Parameters
    ----------
    q : `[B, S, H, D]` float32, bfloat16 or float16, any strides with contiguous D.
    k, v : `[B, L, H, D]`, the dtype of q, any strides with contiguous D.
    context_lens : `[B]` int32: real text tokens of each batch row, 0 to L.
    pad : "trained" or "mask".
    scale : factor of the logits; default `1 / sqrt(D)`.

    Returns
    -------
    `[B, S, H, D]`, contiguous, the dtype of q; zeros where no key is left.

    Raises
    ------
    RuntimeError
        If a shape, dtype, stride or device does not fit, `pad` is unknown, or (CPU) a length is
        out of range.

    Source: Wan 2.1 text cross-attention (`context_lens=None`).
    """
    return torch.ops.vidk.cross_attention(q, k, v, context_lens, pad=pad, scale=scale)
