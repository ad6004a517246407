"""Offsets past 2**31 elements and bytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.helpers import far_apart, ints, normal, random_bits, tables

from .helpers import same_bits

NEEDED = 24 << 30


@pytest.fixture(autouse=True)
def room() -> None:
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    if free < NEEDED:
        pytest.skip(f"needs {NEEDED >> 30} GiB of free GPU memory, this one has {free >> 30}")


def far(x: Tensor, dim: int) -> Tensor:
    with torch.device("cuda"):
        return far_apart(x, dim)


def cuda(*tensors: Tensor) -> list[Tensor]:
    return [x.cuda() for x in tensors]


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_rope_3d(dim: int) -> None:
    x, *index = cuda(normal(torch.bfloat16)(2, 3, 2, 128), ints(9), *tables(128, 1, 3))
    got = torch.ops.vidk.rope_3d(far(x, dim), *index, 1, 3)
    assert same_bits(got, torch.ops.vidk.rope_3d(x, *index, 1, 3))


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_kv_cache_write(dim: int) -> None:
    make = random_bits(torch.bfloat16, dim)
    *caches, k, v, slots = cuda(*(make(2, 3, 2, 128) for _ in range(4)), ints(2, 0))
    there = [far(c, dim) for c in caches]
    torch.ops.vidk.kv_cache_write(k[:, :2], v[:, :2], *there, slots, 1)
    torch.ops.vidk.kv_cache_write(k[:, :2], v[:, :2], *caches, slots, 1)
    for a, b in zip(there, caches, strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("dim", [1, 128])
def test_rows_past_2_31_elements_of_a_dense_cache(dim: int) -> None:
    frame_tokens = 2**20
    slot = 2**31 // (frame_tokens * dim)
    store = torch.zeros(2, 2**31 + 2 * dim, dtype=torch.bfloat16, device="cuda")
    caches = [s[: (slot * frame_tokens + 2) * dim].view(1, -1, 1, dim) for s in store]
    k, v = cuda(*random_bits(torch.bfloat16)(2, 1, 1, 1, dim))
    torch.ops.vidk.kv_cache_write(k, v, *caches, ints(slot).cuda(), frame_tokens)
    for cache, x in zip(caches, (k, v), strict=True):
        assert same_bits(cache[:, slot * frame_tokens, None], x)
        assert not cache[:, : slot * frame_tokens].any()
        assert not cache[:, slot * frame_tokens + 1 :].any()


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_qk_norm_rope_kv_write(dim: int) -> None:
    make = normal(torch.bfloat16, dim)
    index = (ints(7), ints(0), *tables(128, 1, 3))
    q, k, v, *caches = cuda(*(make(2, 3, 2, 128) for _ in range(5)))
    w, index = cuda(make(256), make(256)), cuda(*index)
    there = [far(c, dim) for c in caches]
    op = torch.ops.vidk.qk_norm_rope_kv_write
    got = op(far(q, dim), k, v, *w, 1e-6, *index, 1, 3, *there)
    assert same_bits(got, op(q, k, v, *w, 1e-6, *index, 1, 3, *caches))
    for a, b in zip(there, caches, strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("which", ["q", "k_cache", "v_cache"])
def test_attention(which: str, dim: int) -> None:
    make = normal(torch.bfloat16, dim, which)
    args = dict(
        zip(("q", "k_cache", "v_cache"), cuda(*(make(2, 3, 2, 128) for _ in "qkv")), strict=True)
    )
    n = ints(3).cuda()
    expected = torch.ops.vidk.attention(*args.values(), n)
    args[which] = far(args[which], dim)
    for a, b in zip(torch.ops.vidk.attention(*args.values(), n), expected, strict=True):
        assert same_bits(a, b)
