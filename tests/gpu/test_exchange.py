"""The exchange with P virtual ranks on one GPU, and both ops against the CPU kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ops import test_exchange as host
from tests.ops.helpers import (
    CACHES,
    DTYPES,
    READ_LAYOUTS,
    assert_same_memory,
    dtype_id,
    ints,
    normal,
    random_bits,
    tables,
    twins,
)
from tests.ops.samples import overload

from .helpers import move

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)


def on_gpu(op: str) -> Any:
    """Return an op that takes and gives CPU tensors, and leaves in them what the GPU wrote."""
    schema = overload(op)._schema.arguments

    def call(*args: Any, **kwargs: Any) -> Any:
        given = [x for x in args if isinstance(x, torch.Tensor)]
        there = iter(moved := move(*given))
        out = overload(op)(
            *(next(there) if isinstance(x, torch.Tensor) else x for x in args), **kwargs
        )
        back = iter(move(*moved, device="cpu"))
        for x, argument in zip(args, schema, strict=False):
            if isinstance(x, torch.Tensor):
                result = next(back)
                if argument.is_write:
                    x.copy_(result)
        return None if out is None else out.cpu()

    return call


@pytest.fixture(autouse=True)
def use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "pack", on_gpu("qk_norm_rope_pack"))
    monkeypatch.setattr(host, "unpack", on_gpu("unpack_kv_write"))
    monkeypatch.setattr(host, "whole", on_gpu("qk_norm_rope_kv_write"))


@every_dtype
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("layout", [host.contiguous, host.slices])
def test_identity(layout: Any, ranks: int, dtype: torch.dtype) -> None:
    host.check_identity(layout, ranks, 2 * host.FRAME + 7, dtype)


@pytest.mark.parametrize("order", [("v", "k", "q"), ("kv", "q"), ("v", "qk")])
def test_one_tensor_after_another(order: tuple[str, ...]) -> None:
    host.check_identity(host.slices, 4, 3 * host.FRAME, torch.bfloat16, 128, order=order)


@every_dtype
@pytest.mark.parametrize("layout", READ_LAYOUTS)
@pytest.mark.parametrize("head_dim", [6, 48, 128])
def test_layouts(head_dim: int, layout: str, dtype: torch.dtype) -> None:
    host.test_layouts(head_dim, layout, dtype)


@every_dtype
@pytest.mark.parametrize("heads", [12, 24, 40, 200])
def test_rows_of_the_models(heads: int, dtype: torch.dtype) -> None:
    make = normal(dtype, heads)
    q, k, v = make(1, 500, 3, heads, 128).unbind(2)
    idx = (ints(7, 3), *tables(128, 15, 26), 15, 26, 4)
    host.check_pack(q, k, v, host.weights(make, heads * 128), idx, token_offset=250)


@every_dtype
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("head_dim", [1, 6, 37, 128])
def test_layouts_of_the_caches(head_dim: int, cache: str, dtype: torch.dtype) -> None:
    host.test_layouts_of_the_caches(head_dim, cache, dtype)


@pytest.mark.parametrize("slot", [-1, 4, 2**31 - 1, -(2**31), 2**28])
def test_slot_out_of_range(slot: int) -> None:
    """A frame without a slot is skipped, and the others are written."""
    make, n = random_bits(torch.float16, slot), host.FRAME
    k, v = (make(4, 1, 8, 2, 64) for _ in range(2))
    caches = [make(1, 4 * n, 2, 64) for _ in range(2)]
    expected = twins(*caches)
    host.unpack(k, v, *caches, ints(slot, 2), n, 2 * n)
    for cache, x in zip(expected, (k, v), strict=True):
        cache[:, 2 * n : 3 * n] = x.transpose(0, 1).flatten(1, 2)[:, n : 2 * n]
    assert_same_memory(caches, expected)
