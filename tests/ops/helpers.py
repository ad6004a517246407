"""Layouts, tables and comparisons that the op tests share."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import vidk  # noqa: F401  (registers torch.ops.vidk)
from vidk.rope import band_pairs, freq_table

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HALVES = [torch.bfloat16, torch.float16]
HEAD_DIMS = [2, 6, 32, 48, 64, 96, 128]
INTS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}

Make = Callable[..., Tensor]


def dtype_id(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def seeded(*key: object) -> torch.Generator:
    """Return a generator whose seed is the test's own case, so that cases do not share data."""
    return torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))


def normal(dtype: torch.dtype, *key: object) -> Make:
    """Return a maker of unit-normal tensors."""
    generator = seeded(dtype, *key)
    return lambda *size: torch.randn(*size, generator=generator).to(dtype)


def random_bits(dtype: torch.dtype, *key: object) -> Make:
    """Return a maker of tensors of any bits: NaNs of every payload, infinities, denormals."""
    generator = seeded("bits", dtype, *key)
    ints = INTS[dtype.itemsize]
    low, high = torch.iinfo(ints).min, torch.iinfo(ints).max
    return lambda *size: (
        torch.randint(low, high + 1, size, generator=generator, dtype=torch.int64)
        .to(ints)
        .view(dtype)
    )


# Views as models hand them over, and some that only a test would: name -> (make, B, S, H, D).
LAYOUTS: dict[str, Callable[[Make, int, int, int, int], Tensor]] = {
    "contiguous": lambda make, b, s, h, d: make(b, s, h, d),
    "fused_qkv": lambda make, b, s, h, d: make(b, s, 3, h, d)[:, :, 1],
    "bhsd": lambda make, b, s, h, d: make(b, h, s, d).transpose(1, 2),
    "sbhd": lambda make, b, s, h, d: make(s, b, h, d).transpose(0, 1),
    "head_slice": lambda make, b, s, h, d: make(b, s, h + 2, d)[:, :, 1:-1],
    "every_other_token": lambda make, b, s, h, d: make(b, 2 * s, h, d)[:, 1::2],
    "end_of_wide_row": lambda make, b, s, h, d: make(b, s, h, d + 3)[..., 3:],
    "unaligned": lambda make, b, s, h, d: make(b * s * h * d + 1)[1:].view(b, s, h, d),
}
# Inputs may also be expanded; a cache, which is written, may not.
READ_LAYOUTS = LAYOUTS | {
    "batch_stride_0": lambda make, b, s, h, d: make(1, s, h, d).expand(b, s, h, d),
    "head_stride_0": lambda make, b, s, h, d: make(b, s, 1, d).expand(b, s, h, d),
}
# (k_cache, v_cache): name -> (make, B, S_cap, H, D).
CACHES: dict[str, Callable[[Make, int, int, int, int], tuple[Tensor, ...]]] = {
    "two_tensors": lambda make, b, s, h, d: (make(b, s, h, d), make(b, s, h, d)),
    "layer_of_stack": lambda make, b, s, h, d: make(3, 2, b, s, h, d)[1].unbind(0),
    "k_beside_v_in_head": lambda make, b, s, h, d: make(b, s, h, 2 * d).tensor_split(2, dim=3),
    "k_beside_v_in_token": lambda make, b, s, h, d: make(b, s, 2, h, d).unbind(2),
    "bhsd": lambda make, b, s, h, d: make(2, b, h, s, d).transpose(2, 3).unbind(0),
    "unaligned": lambda make, b, s, h, d: tuple(
        LAYOUTS["unaligned"](make, b, s, h, d) for _ in range(2)
    ),
}


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def tables(head_dim: int, height: int, width: int, positions: int = 64) -> tuple[Tensor, Tensor]:
    """Return the model's time and space tables."""
    time_pairs, space_pairs = band_pairs(head_dim)
    return (
        freq_table(torch.arange(positions), time_pairs),
        freq_table(torch.arange(max(height, width)), space_pairs),
    )


