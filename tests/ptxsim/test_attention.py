"""The attention kernels, by the checks that hold the CPU's: every tile shape and every length."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.ops import test_attention as host
from tests.ops import test_cross_attention as cross_host
from tests.ops.helpers import DTYPES, HALVES, READ_LAYOUTS, dtype_id, ints, normal

from . import has_nvcc
from .launch import ARCHS
from .ops import Sim, attention, cross_attention

pytestmark = pytest.mark.skipif(not has_nvcc(), reason="no nvcc to compile the kernels")
every_half = pytest.mark.parametrize("dtype", HALVES, ids=dtype_id)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
every_pad = pytest.mark.parametrize("pad", ["trained", "mask"])
# The kernels with tiles: what a Hopper GPU takes, and what all others do.
TILE_ARCHS = ("sm_80", "sm_90a")
tile_archs = pytest.mark.parametrize("arch", TILE_ARCHS)
every_policy = pytest.mark.parametrize("policy", ["eager", "late", "random"])


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch):
    """Return a function that puts the simulated ops in the place of the CPU's."""

    def install(on: Sim, choice: str = "auto") -> Sim:
        monkeypatch.setattr(host, "attention", partial(attention, on, choice=choice))
        monkeypatch.setattr(
            cross_host, "cross_attention", partial(cross_attention, on, choice=choice)
        )
        return on

    return install


def assert_calm(on: Sim, kernel: str) -> None:
    assert on.kernels and all(kernel in name for name in on.kernels)
    assert not any(report["warnings"] for report in on.reports)


@tile_archs
@every_half
@pytest.mark.parametrize("queries", [1, 63, 129])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 175, 176, 177, 300, 400])
def test_lengths(length: int, queries: int, dtype: torch.dtype, arch: str, use) -> None:
    on = use(Sim(arch))
    make = normal(dtype, length, queries)
    host.check(make(1, queries, 2, 128), make(1, 400, 2, 128), make(1, 400, 2, 128), length)
    assert_calm(on, arch[:5].replace("_", ""))


@tile_archs
@every_half
def test_no_keys(dtype: torch.dtype, arch: str) -> None:
    make = normal(dtype)
    q, k = make(2, 70, 2, 128), make(2, 100, 2, 128).fill_(float("nan"))
    for length in (0, -1, -(2**31)):
        out, lse = attention(Sim(arch), q, k, k, ints(length))
        assert (out == 0).all() and (lse == -float("inf")).all()


@tile_archs
@every_half
@pytest.mark.parametrize("length", [101, 2**31 - 1])
def test_length_past_the_cache_is_all_of_it(length: int, dtype: torch.dtype, arch: str) -> None:
    make = normal(dtype)
    q, k, v = make(1, 40, 1, 128), make(1, 100, 1, 128), make(1, 100, 1, 128)
    got = attention(Sim(arch), q, k, v, ints(length))
    assert all(map(torch.equal, got, attention(Sim(arch), q, k, v, ints(100))))


@tile_archs
@every_policy
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_schedules(seed: int, policy: str, arch: str, use) -> None:
    """Whatever the order of warps and copies, the same bits."""
    make = normal(torch.bfloat16, seed)
    q, k, v = make(1, 130, 2, 128), make(1, 600, 2, 128), make(1, 600, 2, 128)
    on = Sim(arch, {"policy": policy, "seed": seed})
    got = attention(on, q, k, v, ints(555))
    assert all(map(torch.equal, got, attention(Sim(arch), q, k, v, ints(555))))
    assert_calm(on, "attention")


@tile_archs
@every_half
@pytest.mark.parametrize("layout", READ_LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype, arch: str, use) -> None:
    """Strides that a tile kernel cannot take go to the plain one; both are right."""
    on = use(Sim(arch))
    make = normal(dtype, layout)
    q, k, v = (READ_LAYOUTS[layout](make, 2, s, 3, 128) for s in (70, 200, 200))
    if "stride_0" in layout:
        q = make(2, 70, 3, 128)
        n = ints(200)
        expected = host.reference.attention(q, k, v, n)[0]
        got = host.attention(q, k, v, n)[0]
        assert (got.double() - expected.double()).abs().max() < 0.01
    else:
        host.check(q, k, v, 150)
    simt = layout in ("unaligned", "end_of_wide_row") or ("stride_0" in layout and arch == "sm_90a")
    assert_calm(on, "simt" if simt else "d128")


@tile_archs
def test_products_rounded_as_tensor_cores_do(arch: str, use) -> None:
    use(Sim(arch, {"truncate_products": True}))
    make = normal(torch.bfloat16)
    host.check(make(1, 64, 1, 128), make(1, 256, 1, 128), make(1, 256, 1, 128), 256)


@tile_archs
@pytest.mark.parametrize("scale", [0.01, 3.0])
def test_scales(scale: float, arch: str, use) -> None:
    use(Sim(arch))
    make = normal(torch.bfloat16, scale)
    host.check(make(1, 64, 1, 128), make(1, 256, 1, 128), make(1, 256, 1, 128), 200, scale)


@pytest.mark.parametrize("arch", ARCHS)
@every_dtype
@pytest.mark.parametrize(("head_dim", "length"), [(33, 1), (64, 70), (128, 37), (300, 5)])
def test_any_head_dim(head_dim: int, length: int, dtype: torch.dtype, arch: str, use) -> None:
    on = use(Sim(arch), "simt")
    make = normal(dtype, head_dim)
    host.check(*(make(2, s, 3, head_dim) for s in (9, 80, 80)), length)
    assert_calm(on, "simt")


@every_pad
@tile_archs
@every_half
@pytest.mark.parametrize("lens", [[5, 80], [0, 79], [33, 64]])
def test_cross_attention(lens: list[int], dtype: torch.dtype, arch: str, pad: str, use) -> None:
    on = use(Sim(arch))
    make = normal(dtype, *lens)
    q, k, v = make(2, 70, 2, 128), make(2, 80, 2, 128), make(2, 80, 2, 128)
    cross_host.padded(lens, k, v)
    cross_host.check(q, k, v, lens, pad)
    assert_calm(on, "d128")


@every_pad
@every_dtype
def test_cross_attention_with_any_head_dim(dtype: torch.dtype, pad: str, use) -> None:
    on = use(Sim("sm_90a"))
    make = normal(dtype)
    q, k, v = make(3, 9, 2, 48), make(3, 20, 2, 48), make(3, 20, 2, 48)
    cross_host.padded([0, 7, 20], k, v)
    cross_host.check(q, k, v, [0, 7, 20], pad)
    assert_calm(on, "simt")


@tile_archs
def test_nan_in_q_stays_in_its_row(arch: str) -> None:
    make = normal(torch.bfloat16)
    q, k, v = make(1, 70, 2, 128), make(1, 100, 2, 128), make(1, 100, 2, 128)
    clean, _ = attention(Sim(arch), q, k, v, ints(90))
    q[0, 8, 1, 6] = float("nan")
    got, _ = attention(Sim(arch), q, k, v, ints(90))
    assert got[0, 8, 1].isnan().all()
    got[0, 8, 1] = clean[0, 8, 1]
    assert torch.equal(got, clean)


def test_empty() -> None:
    on = Sim("sm_90a")
    q, k = torch.zeros(1, 0, 2, 128).bfloat16(), torch.zeros(1, 4, 2, 128).bfloat16()
    attention(on, q, k, k, ints(4))
    assert on.kernels == []
