"""NVFP4 and MXFP8 in plain PyTorch, to the bit.

An NVFP4 number is an E2M1 code (sign, two exponent bits, one mantissa bit) times the E4M3 scale of
its block of 16 neighbours; an MXFP8 number is an E4M3 code times the power of two of its block of
32. All arithmetic is float32, each operation rounded once and in the order written here, so that a
kernel can have the very same bits.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

BLOCK = 16
RECIPES = ("plain", "4/6", "search")
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_MAX = 6.0
E4M3_MAX = 448.0
_E4M3_MAX_CODE, _E4M3_NAN_CODE = 0x7E, 0x7F
# Between two neighbouring values, and whether the point itself rounds up: to the even code.
_E2M1_STEPS = (
    (0.25, False),
    (0.75, True),
    (1.25, False),
    (1.75, True),
    (2.5, False),
    (3.5, True),
    (5.0, False),
)


def e2m1_encode(x: Tensor) -> Tensor:
    """Round float32 to E2M1 codes, uint8: to nearest even, saturating; a NaN becomes code 7."""
    size = x.abs()
    code = torch.zeros(x.shape, dtype=torch.uint8, device=x.device)
    for step, rounds_up in _E2M1_STEPS:
        code += ~(size < step) if rounds_up else ~(size <= step)
    return code + 8 * (x.signbit() & ~x.isnan()).to(torch.uint8)


def e2m1_decode(code: Tensor) -> Tensor:
    """Return the float32 values of E2M1 codes."""
    # By their bits: a table would have to be copied to the device, which waits for it.
    size = code.int() & 7
    value = torch.where(size < 2, 0.5 * size, ((size << 22) + (126 << 23)).view(torch.float32))
    return torch.where(code >= 8, -value, value)


def e4m3_encode(x: Tensor) -> Tensor:
    """Round float32 to float8_e4m3fn: to nearest even, saturating; a NaN becomes code 0x7F."""
    rounded = x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)
    return torch.where(x.isnan(), _E4M3_NAN_CODE, rounded).view(torch.float8_e4m3fn)


def e8m0_code(x: Tensor) -> Tensor:
    """Round float32 magnitudes up to powers of two, 2**-127 to 2**127; return exponents + 127.

    In uint8, 255 for a NaN: the bits of float8_e8m0fnu, a type that compilers hardly know.
    """
    bits = x.view(torch.int32)
    exponent, fraction = bits >> 23, bits & 0x7FFFFF
    # A subnormal lies below 2**-126, and below 2**-127 if its fraction is at most half.
    up = torch.where(exponent == 0, fraction > 0x400000, fraction > 0)
    code = torch.where(x.isnan(), 255, (exponent + up).clamp(max=254))
    return code.to(torch.uint8)


def e8m0_value(code: Tensor) -> Tensor:
    """Return the float32 powers of two of `e8m0_code`."""
    value = torch.where(code == 0, 0x400000, code.int() << 23).view(torch.float32)
    return torch.where(code == 255, torch.nan, value)


def e8m0_encode(x: Tensor) -> Tensor:
    """Return `e8m0_code` as float8_e8m0fnu."""
    return e8m0_code(x).view(torch.float8_e8m0fnu)


def pack(code: Tensor) -> Tensor:
    """Pack `[..., D]` codes two to a byte, `[..., D / 2]`: the even element in the low nibble."""
    return code[..., 0::2] | code[..., 1::2] << 4


def unpack(packed: Tensor) -> Tensor:
    """Return the codes of `pack`."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)


def swizzle_scales(scales: Tensor) -> Tensor:
    """Arrange `[..., R, C]` one-byte scales in tiles of 128 x 4, `[..., R / 128, C / 4, 32, 4, 4]`.

    Row r and column c of a tile lie at byte `r % 32 * 16 + r // 32 * 4 + c`: the layout that
    block-scaled tensor-core instructions read. R and C are rounded up, padded with zeros.
    """
    rows, columns = scales.shape[-2:]
    bytes_ = torch.nn.functional.pad(scales.view(torch.uint8), (0, -columns % 4, 0, -rows % 128))
    tiles = bytes_.unflatten(-1, (-1, 4)).unflatten(-3, (-1, 4, 32))
    return tiles.transpose(-4, -2).contiguous().view(scales.dtype)


def unswizzle_scales(tiles: Tensor, rows: int, columns: int) -> Tensor:
    """Return the `[..., R, C]` scales of `swizzle_scales`."""
    bytes_ = tiles.view(torch.uint8).transpose(-4, -2)
    flat = bytes_.flatten(-2).flatten(-4, -2)
    return flat[..., :rows, :columns].contiguous().view(tiles.dtype)


def tree_sum(x: Tensor) -> Tensor:
    """Sum the last dimension, a power of two: neighbours, then neighbouring sums, and so on."""
    while x.size(-1) > 1:
        x = x[..., 0::2] + x[..., 1::2]
    return x.squeeze(-1)


def _largest(blocks: Tensor) -> Tensor:
    """Return the largest magnitude of each block; NaN where there is one."""
    return torch.where(blocks.isnan().any(-1), torch.nan, blocks.abs().amax(-1))


def _divided(x: Tensor, divisor: float) -> Tensor:
    # By a tensor: PyTorch multiplies by the reciprocal of a number on some devices.
    return x / torch.full_like(x, divisor)


def _codes(blocks: Tensor, scale: Tensor) -> Tensor:
    """Return the E2M1 codes of `[..., 16]` float32 under `[...]` E4M3 scales."""
    s = scale.float()
    inverse = torch.where(s == 0, 0.0, torch.ones_like(s) / s)
    return e2m1_encode(blocks * inverse[..., None])