def memory_of(*tensors: Tensor) -> list[Tensor]:
    """Return all bytes of the tensors' storages, those between and around their elements too."""
    return [
        torch.empty(0, dtype=torch.uint8, device=t.device).set_(t.untyped_storage())
        for t in tensors
    ]


def twins(*tensors: Tensor) -> list[Tensor]:
    """Return the same views over copies of the memory; views that shared memory still do."""
    copies: dict[int, Any] = {}
    out = []
    for t in tensors:
        storage = t.untyped_storage()
        if storage.data_ptr() not in copies:
            copies[storage.data_ptr()] = storage.clone()
        twin = torch.tensor([], dtype=t.dtype)
        out.append(twin.set_(copies[storage.data_ptr()], t.storage_offset(), t.size(), t.stride()))
    return out


def bits(x: Tensor) -> Tensor:
    """Return the bit patterns, so that NaNs and the two zeros can be compared."""
    return x.contiguous().view(INTS[x.dtype.itemsize])


def assert_same_bits(got: Tensor, expected: Tensor, what: str = "") -> None:
    assert got.dtype == expected.dtype and got.shape == expected.shape
    same = bits(got) == bits(expected)
    assert same.all(), f"{what}: {int((~same).sum())} of {same.numel()} elements differ"


def assert_same_memory(got: list[Tensor], expected: list[Tensor], what: str = "") -> None:
    for a, b in zip(memory_of(*got), memory_of(*expected), strict=True):
        assert_same_bits(a, b, what)


def ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the distance between neighbouring numbers of `dtype` at |x|, in float64."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(x.double().abs().clamp(min=info.tiny))[1] - 1
    return torch.ldexp(torch.full_like(x, info.eps, dtype=torch.float64), exponent)


def assert_rounded(got: Tensor, expected: Tensor, scale: Tensor, share: float = 0.999) -> None:
    """Assert a share of equal bits, and that the others are one unit in the last place off.

    `scale` bounds the terms of each element: where they cancel, a unit of the small result is less
    than the float32 rounding of the terms, 3 of which the arithmetic has.
    """
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert got.is_contiguous()
    assert torch.equal(got.isnan(), expected.isnan()), "NaNs at other places"
    equal = (bits(got) == bits(expected)) | got.isnan()
    unequal = int((~equal).sum())
    allowed = math.ceil((1 - share) * got.numel())  # small samples may have one
    assert unequal <= allowed, f"{unequal} of {got.numel()} elements differ"
    one = ulp(expected, got.dtype) + 3 * 2.0**-24 * scale.double()
    off = (got.double() - expected.double()).abs()[~equal] / one[~equal]
    assert off.numel() == 0 or off.max() <= 1, f"{off.max():.3g} units in the last place off"


def pair_scale(x: Tensor) -> Tensor:
    """Return |even| + |odd| of each element's pair: what bounds the terms of its rotation."""
    magnitude = x.double().abs().unflatten(-1, (-1, 2)).sum(-1, keepdim=True)
    return magnitude.expand(*magnitude.shape[:-1], 2).flatten(-2)


def assert_close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Assert the largest absolute error, and NaNs and infinities at the same places."""
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert got.is_contiguous()
    assert torch.equal(got.isnan(), expected.isnan()), "NaNs at other places"
    different = got.isfinite().logical_not() | expected.isfinite().logical_not()
    special = different & ~got.isnan()
    assert torch.equal(got[special], expected[special]), "infinities at other places"
    error = (got.double() - expected.double())[~different].abs()
    assert error.numel() == 0 or error.max() <= tolerance, f"error {error.max():.3g}"


def far_apart(values: Tensor, dim: int) -> Tensor:
    """Return a copy of `values` whose last step along `dim` crosses element 2**31 of its memory.

    4.3 GB of address space, of which only the pages that hold the values are ever touched.
    """
    stride = list(values.contiguous().stride())
    stride[dim] = 2**31 // (values.size(dim) - 1)
    store = torch.empty(2**31 + values.numel(), dtype=values.dtype)
    out = store.as_strided(values.shape, stride)
    return out.copy_(values)
