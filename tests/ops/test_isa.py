"""All instruction sets and thread counts give the same bits."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import vidk
from vidk.ops.fp4_quantize import depth_unit
from vidk.ops.nvfp4 import RECIPES
from vidk.reference import fp4

from .helpers import CACHES, DTYPES, Make, ints, normal, random_bits, tables
from .test_fp4_kv import Block, given

ISAS = vidk.build_info()["cpu_isas"]
# The folder that holds `vidk` and the one that holds this package, for the child process.
PATHS = [os.path.dirname(os.path.dirname(p)) for p in (vidk.__file__, __file__)]


def digest(dtype: torch.dtype, head_dim: int) -> str:
    """Return a hash of what every vectorised op makes of arbitrary and of normal values.

    NaNs are made alike: an operation on two of them may give the payload of either.
    """
    sha = hashlib.sha256()

    def add(*results: Tensor) -> None:
        for x in results:
            plain = torch.where(x.isnan(), torch.full_like(x, float("nan")), x)
            sha.update(plain.contiguous().view(torch.uint8).numpy().tobytes())

    grid = (ints(9, 61, 0), *tables(head_dim, 3, 5), 3, 5)
    for make in (normal(dtype), random_bits(dtype)):
        q, k, v = make(2, 40, 3, 3, head_dim).unbind(2)
        add(vidk.rope_3d(q, *grid))
        weights = (make(3 * head_dim), make(3 * head_dim))
        pos, *rest = grid
        caches = CACHES["k_beside_v_in_token"](make, 2, 60, 3, head_dim)
        add(
            vidk.qk_norm_rope_kv_write(q, k, v, *weights, 1e-6, pos, ints(3, 0, 2), *rest, *caches),
            *caches,
        )
        shard = {"token_offset": 2, "slice_tokens": 14}
        add(vidk.qk_norm_rope_pack(q, k, v, *weights, 1e-6, *grid, 3, **shard))
        if head_dim % 16 == 0:
            for recipe in RECIPES:
                packed, scales = vidk.nvfp4_quantize(q, recipe=recipe)
                add(packed.float(), scales.float())
        if head_dim % 64 == 0:
            add(*fp4_kv(make, head_dim))
    return sha.hexdigest()


def fp4_kv(make: Make, head_dim: int) -> list[Tensor]:
    """Return what qk_norm_rope_nvfp4_kv_write makes of all recipes that fit the head dim."""
    results: list[Tensor] = []
    for recipe in (name for name in fp4.RECIPES if head_dim % depth_unit(name) == 0):
        for fp8 in (False, True):
            block = Block(recipe, make(1).dtype, dim=head_dim, fp8=fp8, sorted=fp8)
            size = (block.batch, block.frames * block.rows, block.heads, head_dim)
            weights = [make(block.heads * head_dim) for _ in range(2)]
            caches = [None if x is None else torch.zeros_like(x) for x in block.caches()]
            qkv = [make(*size) for _ in range(3)]
            out = vidk.qk_norm_rope_nvfp4_kv_write(
                *qkv, *weights, 1e-6, *block.index(), *caches, recipe=recipe, perm=block.perm()
            )
            results += [x.float() for x in (*out, *given(caches))]
    return results


def digests() -> str:
    """Return one line for each dtype and for head dims that end in every width of register."""
    return "\n".join(
        f"{dtype} {dim} {digest(dtype, dim)}"
        for dtype in DTYPES
        for dim in (2, 6, 62, 64, 96, 128, 240)
    )


def in_child(isa: str) -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.path[:0] = {PATHS!r}; import vidk, {__name__} as t; "
    program += "print(vidk.build_info()['cpu_isa']); print(t.digests())"
    return subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"VIDK_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("isa", ISAS)
def test_same_bits(isa: str) -> None:
    child = in_child(isa)
    refusal = re.search(r"that this CPU has \(the best is '(\w+)'\)", child.stderr)
    if refusal:
        assert child.returncode != 0
        assert ISAS.index(isa) > ISAS.index(refusal[1])
        return
    assert child.returncode == 0, child.stderr
    used, *lines = child.stdout.splitlines()
    assert used == isa
    assert lines == digests().splitlines()


def test_unknown_isa_is_refused() -> None:
    child = in_child("sse9")
    assert child.returncode != 0
    assert "VIDK_CPU_ISA: got 'sse9', expected 'generic', 'avx2' or 'avx512'" in child.stderr
