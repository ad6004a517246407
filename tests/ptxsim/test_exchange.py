"""The exchange's CUDA kernels, by the checks that hold the CPU kernels."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from tests.ops import test_exchange as host
from tests.ops.helpers import (
    CACHES,
    DTYPES,
    READ_LAYOUTS,
    assert_same_bits,
    assert_same_memory,
    dtype_id,
    ints,
    normal,
    random_bits,
    tables,
    twins,
)
from vidk import reference

from . import has_nvcc
from .launch import ARCHS
from .ops import Sim, qk_norm_rope_kv_write, qk_norm_rope_pack, unpack_kv_write

pytestmark = pytest.mark.skipif(not has_nvcc(), reason="no nvcc to compile the kernels")
FRAME = host.FRAME
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
every_arch = pytest.mark.parametrize("arch", ARCHS)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch):
    """Return a function that puts the simulated ops in the place of the CPU's."""

    def install(on: Sim) -> Sim:
        monkeypatch.setattr(host, "pack", partial(qk_norm_rope_pack, on))
        monkeypatch.setattr(host, "unpack", partial(unpack_kv_write, on))
        monkeypatch.setattr(host, "whole", partial(qk_norm_rope_kv_write, on))
        return on

    return install


@every_dtype
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("layout", [host.contiguous, host.slices])
def test_identity(layout: Any, ranks: int, dtype: torch.dtype, use) -> None:
    """As the whole block on one GPU, bit for bit: the sum of a token has one order for both."""
    on = use(Sim("sm_90a"))
    host.check_identity(layout, ranks, 2 * FRAME + 7, dtype)
    assert not any(report["warnings"] for report in on.reports)


@pytest.mark.parametrize("order", [("v", "k", "q"), ("kv", "q"), ("v", "qk")])
def test_one_tensor_after_another(order: tuple[str, ...], use) -> None:
    on = use(Sim("sm_80"))
    host.check_identity(host.slices, 2, 2 * FRAME, torch.bfloat16, 128, order=order)
    assert not any(report["warnings"] for report in on.reports)


@every_arch
@every_dtype
@pytest.mark.parametrize("layout", READ_LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype, arch: str, use) -> None:
    on = use(Sim(arch))
    make = normal(dtype, layout)
    q, k, v = (READ_LAYOUTS[layout](make, 2, FRAME + 7, 3, 128) for _ in range(3))
    idx = host.index(3, 128, 7, 63, 0)
    host.check_pack(q, k, v, host.weights(make, 3 * 128), idx, token_offset=FRAME + 4)
    assert not any(report["warnings"] for report in on.reports)


@every_dtype
@pytest.mark.parametrize(("heads", "head_dim"), [(4, 2), (6, 6), (4, 20), (2, 96), (2, 256)])
def test_head_dims(heads: int, head_dim: int, dtype: torch.dtype, use) -> None:
    use(Sim("sm_90a"))
    make = normal(dtype, head_dim)
    q, k, v = make(2, 2 * FRAME, 3, heads, head_dim).unbind(2)
    options = {"token_offset": 10, "slice_tokens": 5}
    idx = host.index(2, head_dim, 2, 9, 4, 1, 30)
    host.check_pack(q, k, v, host.weights(make, heads * head_dim), idx, **options)


@pytest.mark.parametrize("seed", [0, 1, 2])
@every_dtype
@pytest.mark.parametrize("heads", [12, 24, 40, 96, 200])
def test_wide_rows(heads: int, dtype: torch.dtype, seed: int, use) -> None:
    """Every number of vectors that a thread can hold, and rows that fit in no registers."""
    on = use(Sim("sm_120a", {"seed": seed}))
    make = normal(dtype, heads)
    q, k, v = make(1, 20, 3, heads, 128).unbind(2)
    idx = (ints(7, 3), *tables(128, 3, 5), 3, 5, 4)
    host.check_pack(q, k, v, host.weights(make, heads * 128), idx, token_offset=12)
    assert not any(report["warnings"] for report in on.reports)


