"""What each op is timed against, and the check that it is the same computation.

`BASELINES` holds, for every op of the registry, the op sequence of the public code and the
plain-PyTorch form that `torch.compile` gets. Both are checked against the op before a clock runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import InductorError

from vidk import reference
from vidk.bench import plain
from vidk.bench.cases import Call
from vidk.reference.rope import token_angles
from vidk.rope import THETA, band_pairs

# Largest relative error of one token's H * D values: two roundings in a row, in units of the dtype.
# Packed codes and their scales: in 16 bits a compiler rounds fewer intermediate results than the
# op, which moves one q or k in six by a unit and with it 3 % of the codes and of the scales. Wrong
# ones would differ by more than half.
TOLERANCE = {
    torch.float32: 2e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1.5e-2,
    torch.uint8: 0.08,
    torch.float8_e4m3fn: 0.08,
}

# What `torch.compile` raises where it cannot generate code, for want of a C++ compiler say.
COMPILE_ERRORS = (BackendCompilerFailed, InductorError)


class Mismatch(RuntimeError):
    """Two forms that are about to be compared do not compute the same thing."""


@dataclass(frozen=True)
class Contender:
    """A call to be timed: a function, its arguments, and what it leaves in memory."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    mutated: tuple[Tensor, ...] = ()

    def __call__(self) -> Any:
        """Run once."""
        return self.function(*self.args)

    def results(self) -> list[Tensor]:
        """Run once and return the outputs, if any, and the mutated tensors."""
        out = self()
        outputs = out if isinstance(out, tuple) else (out,)
        return [x for x in (*outputs, *self.mutated) if x is not None]

    def compiled(self) -> Contender:
        """Return the same call through `torch.compile`."""
        function = torch.compile(self.function, fullgraph=True, dynamic=False)
        return Contender(function, self.args, self.mutated)


@dataclass(frozen=True)
class Baseline:
    """The two forms of one op, each made from a sampled call."""

    public: Callable[[Call], Contender]
    plain: Callable[[Call], Contender]


