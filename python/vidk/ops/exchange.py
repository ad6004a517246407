"""The two local sides of the sequence->head exchange: pack to send, unpack what was received."""

from __future__ import annotations

import torch
from torch import Tensor

from vidk.ops import _check
from vidk.ops._library import define

PACK_SCHEMA = (
    "qk_norm_rope_pack(Tensor? q, Tensor? k, Tensor? v, Tensor? q_weight, Tensor? k_weight, "
    "float eps, Tensor frame_pos, Tensor time_freqs, Tensor space_freqs, SymInt height, "
    "SymInt width, SymInt ranks, *, SymInt token_offset=0, SymInt? slice_tokens=None) -> Tensor"
)
UNPACK_SCHEMA = (
    "unpack_kv_write(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, "
    "Tensor frame_slot, SymInt frame_tokens, SymInt tokens, *, SymInt? slice_tokens=None) -> ()"
)


def _given(**tensors: Tensor | None) -> list[tuple[str, Tensor]]:
    return [(name, x) for name, x in tensors.items() if x is not None]


def _pack_fake(
    q: Tensor | None,
    k: Tensor | None,
    v: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    frame_pos: Tensor,
    time_freqs: Tensor,
    space_freqs: Tensor,
    height: int,
    width: int,
    ranks: int,
    *,
    token_offset: int = 0,
    slice_tokens: int | None = None,
) -> Tensor:
    op = "qk_norm_rope_pack"
    given = _given(q=q, k=k, v=v)
    _check.check(len(given) > 0, op, "q", "None", "at least one of q, k and v")
    name, x = given[0]
    _check.activation(op, name, x)
    for other, y in given[1:]:
        _check.like(op, other, y, name, x)
    normed = (("q_weight", "q", q, q_weight), ("k_weight", "k", k, k_weight))
    for arg, of, t, w in normed:
        _check.check(t is None or w is not None, op, arg, "None", f"a weight, as {of} is given")
        _check.check(t is not None or w is None, op, arg, "a tensor", f"None, as {of} is not given")
    for arg, of, t, w in normed:
        if t is not None and w is not None:
            _check.norm_weight(op, arg, w, of, t)
    _check.check(eps >= 0, op, "eps", f"{eps}", "a value of at least 0")
    _check.int_vector(op, "frame_pos", frame_pos, name, x)
    _check.rope_tables(op, name, x, time_freqs, space_freqs, height, width)
    _check.shard(op, height, width, token_offset, slice_tokens)
    batch, tokens, heads, dim = x.shape
    _check.check(
        ranks >= 1 and heads % ranks == 0,
        op,
        "ranks",
        f"{ranks}",
        f"a number of ranks that divides the {heads} heads of {name}",
        "exchange among fewer ranks, or gather k and v",
    )
    return x.new_empty((ranks, len(given), batch, tokens, heads // ranks, dim))


def _unpack_fake(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    frame_slot: Tensor,
    frame_tokens: int,
    tokens: int,
    *,
    slice_tokens: int | None = None,
) -> None:
    op = "unpack_kv_write"
    _check.received(op, "k", k)
    _check.received(op, "v", v)
    _check.shaped_like(op, "v", v, "k", k)
    _check.typed_like(op, "v", v, "k", k)
    _check.activation(op, "k_cache", k_cache)
    ranks, batch, shard, heads, dim = k.shape
    _check.check(
        k_cache.size(0) == batch and k_cache.size(2) == heads and k_cache.size(3) == dim,
        op,
        "k_cache",
        f"shape {_check.shape_of(k_cache)}",
        f"[B, S_cap, H / P, D] with the B, H / P and D of k {_check.shape_of(k)}",
    )
    _check.typed_like(op, "k_cache", k_cache, "k", k)
    _check.like(op, "v_cache", v_cache, "k_cache", k_cache)
    _check.int_vector(op, "frame_slot", frame_slot, "k", k)
    _check.check(
        frame_tokens >= 1, op, "frame_tokens", f"{frame_tokens}", "at least 1 token a frame"
    )
    _check.check(
        tokens >= 0 and tokens <= frame_slot.size(0) * frame_tokens,
        op,
        "tokens",
        f"{tokens}",
        f"from 0 to the tokens of {frame_slot.size(0)} frames of {frame_tokens}",
    )
    if slice_tokens is None:
        _check.check(
            tokens <= ranks * shard,
            op,
            "tokens",
            f"{tokens}",
            f"at most the {ranks * shard} that {ranks} ranks hold",
        )
        return
    _check.check(
        slice_tokens >= 1 and slice_tokens <= frame_tokens and slice_tokens * ranks >= frame_tokens,
        op,
        "slice_tokens",
        f"{slice_tokens}",
        f"from frame_tokens / P, rounded up, to frame_tokens for {ranks} ranks and frames of "
        f"{frame_tokens}",
    )
    frames = (tokens + frame_tokens - 1) // frame_tokens
    _check.check(
        frames * slice_tokens <= shard,
        op,
        "k",
        f"{shard} tokens a rank",
        f"a slice of {slice_tokens} tokens of each of {frames} frames",
    )


define(PACK_SCHEMA, _pack_fake)
define(UNPACK_SCHEMA, _unpack_fake)


def qk_norm_rope_pack(
    q: Tensor | None,
    k: Tensor | None,
    v: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    frame_pos: Tensor,
    time_freqs: Tensor,
    space_freqs: Tensor,
    height: int,
    width: int,
    ranks: int,
    *,
    token_offset: int = 0,
    slice_tokens: int | None = None,
) -> Tensor:
    """Normalise and rotate a rank's q and k, and pack them and v by the ranks that own the heads.

    A rank holds some tokens of the block with all their heads; after the exchange it holds all
    tokens with some heads. RMSNorm needs all heads and RoPE only the token's place in the block, so
    both come first, in the pass that packs. Any of q, k and v may be None: one call for all is one
    message; a call for v, one for k and one for q, in this order, let each exchange run while the
    next projection is computed. Norm and rounding are those of `qk_norm_rope_kv_write`, places
    those of `rope_3d`; a padding token, past the last frame, is normalised and not rotated.

    Parameters
    ----------
    q, k, v : `[B, S, H, D]` float32, bfloat16 or float16, any strides with contiguous D; D even;
        or None. S is the same on every rank, padding tokens included.
    q_weight, k_weight : `[H * D]`, contiguous, the dtype of q; None where q or k is.
    eps : added to the mean square.
    frame_pos : `[F]` int32, table row of each frame of the whole block.
    time_freqs, space_freqs : float32 tables, see `rope_3d`.
    height, width : tokens in a column and in a row of one latent frame.
    ranks : P, which divides H; heads `r * H / P` and on go to rank r.
    token_offset, slice_tokens : which of the block's tokens these are, see `rope_3d`.

    Returns
    -------
    `[P, n, B, S, H / P, D]`, contiguous, with the n given tensors in the order q, k, v: one chunk a
    rank, as `all_to_all_single` with equal splits takes it.

    Raises
    ------
    RuntimeError
        If a shape, dtype, stride or device does not fit, P does not divide H, or (CPU) a position
        is past the table.

    Source: Causal-RoPE SP, arXiv 2603.06664; the exchange of DeepSpeed Ulysses, arXiv 2309.14509.
    """
    return torch.ops.vidk.qk_norm_rope_pack(
        q,
        k,
        v,
        q_weight,
        k_weight,
        eps,
        frame_pos,
        time_freqs,
        space_freqs,
        height,
        width,
        ranks,
        token_offset=token_offset,
        slice_tokens=slice_tokens,
    )


def unpack_kv_write(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    frame_slot: Tensor,
    frame_tokens: int,
    tokens: int,
    *,
    slice_tokens: int | None = None,
) -> None:
    """Write the k and v that all ranks sent to the frame slots of a head-sharded cache, in place.

    Token `j` of rank `r` is token `g = (j // c) * n + r * c + j % c` of the block, with
    `n = frame_tokens` and `c = slice_tokens` (contiguous shards: `g = r * S_r + j`): what the rank
    rotated with `token_offset = r * c`. It goes to row `frame_slot[g // n] * n + g % n` of the
    cache. Padding is skipped: `g >= tokens`, and what a slice has past its frame. q needs no such
    op: attention to a cache treats each query by itself, in whatever order they come.

    Parameters
    ----------
    k, v : `[P, B, S_r, H / P, D]` float32, bfloat16 or float16, contiguous.
    k_cache, v_cache : `[B, S_cap, H / P, D]`, the dtype of `k`, any strides with contiguous D.
        Mutated.
    frame_slot : `[F]` int32, slot of each frame of the block; all distinct.
    frame_tokens : tokens of one latent frame.
    tokens : tokens of the block, without padding; at most `F * frame_tokens` and what the ranks
        hold.
    slice_tokens : tokens of each frame that a rank holds, for spatial slices of every frame: from
        `frame_tokens / P`, rounded up, to `frame_tokens`.

    Raises
    ------
    RuntimeError
        If a shape, dtype, stride or device does not fit, or (CPU) a slot is out of range or named
        twice, or the tensors overlap in memory. Nothing has been written then. On other devices a
        write out of range is skipped.

    Source: the head-sharded cache of DeepSpeed Ulysses, arXiv 2309.14509, by slots.
    """
    torch.ops.vidk.unpack_kv_write(
        k, v, k_cache, v_cache, frame_slot, frame_tokens, tokens, slice_tokens=slice_tokens
    )
