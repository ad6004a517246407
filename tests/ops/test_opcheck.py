"""The registration of every op: opcheck, fakes, tracing and compiling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from vidk.ops.registry import OPS, BlockShape

from .helpers import (
    DTYPES,
    assert_same_bits,
    assert_same_memory,
    dtype_id,
    memory_of,
    seeded,
    twins,
)
from .samples import KINDS, fused, options, outputs, overload, with_tensors

every_op = pytest.mark.parametrize("op", OPS)


def tensors(args: tuple[Any, ...]) -> list[Tensor]:
    return [x for x in args if isinstance(x, Tensor)]


def twin_call(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the same call on memory of its own."""
    copies = iter(twins(*tensors(args)))
    return tuple(next(copies) if isinstance(x, Tensor) else x for x in args)


def assert_same_result(got: Any, expected: Any) -> None:
    for a, b in zip(outputs(got), outputs(expected), strict=True):
        assert a.stride() == b.stride()
        assert_same_bits(a, b)


def check_schema(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check that nothing but what the schema names is written; PyTorch's check knows no float8."""
    everything = (*args, *kwargs.values())
    if all(x.itemsize > 1 or x.dtype == torch.uint8 for x in tensors(everything)):
        torch.library.opcheck(overload(op), args, kwargs, test_utils="test_schema")
        return
    named = dict(zip((a.name for a in overload(op)._schema.arguments), args, strict=False)) | kwargs
    written = {a.name for a in overload(op)._schema.arguments if a.is_write}
    kept = tensors(tuple(x for name, x in named.items() if name not in written))
    before = [x.clone() for x in memory_of(*kept)]
    results = outputs(overload(op)(*args, **kwargs))
    assert all(map(torch.equal, memory_of(*kept), before)), "an input has changed"
    memory = {x.untyped_storage().data_ptr() for x in tensors(everything) if x.numel()}
    assert not memory & {x.untyped_storage().data_ptr() for x in results if x.numel()}


@every_op
@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind: str, op: str) -> None:
    args, kwargs = KINDS[kind](op)
    check_schema(op, args, kwargs)
    others = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(overload(op), args, kwargs, test_utils=others)


@every_op
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=dtype_id)
def test_opcheck_half(dtype: torch.dtype, op: str) -> None:
    args, kwargs = fused(op, dtype)
    check_schema(op, args, kwargs)
    torch.library.opcheck(overload(op), args, kwargs, test_utils="test_faketensor")


@every_op
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_fake_cuda(dtype: torch.dtype, kind: str, op: str) -> None:
    """A graph for CUDA can be traced where there is none: outputs are as the CPU kernel's."""
    args, kwargs = KINDS[kind](op, dtype)
    with FakeTensorMode():
        fakes = with_tensors(
            (args, kwargs),
            lambda x: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda"),
        )
        got = outputs(overload(op)(*fakes[0], **fakes[1]))
    expected = outputs(overload(op)(*args, **kwargs))
    assert len(got) == len(expected)
    for fake, real in zip(got, expected, strict=True):
        assert fake.device == torch.device("cuda:0")
        assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)
        assert fake.storage_offset() == real.storage_offset()


@every_op
@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
def test_make_fx(tracing_mode: str, op: str) -> None:
    positional, kwargs = options(op)
    named = {name: x for name, x in kwargs.items() if isinstance(x, Tensor)}
    args = (*positional, *named.values())

    def run(*args: Any) -> Any:
        extra = dict(zip(named, args[len(positional) :], strict=True))
        return overload(op)(*args[: len(positional)], **kwargs | extra)

    graph = make_fx(run, tracing_mode=tracing_mode)(*twin_call(args))
    calls = [n for n in graph.graph.nodes if n.target is overload(op)]
    assert len(calls) == 1
    mine, other = twin_call(args), twin_call(args)
    assert_same_result(graph(*mine), run(*other))
    assert_same_memory(tensors(mine), tensors(other))


@every_op
def test_export(op: str) -> None:
    """An exported program mutates what the schema says and nothing else."""
    args, kwargs = fused(op)

    class Call(torch.nn.Module):
        def forward(self, *args: Any) -> Any:
            return overload(op)(*args, **kwargs)

    program = torch.export.export(Call(), twin_call(args), strict=True).run_decompositions()
    mine, other = twin_call(args), twin_call(args)
    assert_same_result(program.module()(*mine), overload(op)(*other, **kwargs))
    assert_same_memory(tensors(mine), tensors(other))


# No two sizes are equal: the compiler takes sizes that are equal at first for one symbol.
LONG = BlockShape(
    7, 11, 13, 3, 32, cache_frames=10, kv_frames=6, batch=2, text_len=17, text_tokens=4
)


def graphs_of(op: str) -> int:
    """Return how many graphs of the op's function were compiled and kept."""
    return len(_debug_get_cache_entry_list(OPS[op].function.__code__))


@every_op
@pytest.mark.parametrize("dynamic", [None, True, False])
def test_compiled_is_eager(dynamic: bool | None, op: str) -> None:
    """One full graph, on blocks of changing length; as many graphs as dynamic shapes promise."""
    torch._dynamo.reset()
    compiled = torch.compile(OPS[op].function, fullgraph=True, dynamic=dynamic)
    lengths = (7, 8, 9, 7)
    for frames in lengths:
        shape = replace(LONG, frames=frames)
        args, kwargs = OPS[op].sample(shape, torch.float32, "cpu", seeded(op, frames))
        mine, other = twin_call(args), twin_call(args)
        assert_same_result(compiled(*mine, **kwargs), OPS[op].function(*other, **kwargs))
        assert_same_memory(tensors(mine), tensors(other), f"{frames} frames")
    assert graphs_of(op) == {None: 2, True: 1, False: len(set(lengths))}[dynamic]


@every_op
def test_compiled_once_for_all_index_data(op: str) -> None:
    """Slots, positions and lengths are data: new values never compile again."""
    torch._dynamo.reset()
    compiled = torch.compile(OPS[op].function, fullgraph=True)
    for step in range(4):
        args, kwargs = fused(op)
        for x in tensors(args):
            if x.dtype == torch.int32:
                x.copy_(torch.arange(len(x)) + step % 3)
        mine, other = twin_call(args), twin_call(args)
        assert_same_result(compiled(*mine, **kwargs), OPS[op].function(*other, **kwargs))
        assert_same_memory(tensors(mine), tensors(other), f"step {step}")
    assert graphs_of(op) == 1
