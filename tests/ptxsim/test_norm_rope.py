"""qk_norm_rope_kv_write's CUDA kernels, by the checks that hold the CPU kernel."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.ops import test_norm_rope as host
from tests.ops.helpers import (
    CACHES,
    DTYPES,
    READ_LAYOUTS,
    assert_same_bits,
    dtype_id,
    ints,
    normal,
    random_bits,
    tables,
    twins,
)

from . import has_nvcc
from .launch import ARCHS
from .ops import Sim, qk_norm_rope_kv_write

pytestmark = pytest.mark.skipif(not has_nvcc(), reason="no nvcc to compile the kernels")
FRAME = host.FRAME
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
every_arch = pytest.mark.parametrize("arch", ARCHS)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch):
    """Return a function that puts the simulated op in the place of the CPU's."""

    def install(on: Sim) -> Sim:
        monkeypatch.setattr(host, "op", partial(qk_norm_rope_kv_write, on))
        return on

    return install


@every_arch
@every_dtype
@pytest.mark.parametrize("layout", READ_LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype, arch: str, use) -> None:
    on = use(Sim(arch))
    make = normal(dtype, layout)
    q, k, v = (READ_LAYOUTS[layout](make, 2, 2 * FRAME + 7, 3, 128) for _ in range(3))
    caches = CACHES["two_tensors"](random_bits(dtype, layout), 2, 5 * FRAME, 3, 128)
    idx = host.index(128, ints(7, 63, 0), ints(4, 1, 2))
    host.check(q, k, v, host.weights(make, 3 * 128), idx, caches)
    assert not any(report["warnings"] for report in on.reports)


@every_dtype
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(("heads", "head_dim"), [(3, 2), (5, 6), (4, 20), (2, 96), (1, 256)])
def test_head_dims_and_caches(
    heads: int, head_dim: int, cache: str, dtype: torch.dtype, use
) -> None:
    use(Sim("sm_90a"))
    make = normal(dtype, cache, head_dim)
    q, k, v = make(2, 2 * FRAME, 3, heads, head_dim).unbind(2)
    caches = CACHES[cache](random_bits(dtype, cache), 2, 4 * FRAME, heads, head_dim)
    idx = host.index(head_dim, ints(2, 9), ints(3, 0))
    host.check(q, k, v, host.weights(make, heads * head_dim), idx, caches)


@pytest.mark.parametrize("seed", [0, 1, 2])
@every_dtype
@pytest.mark.parametrize("heads", [12, 24, 40, 96, 200])
def test_wide_rows(heads: int, dtype: torch.dtype, seed: int, use) -> None:
    """Every number of vectors that a thread can hold, and rows that fit in no registers."""
    on = use(Sim("sm_120a", {"seed": seed}))
    make = normal(dtype, heads)
    q, k, v = make(1, 20, 3, heads, 128).unbind(2)
    caches = CACHES["layer_of_stack"](make, 1, 30, heads, 128)
    idx = (ints(7, 3), ints(1, 0), *tables(128, 3, 5), 3, 5)
    host.check(q, k, v, host.weights(make, heads * 128), idx, caches)
    assert not any(report["warnings"] for report in on.reports)


@every_dtype
@pytest.mark.parametrize("heads", [2, 200])
@pytest.mark.parametrize(("slot", "position"), [(-1, 3), (4, 3), (2**31 - 1, 3), (0, -1), (0, 64)])
def test_index_out_of_range(slot: int, position: int, heads: int, dtype: torch.dtype) -> None:
    """A frame without a slot is not written; one past the table is not rotated."""
    make = normal(dtype, heads)
    q, k, v = make(1, 2 * FRAME, 3, heads, 128).unbind(2)
    caches = [make(1, 4 * FRAME, heads, 128) for _ in range(2)]
    clean, before = twins(*caches), twins(*caches)
    args = (q, k, v, *host.weights(make, heads * 128), host.EPS)
    grid = (*tables(128, host.HEIGHT, host.WIDTH), host.HEIGHT, host.WIDTH)
    got = qk_norm_rope_kv_write(
        Sim("sm_90a"), *args, ints(position, 5), ints(slot, 2), *grid, *caches
    )
    expected = qk_norm_rope_kv_write(Sim("sm_90a"), *args, ints(3, 5), ints(0, 2), *grid, *clean)
    # The frame that is in range is as it always was.
    assert_same_bits(got[:, FRAME:], expected[:, FRAME:])
    for i, (a, b, old) in enumerate(zip(caches, clean, before, strict=True)):
        assert_same_bits(a[:, FRAME:], b[:, FRAME:])
        if slot != 0:
            assert_same_bits(a[:, :FRAME], old[:, :FRAME])
        elif i == 1:
            assert_same_bits(a, b)
    if position == 3:
        assert_same_bits(got, expected)


def test_empty() -> None:
    on = Sim("sm_80")
    x, cache = torch.zeros(1, 0, 2, 32), torch.zeros(1, 15, 2, 32)
    w = torch.ones(64)
    idx = (ints(), ints(), *tables(32, 3, 5), 3, 5)
    qk_norm_rope_kv_write(on, x, x, x, w, w, 1e-6, *idx, cache, cache.clone())
    assert on.kernels == []