def check_same(op: str, name: str, got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest relative error of a token; raise Mismatch past the tolerance."""
    worst = 0.0
    if len(got) != len(expected):
        raise Mismatch(
            f"vidk bench: {op}: the {name} form gave {len(got)} tensors, expected {len(expected)}"
        )
    for a, b in zip(got, expected, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise Mismatch(
                f"vidk bench: {op}: the {name} form gave {list(a.shape)} {a.dtype}, expected "
                f"{list(b.shape)} {b.dtype}"
            )
        x, y = a.float().flatten(2), b.float().flatten(2)
        scale = y.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        error = float(((x - y).norm(dim=-1) / scale).max())
        # Written so that a NaN fails.
        if not error <= TOLERANCE[a.dtype]:
            raise Mismatch(
                f"vidk bench: {op}: the {name} form differs from the op by {error:.1e} (relative, "
                f"worst token), expected at most {TOLERANCE[a.dtype]:.1e}; nothing was timed"
            )
        worst = max(worst, error)
    return worst


def compile_reason(error: Exception) -> str:
    """Return the reason in one line, without the advice on debugging that follows it."""
    return " ".join(str(error).split("\n\n")[0].split())


def public_freqs(head_dim: int, device: str, positions: int = 1024) -> Tensor:
    """Return the public code's table, `[positions, D / 2]` complex128."""
    time_pairs, space_pairs = band_pairs(head_dim)
    position = torch.arange(positions, dtype=torch.float64, device=device)
    bands = []
    for pairs in (time_pairs, space_pairs, space_pairs):
        exponents = torch.arange(pairs, dtype=torch.float64, device=device) / pairs
        angles = position[:, None] * THETA**-exponents
        bands.append(torch.polar(torch.ones_like(angles), angles))
    return torch.cat(bands, dim=1)


def _start_frame(call: Call) -> int:
    """Return the position of the first frame; a sampled shard begins with a whole frame."""
    return int(call.args["frame_pos"][call.args.get("token_offset", 0) // call.shape.frame_tokens])


def _cos_sin(call: Call, tokens: int) -> tuple[Tensor, Tensor]:
    a = call.args
    tables = (a["time_freqs"], a["space_freqs"], a["height"], a["width"])
    offset = a.get("token_offset", 0)
    angles = token_angles(tokens, a["frame_pos"], *tables, offset, None)[:, None]
    return angles[..., 0].contiguous(), angles[..., 1].contiguous()


def _rope_public(call: Call) -> Contender:
    freqs = public_freqs(call.shape.head_dim, call.device)
    return Contender(
        reference.rope_3d_public, (call.args["x"], freqs, _start_frame(call), call.grid)
    )


def _rope_plain(call: Call) -> Contender:
    x = call.args["x"]
    return Contender(plain.rope_3d, (x, *_cos_sin(call, x.size(1))))


def _kv_cache_write(call: Call) -> Contender:
    """Two slice copies: the plain form is the public one."""
    caches = call.caches()
    args = (call.args["k"], call.args["v"], *caches, call.row)
    return Contender(reference.kv_cache_write_public, args, caches)


_NORM_ARGS = ("q", "k", "v", "q_weight", "k_weight", "eps")


def _norm_rope_public(call: Call) -> Contender:
    caches = call.caches()
    freqs = public_freqs(call.shape.head_dim, call.device)
    where = (freqs, _start_frame(call), call.grid, *caches, call.row)
    args = tuple(call.args[name] for name in _NORM_ARGS)
    return Contender(reference.qk_norm_rope_kv_write_public, (*args, *where), caches)


def _norm_rope_plain(call: Call) -> Contender:
    caches = call.caches()
    args = tuple(call.args[name] for name in _NORM_ARGS)
    where = (*_cos_sin(call, call.args["q"].size(1)), *caches, call.row)
    return Contender(plain.qk_norm_rope_kv_write, (*args, *where), caches)


def _fp4_kv(call: Call) -> Contender:
    """Library ops step by step; a compiler fuses them but for the rotation."""
    caches = call.mutated()
    freqs = public_freqs(call.args["q"].size(3), call.device)
    where = (freqs, _start_frame(call), call.grid, *caches, call.row)
    args = tuple(call.args[name] for name in _NORM_ARGS)
    return Contender(reference.qk_norm_rope_nvfp4_kv_write_public, (*args, *where), caches)


def _pack_public(call: Call) -> Contender:
    freqs = public_freqs(call.shape.head_dim, call.device)
    args = tuple(call.args[name] for name in _NORM_ARGS)
    where = (freqs, _start_frame(call), call.grid, call.args["ranks"])
    return Contender(reference.qk_norm_rope_pack_public, (*args, *where))


def _pack_plain(call: Call) -> Contender:
    args = tuple(call.args[name] for name in _NORM_ARGS)
    where = (*_cos_sin(call, call.args["q"].size(1)), call.args["ranks"])
    return Contender(plain.qk_norm_rope_pack, (*args, *where))


def _unpack_kv_write(call: Call) -> Contender:
    """Gather the block, then copy: the plain form is the public one."""
    caches = call.caches()
    args = (call.args["k"], call.args["v"], *caches, call.row, call.args["tokens"])
    return Contender(reference.unpack_kv_write_public, args, caches)


def _all_gather_public(call: Call) -> Contender:
    """One rank: what is gathered is a copy of the whole block, which is then rotated."""

    def gathered(x: Tensor, freqs: Tensor, start: int, grid: tuple[int, int, int]) -> Tensor:
        return reference.all_gather_rope_public(x, freqs, start, grid, 1, "")[None]

    freqs = public_freqs(call.shape.head_dim, call.device)
    return Contender(gathered, (call.args["x"], freqs, _start_frame(call), call.grid))


def _all_gather_plain(call: Call) -> Contender:
    (out,) = call.mutated()
    x = call.args["x"]
    return Contender(plain.all_gather_rope, (x, *_cos_sin(call, x.size(1)), out), (out,))


def _attention(call: Call) -> Contender:
    """The library's attention over a slice: the plain form is the public one."""
    a = call.args
    args = (a["q"], a["k_cache"], a["v_cache"], 0, int(a["kv_len"]))
    return Contender(reference.attention_public, args)


def _cross_attention(call: Call) -> Contender:
    """The library's attention over all text rows, padding included."""
    a = call.args
    return Contender(reference.cross_attention_public, (a["q"], a["k"], a["v"]))


def _nvfp4_quantize(call: Call) -> Contender:
    """Library ops step by step; a compiler fuses them."""
    recipe = call.args.get("recipe", "4/6")
    return Contender(reference.nvfp4_quantize_public, (call.args["x"], recipe))


def _fp4_attention(call: Call) -> Contender:
    """Decode, then the library's attention; a compiler fuses the decoding."""
    a = call.args
    names = ("q_codes", "q_scales", "k_codes", "k_scales", "v_cache")
    args = (*(a[name] for name in names), int(a["kv_len"]), a["frame_tokens"], a["q"], a["k_mean"])
    return Contender(reference.fp4_attention_public, args)


BASELINES: dict[str, Baseline] = {
    "rope_3d": Baseline(_rope_public, _rope_plain),
    "kv_cache_write": Baseline(_kv_cache_write, _kv_cache_write),
    "qk_norm_rope_kv_write": Baseline(_norm_rope_public, _norm_rope_plain),
    "qk_norm_rope_nvfp4_kv_write": Baseline(_fp4_kv, _fp4_kv),
    "qk_norm_rope_pack": Baseline(_pack_public, _pack_plain),
    "unpack_kv_write": Baseline(_unpack_kv_write, _unpack_kv_write),
    "all_gather_rope": Baseline(_all_gather_public, _all_gather_plain),
    "attention": Baseline(_attention, _attention),
    "cross_attention": Baseline(_cross_attention, _cross_attention),
    "fp4_attention": Baseline(_fp4_attention, _fp4_attention),
    "nvfp4_quantize": Baseline(_nvfp4_quantize, _nvfp4_quantize),
}
