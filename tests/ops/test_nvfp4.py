"""nvfp4_quantize: its reference against the vendor's conversions, its kernel against both."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests import cuda_headers
from vidk import reference
from vidk.ops.nvfp4 import RECIPES
from vidk.reference import nvfp4

from .helpers import (
    DTYPES,
    HALVES,
    READ_LAYOUTS,
    assert_same_bits,
    dtype_id,
    far_apart,
    memory_of,
    normal,
    random_bits,
    seeded,
)

nvfp4_quantize = torch.ops.vidk.nvfp4_quantize
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
every_recipe = pytest.mark.parametrize("recipe", RECIPES)

# Every value of E2M1 and E4M3, every point between two neighbours, and the floats around them.
_EDGES = np.unique(
    np.concatenate(
        [
            np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32),
            np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32),
        ]
    )
)
_EDGES = _EDGES[np.isfinite(_EDGES)]
EDGES = np.unique(np.concatenate([_EDGES, (_EDGES[1:] + _EDGES[:-1]) / 2]))


def probes(count: int) -> Tensor:
    """Return float32: edges, their neighbours, special values, any bits, both signs."""
    around = [np.nextafter(EDGES, np.float32(way)) for way in (-np.inf, np.inf)]
    special = np.array([0.0, np.inf, np.nan, 1e-45, 1e38, 464.0, 448.0, 2**-10, 2**-9], np.float32)
    some = torch.from_numpy(np.concatenate([EDGES, *around, special]))
    any_bits = random_bits(torch.float32, "probes")(count)
    return torch.cat([some, -some, any_bits, normal(torch.float32, "probes")(count)])


def assert_same(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for a, b, what in zip(got, expected, ("codes", "scales"), strict=True):
        assert a.is_contiguous()
        assert_same_bits(a, b, what)


# --- the formats ---------------------------------------------------------------------------------


def test_e2m1_is_the_vendors() -> None:
    x = probes(1 << 20)
    expected = cuda_headers.convert("e2m1_from_f32", x.view(torch.int32).numpy())
    assert (nvfp4.e2m1_encode(x).numpy() == expected).all()


def test_e4m3_is_the_vendors() -> None:
    x = probes(1 << 20)
    x = torch.where(x.isnan(), torch.nan, x)  # the headers keep the sign of a NaN
    expected = cuda_headers.convert("e4m3_from_f32", x.view(torch.int32).numpy())
    assert (nvfp4.e4m3_encode(x).view(torch.uint8).numpy() == expected).all()


def test_e8m0_is_the_vendors() -> None:
    x = probes(1 << 20).abs()
    expected = cuda_headers.convert("ue8m0_from_f32_rp_satfinite", x.view(torch.int32).numpy())
    assert (nvfp4.e8m0_encode(x).view(torch.uint8).numpy() == expected).all()


def test_e2m1_ties_go_to_the_even_code() -> None:
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert nvfp4.e2m1_encode(ties).tolist() == [0, 2, 2, 4, 4, 6, 6]
    assert nvfp4.e2m1_encode(-ties).tolist() == [8, 10, 10, 12, 12, 14, 14]
    special = torch.tensor([0.0, -0.0, 5.0001, -1e30, torch.inf, -torch.inf, torch.nan])
    assert nvfp4.e2m1_encode(special).tolist() == [0, 8, 7, 15, 7, 15, 7]


def test_decoding_is_that_of_ml_dtypes() -> None:
    codes = torch.arange(16, dtype=torch.uint8)
    values = codes.numpy().view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert_same_bits(nvfp4.e2m1_decode(codes), torch.from_numpy(values))


def test_products_with_a_scale_are_exact_in_16_bits() -> None:
    scale = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    values = nvfp4.e2m1_decode(torch.arange(8, dtype=torch.uint8)) * scale[:, None]
    for dtype in HALVES:
        assert torch.equal(values.to(dtype).float(), values)


def test_packing() -> None:
    code = torch.randint(16, (3, 5, 32), generator=seeded("pack"), dtype=torch.uint8)
    packed = nvfp4.pack(code)
    assert packed[1, 2, 7] == code[1, 2, 14] + 16 * code[1, 2, 15]
    assert torch.equal(nvfp4.unpack(packed), code)


@pytest.mark.parametrize(("rows", "columns"), [(128, 4), (256, 8), (1, 1), (200, 5), (129, 12)])
def test_swizzled_scales(rows: int, columns: int) -> None:
    """Each scale lies at the offset that cuBLAS documents; padding is zero."""
    scales = torch.randint(1, 255, (2, rows, columns), generator=seeded(rows), dtype=torch.uint8)
    tiles = nvfp4.swizzle_scales(scales)
    row_tiles, column_tiles = -(-rows // 128), -(-columns // 4)
    assert tiles.shape == (2, row_tiles, column_tiles, 32, 4, 4) and tiles.is_contiguous()
    r, c = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    at = (r // 128 * column_tiles + c // 4) * 512 + r % 32 * 16 + r % 128 // 32 * 4 + c % 4
    flat = tiles.flatten(1)
    assert torch.equal(flat[:, at], scales)
    assert flat.count_nonzero() == scales.numel()
    assert torch.equal(nvfp4.unswizzle_scales(tiles, rows, columns), scales)


def test_swizzled_scales_keep_their_dtype() -> None:
    _, scales = nvfp4.quantize(torch.randn(130, 64), "4/6")
    tiles = nvfp4.swizzle_scales(scales)
    assert tiles.dtype == torch.float8_e4m3fn
    assert_same_bits(nvfp4.unswizzle_scales(tiles, 130, 4), scales)


# --- the choice of scales ------------------------------------------------------------------------


def test_plain_by_the_vendors_conversions() -> None:
    """Millions of values of every magnitude, NaNs and infinities, by the headers alone."""
    exponent = torch.linspace(-13, 12, 1 << 16)[:, None]
    scaled = normal(torch.float32)(1 << 16, 16) * torch.exp2(exponent)
    x = torch.cat([scaled.flatten(), probes(1 << 21)])
    x = x[: x.numel() // 64 * 64].view(1, -1, 1, 64)
    packed, scales = nvfp4_quantize(x, recipe="plain")
    blocks = x.view(-1, 16).numpy()
    with np.errstate(all="ignore"):
        amax = np.abs(blocks).max(axis=1)  # a NaN if there is one
        amax = np.where(np.isnan(amax), np.float32(np.nan), amax)
        scale = cuda_headers.convert("e4m3_from_f32", (amax / np.float32(6)).view(np.uint32))
        value = scale.astype(np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        inverse = np.where(value == 0, np.float32(0), np.float32(1) / value)
        scaled = blocks * inverse[:, None]
    code = cuda_headers.convert("e2m1_from_f32", scaled.view(np.uint32)).astype(np.uint8)
    assert (scales.view(torch.uint8).flatten().numpy() == scale).all()
    assert (packed.view(-1, 8).numpy() == (code[:, 0::2] | code[:, 1::2] << 4)).all()
    seen = np.bincount(scale, minlength=128)
    assert (seen > 0).all(), "a scale was never drawn: zero, subnormals, largest, NaN included"


def errors_of(blocks: Tensor, scale: Tensor) -> Tensor:
    """Return the squared error of every block under every scale, float64, by nearest values."""
    grid = torch.tensor(nvfp4.E2M1_VALUES, dtype=torch.float64)
    values = scale.double()[..., None, None] * grid
    off = blocks.double().abs()[..., None] - values
    return (off.abs().amin(-1) ** 2).sum(-1)


def test_four_over_six_takes_the_better_scale() -> None:
    blocks = normal(torch.float32)(4000, 16)
    amax = blocks.abs().amax(-1)
    six, four = ((amax / d).to(torch.float8_e4m3fn).float() for d in (6, 4))
    by_six, by_four = errors_of(blocks, six), errors_of(blocks, four)
    _, scales = nvfp4_quantize(blocks.view(1, 4000, 1, 16), recipe="4/6")
    expected = torch.where(by_four < by_six, four, six)
    clear = (by_four - by_six).abs() > 1e-5 * by_six
    assert clear.float().mean() > 0.99
    assert torch.equal(scales.float().flatten()[clear], expected[clear])
    assert 0.2 < (expected == four).float().mean() < 0.8


def test_search_takes_the_best_scale_of_an_octave() -> None:
    blocks = normal(torch.float32)(2000, 16)
    every = torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    errors = torch.stack([errors_of(blocks, s.expand(2000)) for s in every], dim=1)
    _, scales = nvfp4_quantize(blocks.view(1, 2000, 1, 16), recipe="search")
    code = scales.view(torch.uint8).flatten().long()
    mine = errors.gather(1, code[:, None] - 1)[:, 0]
    first = (blocks.abs().amax(-1) / 7).to(torch.float8_e4m3fn).view(torch.uint8).long()
    octave = first[:, None] + torch.arange(8)
    best = errors.gather(1, octave - 1).amin(1)
    assert ((code >= first) & (code < first + 8)).all()
    assert (mine <= best * (1 + 1e-5)).all()
    # An octave is hardly ever too narrow.
    assert errors.amin(1).sum() > 0.995 * mine.sum()


@pytest.mark.parametrize(
    ("recipe", "error"), [("plain", 0.0953), ("4/6", 0.0871), ("search", 0.0815)]
)
def test_error_on_normal_values(recipe: str, error: float) -> None:
    x = normal(torch.float32)(1, 1 << 14, 1, 64)
    got = nvfp4.nvfp4_dequantize(*nvfp4_quantize(x, recipe=recipe))
    assert float((got - x).norm() / x.norm()) == pytest.approx(error, rel=0.005)


@pytest.mark.parametrize(
    ("recipe", "cosine"), [("plain", 0.99), ("4/6", 0.9918), ("search", 0.9927), ("mxfp8", 0.9983)]
)
def test_attention_on_normal_values(recipe: str, cosine: float) -> None:
    """Keys and queries quantised, values exact; the bars of the published kernels and ours."""
    q, k, v = (normal(torch.float32, name)(1, 4, 1024, 128) for name in "qkv")

    def rounded(x: Tensor) -> Tensor:
        if recipe == "mxfp8":
            return nvfp4.mxfp8_dequantize(*nvfp4.mxfp8_quantize(x))
        return nvfp4.nvfp4_dequantize(*nvfp4_quantize(x, recipe=recipe))

    got = F.scaled_dot_product_attention(rounded(q), rounded(k), v)
    expected = F.scaled_dot_product_attention(q, k, v)
    assert float(F.cosine_similarity(got.flatten(), expected.flatten(), dim=0)) >= cosine


def test_prescale_brings_small_values_into_range() -> None:
    x = normal(torch.float32)(64, 128)
    small = x * 2.0**-20
    code, scales = nvfp4.quantize(small, "4/6", prescale=2.0**20)
    assert_same((code, scales), nvfp4.quantize(x, "4/6"))
    back = nvfp4.dequantize(code, scales, prescale=2.0**20)
    assert torch.equal(back, nvfp4.dequantize(code, scales) * 2.0**-20)
    assert nvfp4.quantize(small, "4/6")[1].float().count_nonzero() == 0


def test_mxfp8() -> None:
    x = normal(torch.float32)(64, 128) * torch.exp2(torch.arange(-32.0, 32.0)[:, None])
    code, scales = nvfp4.mxfp8_quantize(x)
    assert (code.dtype, code.shape) == (torch.float8_e4m3fn, (64, 128))
    assert (scales.dtype, scales.shape) == (torch.float8_e8m0fnu, (64, 4))
    back = nvfp4.mxfp8_dequantize(code, scales)
    assert float(((back - x).norm(dim=1) / x.norm(dim=1)).amax()) < 0.035
    largest = code.float().unflatten(-1, (-1, 32)).abs().amax(-1)
    assert (largest > 216).all() and (largest <= 448).all()


def test_mxfp8_special_blocks() -> None:
    x = torch.zeros(4, 32)
    x[1, 3], x[2, 5], x[3] = torch.nan, torch.inf, 448.0
    code, scales = nvfp4.mxfp8_quantize(x)
    back = nvfp4.mxfp8_dequantize(code, scales)
    assert (back[0] == 0).all() and back[1].isnan().all()
    assert scales.view(torch.uint8)[3] == 127 and (back[3] == 448).all()
    assert back[2, 5] == torch.inf and (back[2].nan_to_num(0, 0) == 0).all()


# --- the kernel ----------------------------------------------------------------------------------


@every_recipe
@every_dtype
@pytest.mark.parametrize("head_dim", [16, 32, 48, 96, 128, 272])
def test_any_bits(head_dim: int, dtype: torch.dtype, recipe: str) -> None:
    x = random_bits(dtype, head_dim)(2, 15, 3, head_dim)
    assert_same(nvfp4_quantize(x, recipe=recipe), reference.nvfp4_quantize(x, recipe=recipe))


@every_recipe
@every_dtype
@pytest.mark.parametrize("layout", READ_LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype, recipe: str) -> None:
    x = READ_LAYOUTS[layout](normal(dtype, layout), 2, 11, 3, 64)
    before = [m.clone() for m in memory_of(x)]
    got = nvfp4_quantize(x, recipe=recipe)
    assert_same(got, reference.nvfp4_quantize(x, recipe=recipe))
    assert_same_bits(memory_of(x)[0], before[0], "the input was written to")


@every_recipe
@pytest.mark.parametrize("exponent", range(-16, 14))
def test_every_magnitude(exponent: int, recipe: str) -> None:
    """Scales that are zero, subnormal, normal and saturated."""
    x = normal(torch.float32, exponent)(1, 64, 3, 64) * 2.0**exponent
    assert_same(nvfp4_quantize(x, recipe=recipe), reference.nvfp4_quantize(x, recipe=recipe))


@every_recipe
@every_dtype
def test_public_form(dtype: torch.dtype, recipe: str) -> None:
    x = normal(dtype)(2, 31, 3, 128)
    got = nvfp4_quantize(x, recipe=recipe)
    assert_same(got, reference.nvfp4_quantize_public(x, recipe=recipe))


@every_recipe
def test_blocks_of_zeros(recipe: str) -> None:
    x = torch.zeros(1, 1, 3, 16)
    x[:, :, 1] = -0.0
    x[:, :, 2, 5] = 2.0**-14  # too small for the smallest scale
    packed, scales = nvfp4_quantize(x, recipe=recipe)
    assert (scales.view(torch.uint8) == 0).all()
    assert nvfp4.unpack(packed)[0, 0, :, 5].tolist() == [0, 8, 0]


@every_recipe
def test_saturation(recipe: str) -> None:
    x = torch.ones(1, 1, 2, 16)
    x[0, 0, 0, 3], x[0, 0, 1, 4] = torch.inf, -1e30
    packed, scales = nvfp4_quantize(x, recipe=recipe)
    back = nvfp4.nvfp4_dequantize(packed, scales)
    assert scales.float().flatten().tolist() == [448.0, 448.0]
    assert (back[0, 0, 0, 3], back[0, 0, 1, 4]) == (2688.0, -2688.0)


@every_recipe
@every_dtype
@pytest.mark.parametrize("bits", ["quiet", "negative"])
def test_nan_stays_in_its_block(bits: str, dtype: torch.dtype, recipe: str) -> None:
    x = normal(dtype)(2, 5, 3, 64)
    clean = nvfp4_quantize(x, recipe=recipe)
    x[1, 2, 1, 37] = math.copysign(math.nan, -1 if bits == "negative" else 1)
    packed, scales = nvfp4_quantize(x, recipe=recipe)
    assert scales.view(torch.uint8)[1, 2, 1, 2] == 0x7F
    assert (packed[1, 2, 1, 16:24] == 0x77).all()
    assert nvfp4.nvfp4_dequantize(packed, scales)[1, 2, 1, 32:48].isnan().all()
    packed[1, 2, 1, 16:24] = clean[0][1, 2, 1, 16:24]
    scales.view(torch.uint8)[1, 2, 1, 2] = clean[1].view(torch.uint8)[1, 2, 1, 2]
    assert_same((packed, scales), clean)


@every_dtype
def test_a_token_depends_on_nothing_else(dtype: torch.dtype) -> None:
    """Frame slots may be overwritten one by one: no scale is shared between tokens."""
    x = normal(dtype)(2, 9, 3, 48)
    whole = nvfp4_quantize(x)
    for token in range(9):
        alone = nvfp4_quantize(x[:, token : token + 1])
        for a, b in zip(alone, whole, strict=True):
            assert_same_bits(a, b[:, token : token + 1])


@pytest.mark.parametrize("shape", [(0, 9, 3, 32), (2, 0, 3, 32), (2, 9, 0, 32), (2, 9, 3, 0)])
def test_empty(shape: tuple[int, ...]) -> None:
    packed, scales = nvfp4_quantize(torch.randn(shape))
    assert packed.shape == (*shape[:3], shape[3] // 2) and packed.dtype == torch.uint8
    assert scales.shape == (*shape[:3], shape[3] // 16) and scales.dtype == torch.float8_e4m3fn


def test_default_is_four_over_six() -> None:
    x = normal(torch.float32)(1, 20, 2, 32)
    assert_same(nvfp4_quantize(x), nvfp4_quantize(x, recipe="4/6"))
    with pytest.raises(ValueError, match="recipe: got '4', expected one of"):
        nvfp4.quantize(x, "4")


@every_dtype
def test_threads_do_not_change_bits(dtype: torch.dtype) -> None:
    x = normal(dtype)(2, 600, 12, 128)
    got = nvfp4_quantize(x)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = nvfp4_quantize(x)
    finally:
        torch.set_num_threads(threads)
    assert_same(got, alone)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_offsets_past_2_31_elements(dim: int) -> None:
    values = normal(torch.bfloat16)(2, 3, 2, 32)
    assert_same(nvfp4_quantize(far_apart(values, dim)), nvfp4_quantize(values))
