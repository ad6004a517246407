"""`vidk::all_gather_rope`: every rank rotates its tokens, and all ranks get all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vidk.ops import _check
from vidk.ops._library import LIBRARY, define

SCHEMA = (
    "all_gather_rope(Tensor x, Tensor frame_pos, Tensor time_freqs, Tensor space_freqs, "
    "SymInt height, SymInt width, Tensor(a!) out, SymInt rank, str group_name, *, "
    "SymInt? slice_tokens=None, Tensor? peers=None) -> ()"
)
MAX_PEERS = 64
_OP = "all_gather_rope"


def _fake(
    x: Tensor,
    frame_pos: Tensor,
    time_freqs: Tensor,
    space_freqs: Tensor,
    height: int,
    width: int,
    out: Tensor,
    rank: int,
    group_name: str,
    *,
    slice_tokens: int | None = None,
    peers: Tensor | None = None,
) -> None:
    _check.activation(_OP, "x", x)
    _check.int_vector(_OP, "frame_pos", frame_pos, "x", x)
    _check.rope_tables(_OP, "x", x, time_freqs, space_freqs, height, width)
    _check.check(
        out.dim() == 5 and all(m == n for m, n in zip(out.shape[1:], x.shape, strict=True)),
        _OP,
        "out",
        f"shape {_check.shape_of(out)}",
        f"[P, B, S_r, H, D] with the B, S_r, H and D of x {_check.shape_of(x)}",
    )
    _check.typed_like(_OP, "out", out, "x", x)
    _check.dense(_OP, "out", out)
    ranks = out.size(0)
    _check.check(
        rank >= 0 and rank < ranks, _OP, "rank", f"{rank}", f"one of the {ranks} ranks of out"
    )
    _check.frame_slice(_OP, height, width, slice_tokens)
    if peers is not None:
        _check.check(
            ranks <= MAX_PEERS,
            _OP,
            "peers",
            f"{ranks} ranks",
            f"at most {MAX_PEERS} that store into each other's memory",
            "leave peers out",
        )
        _check.shaped(_OP, "peers", peers, [2 * ranks + 1], "[2 * P + 1]")
        dtype = _check.dtype_of(peers)
        _check.check(peers.dtype == torch.int64, _OP, "peers", f"dtype {dtype}", "dtype int64")
        _check.dense(_OP, "peers", peers)
        _check.on_device(_OP, "peers", peers, "x", x)
    elif ranks > 1:
        _check_group(group_name, rank, ranks)


def _check_group(name: Any, rank: int, ranks: int) -> None:
    """Check that a process group is one of so many ranks, of which this process is this one."""
    from torch._C._distributed_c10d import _resolve_process_group

    try:
        group = _resolve_process_group(name)
        found, got = (group.rank(), group.size()), f"rank {group.rank()} of {group.size()} ranks"
    except (KeyError, RuntimeError, ValueError):
        found, got = (-1, 0), "none"
    _check.check(
        found[0] == rank and found[1] == ranks,
        _OP,
        "group_name",
        f"'{name}', {got}",
        f"a process group in which this is rank {rank} of {ranks}",
    )


def _gather(
    x: Tensor,
    frame_pos: Tensor,
    time_freqs: Tensor,
    space_freqs: Tensor,
    height: int,
    width: int,
    out: Tensor,
    rank: int,
    group_name: str,
    *,
    slice_tokens: int | None = None,
    peers: Tensor | None = None,
) -> None:
    """Fill the rank's own chunk, or with `peers` that of all ranks; then the collective."""
    args = (x, frame_pos, time_freqs, space_freqs, height, width, out, rank)
    collective = peers is None and out.dim() == 5 and out.size(0) > 1
    if collective:
        _check_group(group_name, rank, out.size(0))
    # The views of `out` and the collective are no part of what autograd or inference mode watches.
    with torch._C._AutoDispatchBelowADInplaceOrView():
        torch.ops.vidk_local.all_gather_rope(*args, slice_tokens, peers)
        if collective and out.numel() > 0:
            whole = out.flatten(0, 1)
            gathered = torch.ops._c10d_functional.all_gather_into_tensor_out(
                out[rank], out.size(0), group_name, out=whole
            )
            torch.ops._c10d_functional.wait_tensor(gathered)