def _error(blocks: Tensor, scale: Tensor) -> Tensor:
    """Return the sum of squared errors of each block."""
    off = blocks - e2m1_decode(_codes(blocks, scale)) * scale.float()[..., None]
    return tree_sum(off * off)


def _candidates(amax: Tensor, recipe: str) -> list[Tensor]:
    """Return the scales that a recipe considers, E4M3."""
    if recipe == "plain":
        return [e4m3_encode(_divided(amax, 6.0))]
    if recipe == "4/6":
        return [e4m3_encode(_divided(amax, divisor)) for divisor in (6.0, 4.0)]
    if recipe == "search":
        first = e4m3_encode(_divided(amax, 7.0))
        code = first.view(torch.uint8)
        others = [(code + i).clamp(max=_E4M3_MAX_CODE) for i in range(1, 8)]
        return [first, *(c.view(torch.float8_e4m3fn) for c in others)]
    raise ValueError(f"recipe: got {recipe!r}, expected one of {RECIPES}")


def _better(blocks: Tensor, best: Tensor, other: Tensor) -> Tensor:
    chosen = _error(blocks, other) < _error(blocks, best)
    picked = torch.where(chosen, other.view(torch.uint8), best.view(torch.uint8))
    return picked.view(torch.float8_e4m3fn)


def block_scales(blocks: Tensor, recipe: str) -> Tensor:
    """Choose the E4M3 scale of each block of `[..., 16]` float32.

    - "plain": the largest magnitude, divided by 6, rounded.
    - "4/6": that, or the largest magnitude divided by 4, whichever has the smaller error.
    - "search": of the E4M3 number nearest to the largest magnitude divided by 7 and its seven
      successors, an octave, the one with the smallest error.

    The error is the sum of squares; of equal ones the first wins. A NaN makes the scale NaN.
    """
    candidates = _candidates(_largest(blocks), recipe)
    return reduce(lambda best, other: _better(blocks, best, other), candidates)


def quantize(x: Tensor, recipe: str, prescale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Quantise the last dimension of x to NVFP4 codes (unpacked, uint8) and E4M3 scales.

    `prescale`, a power of two, multiplies x first, which is exact: it brings tensors of small
    magnitude into the range of E4M3, 2**-9 to 448.
    """
    blocks = (x.float() * prescale).unflatten(-1, (-1, BLOCK))
    scales = block_scales(blocks, recipe)
    return _codes(blocks, scales).flatten(-2), scales


def dequantize(code: Tensor, scales: Tensor, prescale: float = 1.0) -> Tensor:
    """Return the float32 values of codes, unpacked, and their scales."""
    values = e2m1_decode(code).unflatten(-1, (-1, BLOCK)) * scales.float()[..., None]
    return values.flatten(-2) / prescale


def nvfp4_quantize(x: Tensor, *, recipe: str = "4/6") -> tuple[Tensor, Tensor]:
    """Compute `vidk::nvfp4_quantize`, to the bit."""
    code, scales = quantize(x, recipe)
    return pack(code).contiguous(), scales.contiguous()


def nvfp4_dequantize(packed: Tensor, scales: Tensor) -> Tensor:
    """Return the float32 values that `nvfp4_quantize` stands for, `[..., D]`."""
    return dequantize(unpack(packed), scales)


def mxfp8_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `mxfp8_quantize` with scales as `e8m0_code` has them."""
    blocks = x.float().unflatten(-1, (-1, 32))
    scales = e8m0_code(_divided(_largest(blocks), E4M3_MAX))
    return e4m3_encode(blocks / e8m0_value(scales)[..., None]).flatten(-2), scales


def mxfp8_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise the last dimension of x to float8_e4m3fn and a float8_e8m0fnu scale per 32 elements.

    The scale is the largest magnitude divided by 448, rounded up to a power of two: no code
    saturates. A NaN makes the scale NaN.
    """
    code, scales = mxfp8_codes(x)
    return code, scales.view(torch.float8_e8m0fnu)


def mxfp8_dequantize(code: Tensor, scales: Tensor) -> Tensor:
    """Return the float32 values of `mxfp8_quantize`."""
    return (code.float().unflatten(-1, (-1, 32)) * scales.float()[..., None]).flatten(-2)


def nvfp4_quantize_public(x: Tensor, recipe: str = "4/6") -> tuple[Tensor, Tensor]:
    """Quantise by library ops and no kernel of one's own, each step a pass over memory.

    "plain" is what FastVideo asks of its quantiser (global scale 1), "4/6" what arXiv 2512.02010
    adds; "search" tries more scales in the same way.
    """
    blocks = x.float().unflatten(-1, (-1, BLOCK))
    amax = blocks.abs().amax(-1)
    best_error = torch.full_like(amax, torch.inf)
    best_scale = torch.zeros_like(amax)
    best_code = torch.zeros(blocks.shape, dtype=torch.uint8, device=x.device)
    steps = blocks.new_tensor([step for step, _ in _E2M1_STEPS])
    values = blocks.new_tensor(E2M1_VALUES)
    for candidate in _candidates(amax, recipe):
        scale = candidate.float()
        inverse = torch.where(scale == 0, 0.0, 1.0 / scale)
        size = blocks.abs() * inverse[..., None]
        above = torch.bucketize(size, steps)
        code = above + ((above % 2 == 1) & (size == steps[above.clamp(max=6)])).long()
        off = blocks.abs() - values[code] * scale[..., None]
        error = tree_sum(off * off)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_code = torch.where(better[..., None], code.to(torch.uint8), best_code)
    best_code += 8 * blocks.signbit().to(torch.uint8)
    return pack(best_code.flatten(-2)), best_scale.to(torch.float8_e4m3fn)
