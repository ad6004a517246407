"""kv_cache_write's GPU kernels: the memory that the CPU kernel leaves, and nothing around it."""

from __future__ import annotations

import pytest
import torch

from tests.ops.helpers import (
    CACHES,
    DTYPES,
    READ_LAYOUTS,
    assert_same_memory,
    dtype_id,
    ints,
    normal,
    random_bits,
    twins,
)

from . import has_nvcc
from .launch import ARCHS
from .ops import Sim, kv_cache_write

pytestmark = pytest.mark.skipif(not has_nvcc(), reason="no nvcc to compile the kernels")
FRAME = 6
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
every_arch = pytest.mark.parametrize("arch", ARCHS)


@every_arch
@every_dtype
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("layout", ["contiguous", "fused_qkv", "unaligned", "end_of_wide_row"])
def test_layouts(layout: str, cache: str, dtype: torch.dtype, arch: str) -> None:
    make = random_bits(dtype, layout, cache)
    k, v = (READ_LAYOUTS[layout](make, 2, 2 * FRAME + 5, 3, 24) for _ in range(2))
    caches = CACHES[cache](make, 2, 5 * FRAME, 3, 24)
    expected = twins(*caches)
    torch.ops.vidk.kv_cache_write(k, v, *expected, ints(4, 0, 2), FRAME)
    on = Sim(arch)
    kv_cache_write(on, k, v, *caches, ints(4, 0, 2), FRAME)
    assert_same_memory(list(caches), expected)
    assert not any(report["warnings"] for report in on.reports)


@every_arch
@pytest.mark.parametrize("slot", [-1, 5, 6, 2**31 - 1, -(2**31)])
def test_slot_out_of_range_is_skipped(slot: int, arch: str) -> None:
    make = normal(torch.bfloat16, slot)
    k, v = make(1, 2 * FRAME, 2, 32), make(1, 2 * FRAME, 2, 32)
    # The last slot of a cache may be cut: five frames and a half.
    caches = [make(1, 5 * FRAME + 3, 2, 32) for _ in range(2)]
    expected = twins(*caches)
    rows = [FRAME + i for i in range(FRAME)]
    for c, x in zip(expected, (k, v), strict=True):
        c[:, rows] = x[:, FRAME:]
        if slot == 5:
            c[:, 5 * FRAME :] = x[:, :3]
    kv_cache_write(Sim(arch), k, v, *caches, ints(slot, 1), FRAME)
    assert_same_memory(caches, expected)


@pytest.mark.parametrize("seed", [1, 2])
def test_wide_rows(seed: int) -> None:
    make = normal(torch.bfloat16)
    k, v = READ_LAYOUTS["fused_qkv"](make, 1, 9, 40, 128), make(1, 9, 40, 128)
    caches = [make(1, 12, 40, 128) for _ in range(2)]
    expected = twins(*caches)
    torch.ops.vidk.kv_cache_write(k, v, *expected, ints(3, 1, 0), 3)
    kv_cache_write(Sim("sm_90a", {"seed": seed}), k, v, *caches, ints(3, 1, 0), 3)
    assert_same_memory(caches, expected)


def test_empty() -> None:
    on = Sim("sm_80")
    x, cache = torch.zeros(1, 0, 2, 32), torch.zeros(1, 12, 2, 32)
    kv_cache_write(on, x, x, cache, cache.clone(), ints(), FRAME)
    assert on.kernels == []