def register() -> None:
    """Register the op's kernel for the devices that have its local part, once that is loaded.

    The stable ABI cannot name a process group, so the collective is called from Python.
    """
    for key in ("CPU", "CUDA"):
        if torch._C._dispatch_has_kernel_for_dispatch_key("vidk_local::all_gather_rope", key):
            LIBRARY.impl("all_gather_rope", _gather, key)


define(SCHEMA, _fake)
_LOCAL = torch.library.Library("vidk_local", "DEF")
_LOCAL.define(
    "all_gather_rope(Tensor x, Tensor frame_pos, Tensor time_freqs, Tensor space_freqs, "
    "int height, int width, Tensor(a!) out, int rank, int? slice_tokens, Tensor? peers) -> ()"
)


def all_gather_rope(
    x: Tensor,
    frame_pos: Tensor,
    time_freqs: Tensor,
    space_freqs: Tensor,
    height: int,
    width: int,
    out: Tensor,
    rank: int,
    group_name: str,
    *,
    slice_tokens: int | None = None,
    peers: Tensor | None = None,
) -> None:
    """Rotate a rank's tokens of a block and put them into the buffers of all ranks.

    Every rank of the group calls this with its own tokens; then every rank's `out` holds the
    rotated tokens of all. Each rank rotates its own tokens and no others, as `rope_3d` does with
    `token_offset = rank * slice_tokens` (contiguous shards: `rank * S_r`); `unpack_kv_write` takes
    `out` to a cache, without its padding.

    Without `peers` this is `rope_3d` into the rank's chunk of `out`, and an in-place all-gather of
    the group (gloo, NCCL). With `peers`, on GPUs that reach each other's memory, one kernel rotates
    and stores into all buffers, in which it waits until every rank has begun (so what a rank still
    reads in `out` is safe) and until every rank has finished. It stores into the buffers that the
    table names, not into a copy of `out` that a compiler may make: graphs of Inductor and captured
    graphs hold it, `backend="aot_eager"` does not, and a call on a copy traps.

    Parameters
    ----------
    x : `[B, S_r, H, D]` float32, bfloat16 or float16, any strides with contiguous D; D even. The
        same shape on every rank, padding tokens included.
    frame_pos : `[F]` int32, row of `time_freqs` for each frame of the whole block.
    time_freqs, space_freqs : float32 tables, see `rope_3d`.
    height, width : tokens in a column and in a row of one latent frame.
    out : `[P, B, S_r, H, D]`, contiguous, the dtype of `x`. Mutated: chunk r holds rank r's tokens.
    rank : which of the P ranks this is.
    group_name : name of the process group of the P ranks; not used with `peers`, nor if P is 1.
    slice_tokens : tokens of each frame that a rank holds, for spatial slices of every frame.
    peers : `[2 * P + 1]` int64 on the device of `x`, or None: `GatherBuffer.peers` of the buffer
        that `out` is a view of. Addresses cannot be checked: no other table will do.

    Raises
    ------
    RuntimeError
        If a shape, dtype, stride or device does not fit, the group has another size or this process
        another rank in it, `out` overlaps an input, or (CPU) a position is past the table. Nothing
        has been written then.

    Source: Causal-RoPE SP, arXiv 2603.06664.
    """
    torch.ops.vidk.all_gather_rope(
        x,
        frame_pos,
        time_freqs,
        space_freqs,
        height,
        width,
        out,
        rank,
        group_name,
        slice_tokens=slice_tokens,
        peers=peers,
    )