@every_dtype
@pytest.mark.parametrize("heads", [2, 200])
@pytest.mark.parametrize("position", [-1, 64, 2**31 - 1])
def test_position_out_of_range(position: int, heads: int, dtype: torch.dtype) -> None:
    """A frame past the table is not rotated, and the others are as they always were."""
    make = normal(dtype, heads)
    q, k, v = make(1, 2 * FRAME, 3, heads, 128).unbind(2)
    args = (q, k, v, *host.weights(make, heads * 128), host.EPS)
    got = qk_norm_rope_pack(Sim("sm_90a"), *args, *host.index(2, 128, position, 5))
    expected = qk_norm_rope_pack(Sim("sm_90a"), *args, *host.index(2, 128, 3, 5))
    assert_same_bits(got[:, :, :, FRAME:], expected[:, :, :, FRAME:])
    assert_same_bits(got[:, 2], expected[:, 2])
    assert got.isfinite().all()


@every_arch
@every_dtype
@pytest.mark.parametrize("cache", CACHES)
def test_caches(cache: str, dtype: torch.dtype, arch: str, use) -> None:
    on = use(Sim(arch))
    for head_dim in (1, 6, 37, 128):
        host.test_layouts_of_the_caches(head_dim, cache, dtype)
    assert not any(report["warnings"] for report in on.reports)


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (3, 128), (40, 128), (1, 5000)])
@pytest.mark.parametrize("slice_tokens", [None, 4, 9])
def test_unpacked_tiles(slice_tokens: int | None, heads: int, head_dim: int) -> None:
    """Tiles of many tokens, of one, and tokens longer than a tile."""
    make = random_bits(torch.bfloat16, heads, head_dim)
    k, v = (make(4, 2, 27, heads, head_dim) for _ in range(2))
    caches = [make(2, 4 * FRAME, heads, head_dim) for _ in range(2)]
    expected = twins(*caches)
    where, options = (ints(3, 0, 2), FRAME, 2 * FRAME + 4), {"slice_tokens": slice_tokens}
    unpack_kv_write(Sim("sm_89"), k, v, *caches, *where, **options)
    reference.unpack_kv_write(k, v, *expected, *where, **options)
    assert_same_memory(caches, expected)


@pytest.mark.parametrize("slot", [-1, 4, 2**31 - 1, -(2**31), 2**28])
def test_slot_out_of_range(slot: int) -> None:
    """A frame without a slot is skipped, and the others are written."""
    make = random_bits(torch.float16, slot)
    k, v = (make(4, 1, 8, 2, 64) for _ in range(2))
    caches = [make(1, 4 * FRAME, 2, 64) for _ in range(2)]
    expected = twins(*caches)
    unpack_kv_write(Sim("sm_90a"), k, v, *caches, ints(slot, 2), FRAME, 2 * FRAME)
    block = [x.transpose(0, 1).flatten(1, 2) for x in (k, v)]
    for cache, x in zip(expected, block, strict=True):
        cache[:, 2 * FRAME : 3 * FRAME] = x[:, FRAME : 2 * FRAME]
    assert_same_memory(caches, expected)


def test_a_partly_filled_last_slot_takes_what_fits() -> None:
    """Rows 8 and 9 of a cache of 10: slot 2 has two rows, and the block has three for it."""
    make = random_bits(torch.float16)
    k, v = (make(2, 1, 4, 2, 64) for _ in range(2))
    caches = [make(1, 10, 2, 64) for _ in range(2)]
    expected = twins(*caches)
    unpack_kv_write(Sim("sm_90a"), k, v, *caches, ints(0, 2), 4, 7)
    for cache, x in zip(expected, (k, v), strict=True):
        block = x.transpose(0, 1).flatten(1, 2)
        cache[:, :4], cache[:, 8:] = block[:, :4], block[:, 4:6]
    assert_same_memory(caches, expected)


def test_empty() -> None:
    on = Sim("sm_80")
    x, w = torch.zeros(1, 0, 2, 32), torch.ones(64)
    qk_norm_rope_pack(on, x, x, x, w, w, 1e-6, *host.index(2, 32))
    received, cache = torch.zeros(2, 1, 0, 2, 32), torch.zeros(1, 15, 2, 32)
    unpack_kv_write(on, received, received, cache, cache.clone(), ints(), 15, 0)
    assert on.kernels == []
