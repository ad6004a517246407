"""rope_3d's CUDA kernels: the bits of the CPU kernel, which its own tests hold to the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.helpers import (
    DTYPES,
    READ_LAYOUTS,
    assert_same_bits,
    dtype_id,
    ints,
    normal,
    random_bits,
    tables,
)

from . import has_nvcc
from .launch import ARCHS
from .ops import Sim, rope_3d

pytestmark = pytest.mark.skipif(not has_nvcc(), reason="no nvcc to compile the kernels")
HEIGHT, WIDTH = 3, 5
FRAME = HEIGHT * WIDTH
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
every_arch = pytest.mark.parametrize("arch", ARCHS)


def assert_as_on_the_cpu(on: Sim, *args: Any, **options: Any) -> Tensor:
    got = rope_3d(on, *args, **options)
    assert_same_bits(got, torch.ops.vidk.rope_3d(*args, **options))
    assert not any(report["warnings"] for report in on.reports)
    return got


@every_arch
@every_dtype
@pytest.mark.parametrize("layout", READ_LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype, arch: str) -> None:
    x = READ_LAYOUTS[layout](normal(dtype, layout), 2, 2 * FRAME + 7, 3, 128)
    assert_as_on_the_cpu(Sim(arch), x, ints(5, 63, 0), *tables(128, HEIGHT, WIDTH), HEIGHT, WIDTH)


@every_dtype
@pytest.mark.parametrize("layout", ["contiguous", "fused_qkv"])
@pytest.mark.parametrize("head_dim", [2, 6, 20, 32, 48, 64, 96, 256])
def test_head_dims(head_dim: int, layout: str, dtype: torch.dtype) -> None:
    x = READ_LAYOUTS[layout](normal(dtype, layout, head_dim), 1, 2 * FRAME + 7, 5, head_dim)
    args = (ints(5, 63, 0), *tables(head_dim, HEIGHT, WIDTH), HEIGHT, WIDTH)
    assert_as_on_the_cpu(Sim("sm_90a"), x, *args)


@pytest.mark.parametrize("seed", range(3))
@every_dtype
@pytest.mark.parametrize(
    ("token_offset", "slice_tokens", "tokens"),
    [(0, 4, 12), (7, None, 2 * FRAME), (FRAME + 3, None, 9), (11, 4, 8), (13, 15, 15), (44, 2, 3)],
)
def test_shards(
    token_offset: int, slice_tokens: int | None, tokens: int, dtype: torch.dtype, seed: int
) -> None:
    x = READ_LAYOUTS["fused_qkv"](normal(dtype, token_offset), 2, tokens, 2, 64)
    assert_as_on_the_cpu(
        Sim("sm_80", {"seed": seed}), x, ints(9, 2, 30), *tables(64, HEIGHT, WIDTH), HEIGHT, WIDTH,
        token_offset=token_offset, slice_tokens=slice_tokens,
    )  # fmt: skip


@every_arch
@every_dtype
@pytest.mark.parametrize("frames", [0, 1])
def test_padding_keeps_its_bits(frames: int, dtype: torch.dtype, arch: str) -> None:
    x = random_bits(dtype, frames)(1, FRAME + 4, 3, 32)
    pos = torch.arange(frames, dtype=torch.int32) + 7
    args = (x, pos, *tables(32, HEIGHT, WIDTH), HEIGHT, WIDTH)
    got = rope_3d(Sim(arch), *args)
    assert_same_bits(got[:, frames * FRAME :], x[:, frames * FRAME :])


@every_dtype
@pytest.mark.parametrize("position", [-1, 64, 2**31 - 1, -(2**31)])
def test_position_past_the_table(position: int, dtype: torch.dtype) -> None:
    """Nothing beyond the table is read, and the frame passes unrotated."""
    x = normal(dtype)(1, 3 * FRAME, 2, 32)
    got = rope_3d(Sim("sm_90a"), x, ints(3, position, 9), *tables(32, HEIGHT, WIDTH), HEIGHT, WIDTH)
    clean = torch.ops.vidk.rope_3d(x, ints(3, 0, 9), *tables(32, HEIGHT, WIDTH), HEIGHT, WIDTH)
    clean[:, FRAME : 2 * FRAME] = x[:, FRAME : 2 * FRAME]
    assert_same_bits(got, clean)


def test_empty() -> None:
    on = Sim("sm_80")
    x = torch.zeros(1, 0, 2, 32)
    assert rope_3d(on, x, ints(3), *tables(32, HEIGHT, WIDTH), HEIGHT, WIDTH).shape == x.shape
    assert on.kernels == []
