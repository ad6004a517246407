"""The wheel's CUDA ops, executed in the simulator: the arguments of `torch.ops.vidk.*`, and `on`.

`on` says for which architecture, and takes what is counted. Outputs start undefined, so an element
that a kernel forgets is an error of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import Output
from .launch import device_info, execute, plans, view

ELEMENTS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


@dataclass
class Sim:
    """Where and how ops are executed: target, simulator options; and the reports of launches."""

    arch: str
    options: dict[str, Any] = field(default_factory=dict)
    kernels: list[str] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)

    @property
    def device(self) -> Any:
        """What plans may know of the device."""
        return device_info(self.arch)

    def launch(
        self,
        plan: dict[str, Any],
        mutated: tuple[str, ...] = (),
        multicast: tuple[Any, ...] = (),
        **tensors: Any,
    ) -> None:
        """Execute a plan, unless there is nothing to do."""
        if plan["kernel"]:
            options = self.options | ({"multicast": multicast} if multicast else {})
            self.kernels.append(plan["kernel"])
            self.reports.append(execute(plan, self.arch, tensors, mutated, **options))


def _grid(
    frame_pos: Tensor, time: Tensor, space: Tensor, height: int, width: int, offset: int, c: int
) -> tuple[int, ...]:
    frames = frame_pos.numel()
    return (
        frame_pos.data_ptr(), frames, time.data_ptr(), space.data_ptr(), time.size(0), time.size(1),
        space.size(1), height, width, min(offset, frames * height * width), c,
    )  # fmt: skip


def rope_3d(
    on: Sim,
    x: Tensor,
    frame_pos: Tensor,
    time_freqs: Tensor,
    space_freqs: Tensor,
    height: int,
    width: int,
    *,
    token_offset: int = 0,
    slice_tokens: int | None = None,
) -> Tensor:
    """Execute `vidk::rope_3d`."""
    out = torch.empty(x.shape, dtype=x.dtype)
    slice_tokens = height * width if slice_tokens is None else slice_tokens
    grid = _grid(frame_pos, time_freqs, space_freqs, height, width, token_offset, slice_tokens)
    plan = plans.rope_3d(ELEMENTS[x.dtype], view(x), view(out), grid, on.device)
    on.launch(
        plan, x=x, out=Output(out), frame_pos=frame_pos, time_freqs=time_freqs,
        space_freqs=space_freqs,
    )  # fmt: skip
    return out


def kv_cache_write(
    on: Sim,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    frame_slot: Tensor,
    frame_tokens: int,
) -> None:
    """Execute `vidk::kv_cache_write`."""
    views = [view(x) for x in (k, v, k_cache, v_cache)]
    plan = plans.kv_cache_write(*views, frame_slot.data_ptr(), frame_tokens, on.device)
    on.launch(
        plan, ("k_cache", "v_cache"), k=k, v=v, k_cache=k_cache, v_cache=v_cache,
        frame_slot=frame_slot,
    )  # fmt: skip


ABSENT = (0, [0] * 4, [0] * 4, 0)  # the view of a tensor that is not given


def _tokens(
    q: Tensor | None,
    k: Tensor | None,
    v: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    grid: tuple[int, ...],
) -> tuple[Any, ...]:
    """Describe what is normalised and rotated to a plan."""
    views = [ABSENT if x is None else view(x) for x in (q, k, v)]
    weights = (0 if w is None else w.data_ptr() for w in (q_weight, k_weight))
    dtype = next(x.dtype for x in (q, k, v) if x is not None)
    return (ELEMENTS[dtype], views, *weights, eps, grid)


def qk_norm_rope_kv_write(
    on: Sim,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    frame_pos: Tensor,
    frame_slot: Tensor,
    time_freqs: Tensor,
    space_freqs: Tensor,
    height: int,
    width: int,
    k_cache: Tensor,
    v_cache: Tensor,
) -> Tensor:
    """Execute `vidk::qk_norm_rope_kv_write`."""
    out = torch.empty(q.shape, dtype=q.dtype)
    grid = _grid(frame_pos, time_freqs, space_freqs, height, width, 0, height * width)
    plan = plans.qk_norm_rope_kv_write(
        _tokens(q, k, v, q_weight, k_weight, eps, grid),
        [view(x) for x in (out, k_cache, v_cache)], frame_slot.data_ptr(), on.device,
    )  # fmt: skip
    on.launch(
        plan, ("k_cache", "v_cache"), q=q, k=k, v=v, q_weight=q_weight, k_weight=k_weight,
        out=Output(out),
        frame_pos=frame_pos, frame_slot=frame_slot, time_freqs=time_freqs, space_freqs=space_freqs,
        k_cache=k_cache, v_cache=v_cache,
    )  # fmt: skip
    return out


def qk_norm_rope_nvfp4_kv_write(
    on: Sim,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    frame_pos: Tensor,
    frame_slot: Tensor,
    time_freqs: Tensor,
    space_freqs: Tensor,
    height: int,
    width: int,
    k_codes: Tensor,
    k_scales: Tensor,
    k_mean: Tensor | None,
    v_cache: Tensor,
    *,
    recipe: str = "default",
    perm: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Execute `vidk::qk_norm_rope_nvfp4_kv_write`."""
    batch, tokens, heads, _ = q.shape
    tiles = -(-tokens // 128)
    out = torch.empty(q.shape if k_mean is not None else (batch, 0, *q.shape[2:]), dtype=q.dtype)
    codes = torch.empty(batch, heads, tokens, k_codes.size(3), dtype=torch.uint8)
    scales = torch.empty(batch, heads, tiles, *k_scales.shape[3:], dtype=k_scales.dtype)
    grid = _grid(frame_pos, time_freqs, space_freqs, height, width, 0, height * width)
    addresses = [
        0 if x is None else x.data_ptr()
        for x in (codes, scales, k_codes, k_scales, k_mean, frame_slot, perm)
    ]
    views = [view(out) if k_mean is not None else ABSENT, view(v_cache)]
    described = _tokens(q, k, v, q_weight, k_weight, eps, grid)
    means, write = plans.qk_norm_rope_nvfp4_kv_write(described, recipe, views, addresses)
    tables = {"frame_pos": frame_pos, "time_freqs": time_freqs, "space_freqs": space_freqs}
    tables["frame_slot"] = frame_slot
    optional = {} if k_mean is None else {"k_mean": k_mean}
    if perm is not None:
        optional["perm"] = perm
    keys = {"k": k, "k_weight": k_weight, "k_codes": k_codes, "k_scales": k_scales}
    on.launch(means, ("k_mean", "k_codes", "k_scales"), **keys, **tables, **optional)
    if k_mean is not None:
        optional["out"] = Output(out)
    on.launch(
        write, ("k_codes", "k_scales", "v_cache"), q=q, v=v, q_weight=q_weight, **keys, **tables,
        **optional, codes=Output(codes), scales=Output(scales), v_cache=v_cache,
    )  # fmt: skip
    return out, codes, scales


def qk_norm_rope_pack(
    on: Sim,
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
    """Execute `vidk::qk_norm_rope_pack`."""
    given = {name: x for name, x in {"q": q, "k": k, "v": v}.items() if x is not None}
    weights = {"q_weight": q_weight, "k_weight": k_weight}
    given |= {name: w for name, w in weights.items() if w is not None}
    n = len(given.keys() & {"q", "k", "v"})
    x = next(iter(given.values()))
    batch, tokens, heads, dim = x.shape
    out = torch.empty(ranks, n, batch, tokens, heads // ranks, dim, dtype=x.dtype)
    slice_tokens = height * width if slice_tokens is None else slice_tokens
    grid = _grid(frame_pos, time_freqs, space_freqs, height, width, token_offset, slice_tokens)
    described = _tokens(q, k, v, q_weight, k_weight, eps, grid)
    plan = plans.qk_norm_rope_pack(described, ranks, out.data_ptr(), on.device)
    on.launch(
        plan, **given, out=Output(out), frame_pos=frame_pos, time_freqs=time_freqs,
        space_freqs=space_freqs,
    )  # fmt: skip
    return out


def unpack_kv_write(
    on: Sim,
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
    """Execute `vidk::unpack_kv_write`."""
    batch, shard = k.shape[1:3]
    c, end = (shard, 2**63 - 1) if slice_tokens is None else (slice_tokens, frame_tokens)
    views = [view(x) for x in (k.flatten(0, 1), v.flatten(0, 1), k_cache, v_cache)]
    layout = (batch, shard, c, end, frame_tokens, tokens)
    plan = plans.unpack_kv_write(views, frame_slot.data_ptr(), layout, on.device)
    on.launch(
        plan, ("k_cache", "v_cache"), k=k, v=v, k_cache=k_cache, v_cache=v_cache,
        frame_slot=frame_slot,
    )  # fmt: skip


def all_gather_rope(
    on: Sim,
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
) -> None:
    """Execute `vidk::all_gather_rope` with peers for a rank that is alone."""
    assert (out.size(0), rank, group_name) == (1, 0, "")
    table = (frame_pos, time_freqs, space_freqs, height, width)
    signals = [torch.zeros(4, dtype=torch.int32)]
    all_gather_ranks(on, [x], *table, [out], signals, slice_tokens=slice_tokens, defined=True)


def all_gather_ranks(
    on: Sim,
    x: list[Tensor],
    frame_pos: Tensor,
    time_freqs: Tensor,
    space_freqs: Tensor,
    height: int,
    width: int,
    out: list[Tensor],
    signals: list[Tensor],
    *,
    first_rank: int = 0,
    slice_tokens: int | None = None,
    defined: bool = False,
    multicast: bool = False,
    copy: Tensor | None = None,
) -> None:
    """Execute the fused AllGather + RoPE for successive ranks, all in one launch.

    `copy`: given as the first rank's buffer, which the table does not name.
    """
    step = x[0].size(1) if slice_tokens is None else slice_tokens
    c = height * width if slice_tokens is None else slice_tokens
    offset = first_rank * step
    grid = _grid(frame_pos, time_freqs, space_freqs, height, width, offset, c)
    own = (out[first_rank] if copy is None else copy)[first_rank]
    places = [t.data_ptr() for t in out]
    everywhere = 2**52 if multicast else 0  # no memory of this machine lies there
    peers = torch.tensor([*places, *(t.data_ptr() for t in signals), everywhere])
    plan = plans.all_gather_rope(
        ELEMENTS[x[0].dtype], [view(t) for t in x], view(own), grid, step, len(out),
        first_rank, peers.data_ptr(), on.device,
    )  # fmt: skip
    tensors: dict[str, Any] = {f"x{i}": t for i, t in enumerate(x)}
    tensors |= {f"out{i}": t if defined else Output(t) for i, t in enumerate(out)}
    tensors |= {f"signals{i}": t for i, t in enumerate(signals)}
    written = tuple(name for name in tensors if not name.startswith("x"))
    behind = ((everywhere, out[0].nbytes, places),) if multicast else ()
    on.launch(
        plan, written, behind, **tensors, peers=peers, frame_pos=frame_pos, time_freqs=time_freqs,
        space_freqs=space_freqs,
    )  # fmt: skip


def _attention(
    on: Sim,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lens: Tensor,
    lse: Tensor | None,
    fold: bool,
    scale: float | None,
    choice: str,
) -> Tensor:
    out = torch.empty(q.shape, dtype=q.dtype)
    scale = q.size(3) ** -0.5 if scale is None else scale
    plan = plans.attention(
        ELEMENTS[q.dtype], view(q), view(k), view(v), out.data_ptr(),
        0 if lse is None else lse.data_ptr(), lens.data_ptr(), lse is None, fold, scale, choice,
        on.device,
    )  # fmt: skip
    tensors = {"q": q, "k": k, "v": v, "out": Output(out), "lens": lens}
    if lse is not None:
        tensors["lse"] = Output(lse)
    on.launch(plan, **tensors)
    return out


def attention(
    on: Sim,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    kv_len: Tensor,
    *,
    scale: float | None = None,
    choice: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Execute `vidk::attention`; `choice` is the value of VIDK_ATTENTION."""
    lse = torch.empty(q.size(0), q.size(2), q.size(1))
    return _attention(on, q, k_cache, v_cache, kv_len, lse, False, scale, choice), lse


def cross_attention(
    on: Sim,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context_lens: Tensor,
    *,
    pad: str = "trained",
    scale: float | None = None,
    choice: str = "auto",
) -> Tensor:
    """Execute `vidk::cross_attention`."""
    return _attention(on, q, k, v, context_lens, None, pad == "trained", scale, choice)


def fp4_attention(
    on: Sim,
    q_codes: Tensor,
    q_scales: Tensor,
    k_codes: Tensor,
    k_scales: Tensor,
    v_cache: Tensor,
    kv_len: Tensor,
    frame_tokens: int,
    *,
    q: Tensor | None = None,
    k_mean: Tensor | None = None,
    scale: float | None = None,
    choice: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Execute `vidk::fp4_attention`; `choice` is the value of VIDK_FP4_ATTENTION."""
    batch, heads, tokens, _ = q_codes.shape
    dim = v_cache.size(3)
    out = torch.empty(batch, tokens, heads, dim, dtype=torch.bfloat16)
    lse = torch.empty(batch, heads, tokens)
    means = {} if q is None or k_mean is None else {"q": q, "k_mean": k_mean}
    plan = plans.fp4_attention(
        view(q_codes.transpose(1, 2)), view(k_codes.transpose(1, 2)), 4 * q_scales.size(3),
        q_scales.dtype == torch.float8_e8m0fnu, view(q) if means else ABSENT, view(v_cache),
        [q_scales.data_ptr(), k_scales.data_ptr(), k_mean.data_ptr() if means else 0,
         out.data_ptr(), lse.data_ptr(), kv_len.data_ptr()],
        frame_tokens, dim**-0.5 if scale is None else scale, choice, on.device,
    )  # fmt: skip
    on.launch(
        plan, q_codes=q_codes, q_scales=q_scales, k_codes=k_codes, k_scales=k_scales, **means,
        v_cache=v_cache, kv_len=kv_len, out=Output(out), lse=Output(lse),
    )  # fmt: skip
    return out, lse


def nvfp4_quantize(on: Sim, x: Tensor, *, recipe: str = "4/6") -> tuple[Tensor, Tensor]:
    """Execute `vidk::nvfp4_quantize`."""
    rows, dim = x.shape[:3], x.size(3)
    packed = torch.empty((*rows, dim // 2), dtype=torch.uint8)
    scales = torch.empty((*rows, dim // 16), dtype=torch.float8_e4m3fn)
    plan = plans.nvfp4_quantize(
        ELEMENTS[x.dtype], recipe, view(x), packed.data_ptr(), scales.data_ptr(), on.device
    )
    on.launch(plan, x=x, packed=Output(packed), scales=Output(scales))
    return packed, scales
