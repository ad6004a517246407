"""No kernel is in the wheel that nobody simulated: every one, for every architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.ops.helpers import DTYPES, assert_same_bits, ints, normal, tables
from tests.ops.test_fp4_kv import EPS, Block, given
from vidk.ops.nvfp4 import RECIPES

from . import has_nvcc, ops
from .fp4_problem import BOUND, random_problem
from .launch import ARCHS, entries, has_code, target_of

pytestmark = pytest.mark.skipif(not has_nvcc(), reason="no nvcc to compile the kernels")
host = torch.ops.vidk
HEIGHT, WIDTH = 2, 3
FRAME = HEIGHT * WIDTH


def view(dtype: torch.dtype, heads: int, dim: int, width: int, *key: object) -> Tensor:
    """Return random `[1, S, H, D]` values whose accesses can be `width` bytes and no wider."""
    size = FRAME * heads * dim
    store = normal(dtype, *key)(size + 64)
    skip = -store.data_ptr() // dtype.itemsize % 16 + (width if width < 16 else 0) // dtype.itemsize
    return store[skip : skip + size].view(1, FRAME, heads, dim)


def index(dim: int) -> tuple:
    return (*tables(dim, HEIGHT, WIDTH), HEIGHT, WIDTH)


def check_rope(on: ops.Sim, dtype: torch.dtype, width: int) -> None:
    args = (view(dtype, 2, 32, width), ints(3), *index(32))
    assert_same_bits(ops.rope_3d(on, *args), host.rope_3d(*args))


def check_kv_cache(on: ops.Sim, dtype: torch.dtype, width: int) -> None:
    k, v, *caches = (view(dtype, 2, 32, width, name) for name in ("k", "v", "kc", "vc"))
    ops.kv_cache_write(on, k, v, *caches, ints(0), FRAME)
    for cache, x in zip(caches, (k, v), strict=True):
        assert_same_bits(cache, x)


def check_norm_rope(on: ops.Sim, dtype: torch.dtype, heads: int, dim: int, width: int) -> None:
    q, k, v, *caches = (view(dtype, heads, dim, width, n) for n in ("q", "k", "v", "kc", "vc"))
    w = torch.ones(heads * dim, dtype=dtype)
    args = (q, k, v, w, w, 1e-6, ints(3), ints(0), *index(dim))
    expected = [torch.zeros(1, FRAME, heads, dim, dtype=dtype) for _ in range(2)]
    q_expected = host.qk_norm_rope_kv_write(*args, *expected)
    got = ops.qk_norm_rope_kv_write(on, *args, *caches)
    tolerance = 8 * torch.finfo(dtype).eps
    assert (got.float() - q_expected.float()).abs().max() <= tolerance * q_expected.abs().max()
    assert (caches[0].float() - expected[0].float()).abs().max() <= tolerance * expected[0].max()
    assert_same_bits(caches[1], v)


def check_pack(on: ops.Sim, dtype: torch.dtype, heads: int, dim: int, width: int) -> None:
    q, k, v = (view(dtype, heads, dim, width, name) for name in "qkv")
    w = torch.ones(heads * dim, dtype=dtype)
    args = (q, k, v, w, w, 1e-6, ints(3, 5), *index(dim), 2)
    expected = host.qk_norm_rope_pack(*args, token_offset=2).float()
    got = ops.qk_norm_rope_pack(on, *args, token_offset=2)
    assert (got.float() - expected).abs().max() <= 8 * torch.finfo(dtype).eps * expected.max()
    assert_same_bits(got[:, 2].float(), expected[:, 2])


def check_unpack(on: ops.Sim, dtype: torch.dtype, width: int) -> None:
    k, v, *caches = (view(dtype, 2, 32, width, name) for name in ("k", "v", "kc", "vc"))
    received = [x.view(2, 1, FRAME // 2, 2, 32) for x in (k, v)]
    ops.unpack_kv_write(on, *received, *caches, ints(0), FRAME, FRAME)
    for cache, x in zip(caches, (k, v), strict=True):
        assert_same_bits(cache, x)


def check_all_gather(on: ops.Sim, dtype: torch.dtype, width: int) -> None:
    """One rank alone, which waits for itself."""
    x = view(dtype, 2, 32, width)
    out = torch.empty(1, *x.shape, dtype=dtype)
    ops.all_gather_rope(on, x, ints(3), *index(32), out, 0, "")
    assert_same_bits(out[0], host.rope_3d(x, ints(3), *index(32)))


def check_nvfp4(on: ops.Sim, dtype: torch.dtype, width: int) -> None:
    x = view(dtype, 2, 32, width)
    for recipe in RECIPES:
        got = ops.nvfp4_quantize(on, x, recipe=recipe)
        for mine, expected in zip(got, host.nvfp4_quantize(x, recipe=recipe), strict=True):
            assert_same_bits(mine, expected)


def check_attention(on: ops.Sim, dtype: torch.dtype, choice: str) -> None:
    q, k, v = (normal(dtype, name)(1, n, 2, 128) for name, n in (("q", 9), ("k", 30), ("v", 30)))
    out, lse = ops.attention(on, q, k, v, ints(20), choice=choice)
    expected, lse_expected = host.attention(q.float(), k.float(), v.float(), ints(20))
    assert (out.float() - expected).abs().max() < 4 * torch.finfo(dtype).eps
    assert (lse - lse_expected).abs().max() < 1e-4


def check_fp4_attention(on: ops.Sim, recipe: str, values: torch.dtype, choice: str) -> None:
    problem = random_problem(recipe, 9, 30, 2, values)
    out, lse = problem.run(50, on, choice=choice)
    expected, lse_expected = problem.expected(50)
    assert (out - expected).norm() <= BOUND[values] * expected.norm()
    assert (lse - lse_expected).abs().max() < 1e-4


def check_fp4_kv(on: ops.Sim, recipe: str, heads: int) -> None:
    block = Block(recipe, heads=heads, height=2, width=3, batch=1)
    args = (*block.qkv(), *block.weights(), EPS, *block.index())
    caches, expected_caches = block.caches(), block.caches()
    got = ops.qk_norm_rope_nvfp4_kv_write(on, *args, *caches, recipe=recipe)
    expected = host.qk_norm_rope_nvfp4_kv_write(*args, *expected_caches, recipe=recipe)
    # A bit of q or k may differ, and then a code.
    pairs = zip((*got[1:], *given(caches)), (*expected[1:], *given(expected_caches)), strict=True)
    for mine, oracle in pairs:
        same = mine.contiguous().view(torch.uint8) == oracle.contiguous().view(torch.uint8)
        assert same.float().mean() > 0.99


@pytest.mark.parametrize("arch", ARCHS)
def test_every_kernel(arch: str) -> None:
    on = ops.Sim(arch)
    for dtype in DTYPES:
        for width in (w for w in (16, 8, 4, 2) if w >= dtype.itemsize):
            check_rope(on, dtype, width)
            check_kv_cache(on, dtype, width)
            check_norm_rope(on, dtype, 2, 32, width)
            check_pack(on, dtype, 2, 32, width)
            check_unpack(on, dtype, width)
            check_all_gather(on, dtype, width)
            check_nvfp4(on, dtype, width)
        for heads in (12, 24, 40, 400):  # more and more vectors a thread
            check_norm_rope(on, dtype, heads, 128, 16)
            check_pack(on, dtype, heads, 128, 16)
        for choice in ("auto", "simt"):
            check_attention(on, dtype, choice)
    for recipe in ("plain", "default", "accurate", "mxfp8"):
        for heads in (2, 14, 18):  # keys finished with the means, and not; two vectors a thread
            check_fp4_kv(on, recipe, heads)
    for recipe in ("plain", "accurate", "accurate256", "mxfp8"):  # every depth and format
        for values in (torch.bfloat16, torch.float8_e4m3fn):
            for choice in ("auto", "portable"):
                check_fp4_attention(on, recipe, values, choice)
    # Kernels of attention for every architecture but Hopper, which has others.
    hopper = "vidk_attention_sm90"
    other = ("vidk_attention_sm80", "vidk_fp4_attention_portable") if arch == "sm_90a" else hopper
    expected = {n for n in entries() if not n.startswith(other) and has_code(n, arch)}
    assert set(on.kernels) == expected
    assert all(len(files) == 1 for files in entries().values())
    assert not any(report["warnings"] for report in on.reports)


def test_targets_that_a_source_names(tmp_path: Path) -> None:
    path = tmp_path / "kernel.cu"
    path.write_text("// Text.\n// VIDK_ARCHS 100a 120f\n")
    targets = {"sm_100a": "sm_100a", "sm_120a": "sm_120f", "sm_121a": "sm_120f"}
    for arch in (*ARCHS, "sm_121a"):
        assert target_of(path, arch) == targets.get(arch)
    other = tmp_path / "other.cu"
    other.write_text("")
    assert all(target_of(other, arch) == arch for arch in ARCHS)
