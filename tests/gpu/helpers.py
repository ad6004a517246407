"""The same call on the CPU and on the GPU, on the same views of the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.ops.helpers import assert_same_bits, bits, twins, ulp
from tests.ops.samples import outputs, overload
from vidk.ops.registry import OPS, Args, BlockShape

DEVICE = "cuda"

# Heads of 128 as every Wan model has them, so that no kernel falls back on another.
SMALL = BlockShape(
    3, 6, 10, heads=2, head_dim=128, cache_frames=6, kv_frames=5, text_len=64, text_tokens=11
)
MODEL = BlockShape(3, 30, 52, heads=12, head_dim=128)


def whole(x: Tensor) -> Tensor:
    """Return all bytes of a tensor's storage."""
    return torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage())


def move(*tensors: Tensor, device: str | None = None) -> list[Tensor]:
    """Return the same views over copies of the memory elsewhere; shared memory stays shared."""
    copies: dict[int, Any] = {}
    out = []
    for t in tensors:
        key = t.untyped_storage().data_ptr()
        if key not in copies:
            copies[key] = whole(t).to(device or DEVICE, copy=True).untyped_storage()
        view = torch.empty(0, dtype=t.dtype, device=device or DEVICE)
        out.append(view.set_(copies[key], t.storage_offset(), t.size(), t.stride()))
    return out


def gpu_call(args: Args, device: str | None = None) -> Args:
    """Return the arguments of a call, moved."""
    return _moved(args, lambda *tensors: move(*tensors, device=device))


def _moved(args: Args, views: Any) -> Args:
    tensors = [x for x in (*args[0], *args[1].values()) if isinstance(x, Tensor)]
    moved: Iterator[Tensor] = iter(views(*tensors))

    def one(x: Any) -> Any:
        return next(moved) if isinstance(x, Tensor) else x

    return tuple(one(x) for x in args[0]), {name: one(x) for name, x in args[1].items()}


@dataclass
class Run:
    """Outputs of one call, and all memory of its arguments, between and around them too."""

    outputs: list[Tensor]
    memory: list[Tensor]


def run(op: str, args: Args) -> Run:
    """Call an op; what comes back lies on the CPU, outputs with their strides."""
    got = outputs(overload(op)(*args[0], **args[1]))
    tensors = [x for x in (*args[0], *args[1].values()) if isinstance(x, Tensor)]
    for x in got:
        assert x.is_contiguous()
    return Run([x.cpu() for x in got], [whole(x).cpu() for x in tensors])


def both(op: str, *args: Any, **kwargs: Any) -> tuple[Run, Run]:
    """Run an op on the GPU and on the CPU, on copies of the arguments."""
    return run(op, gpu_call((args, kwargs))), run(op, _moved((args, kwargs), twins))


def assert_same_run(got: Run, expected: Run, what: str = "") -> None:
    """Compare every bit of the outputs and of the memory; the payloads of NaNs may differ."""
    for a, b in zip(got.outputs, expected.outputs, strict=True):
        if a.isnan().any():
            assert torch.equal(a.isnan(), b.isnan()), f"{what}: NaNs at other places"
            a, b = (torch.where(x.isnan(), 0.0, x) for x in (a, b))
        assert_same_bits(a, b, what)
    assert_same_memory_of(got, expected, what)


def assert_same_memory_of(got: Run, expected: Run, what: str = "") -> None:
    """Compare all bytes of the arguments' memory."""
    for a, b in zip(got.memory, expected.memory, strict=True):
        assert torch.equal(a, b), f"{what}: {int((a != b).sum())} bytes of the arguments differ"


def sample(op: str, dtype: torch.dtype = torch.bfloat16, shape: BlockShape = SMALL) -> Args:
    """Return a call of the registry, on the CPU."""
    return OPS[op].sample(shape, dtype, "cpu", torch.Generator().manual_seed(0))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors on the GPU hold the same bits."""
    return torch.equal(bits(a), bits(b))


def assert_as_exact(got: Tensor, expected: Tensor, library: Tensor) -> None:
    """Hold a result to twice the error of the library's own attention and one rounding."""
    assert got.dtype == expected.dtype and got.shape == expected.shape and got.is_contiguous()
    assert got.isfinite().all()
    if not got.numel():
        return
    error = (got.double() - expected.double()).abs()
    allowed = 2 * (library.double() - expected.double()).abs().max()
    one = ulp(expected, got.dtype) + (2e-6 if got.dtype == torch.float32 else 0)
    assert (error <= allowed + one).all(), f"{error.max():.3g}, the library {allowed / 2:.3g}"
