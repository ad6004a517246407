"""Rounding by rational numbers: slow, plain, and independent of the simulator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass(frozen=True)
class Format:
    """A binary format: total bits, mantissa bits, bias, codes of the largest value and of NaN."""

    bits: int
    mantissa: int
    bias: int
    largest: int
    nan: int
    has_infinity: bool = True


F32 = Format(32, 23, 127, 0x7F7FFFFF, 0x7FFFFFFF)
F16 = Format(16, 10, 15, 0x7BFF, 0x7FFF)
BF16 = Format(16, 7, 127, 0x7F7F, 0x7FFF)
TF32 = Format(19, 10, 127, 0x3FBFF, 0x3FFFF)
E4M3 = Format(8, 3, 7, 0x7E, 0x7F, has_infinity=False)
E5M2 = Format(8, 2, 15, 0x7B, 0x7F)
E2M1 = Format(4, 1, 1, 7, 7, has_infinity=False)


def round_to(form: Format, x: Fraction, mode: str) -> int:
    """Return the code of the finite number x, rounded by "rn", "rz", "rm", "rp" or "rna"."""
    sign = (x < 0) << (form.bits - 1)
    size = abs(x)
    if size == 0:
        return 0
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if size < Fraction(2) ** exponent:
        exponent -= 1
    exponent = max(exponent, 1 - form.bias)
    unit = Fraction(2) ** (exponent - form.mantissa)
    steps, rest = divmod(size, unit)
    up = {
        "rn": rest * 2 > unit or (rest * 2 == unit and steps % 2 == 1),
        "rz": False,
        "rm": x < 0 and rest > 0,
        "rp": x > 0 and rest > 0,
        "rna": rest * 2 >= unit,
    }[mode]
    value = (steps + up) * unit
    largest = decode(form, form.largest)
    if value > largest:
        inward = mode == "rz" or (mode == "rm" and x > 0) or (mode == "rp" and x < 0)
        return sign | (form.largest if inward else form.largest + 1)
    # Codes of one sign count up with the value.
    exponent += value >= Fraction(2) ** (exponent + 1)
    unit = Fraction(2) ** (exponent - form.mantissa)
    return sign | (int(value / unit) + ((exponent - 1 + form.bias) << form.mantissa))


def decode(form: Format, code: int) -> Fraction:
    """Return the value of a finite code."""
    magnitude = code & ((1 << (form.bits - 1)) - 1)
    exponent, fraction = divmod(magnitude, 1 << form.mantissa)
    if exponent:
        fraction += 1 << form.mantissa
    value = Fraction(fraction) * Fraction(2) ** (max(exponent, 1) - form.bias - form.mantissa)
    return -value if code >> (form.bits - 1) else value


def to_float(form: Format, code: int) -> float:
    """Return the value of a code as a Python float: every format here fits."""
    magnitude = code & ((1 << (form.bits - 1)) - 1)
    sign = -1.0 if code >> (form.bits - 1) else 1.0
    if magnitude > form.largest:
        infinite = form.has_infinity and magnitude == form.largest + 1
        return sign * math.inf if infinite else math.nan
    return math.copysign(float(decode(form, code)), sign)


def from_float(form: Format, x: float, mode: str) -> int:
    """Return the code of any Python float."""
    if math.isnan(x):
        return form.nan
    sign = (math.copysign(1, x) < 0) << (form.bits - 1)
    if math.isinf(x):
        return sign | (form.largest + 1)
    return round_to(form, Fraction(x), mode) | (sign if x == 0 else 0) | sign


def fma(form: Format, a: float, b: float, c: float, mode: str) -> int:
    """Return the code of a * b + c, rounded once; the arguments have at most 24 bits."""
    product = a * b
    if not (math.isfinite(product) and math.isfinite(c)):
        return from_float(form, product + c, mode)
    total = Fraction(a) * Fraction(b) + Fraction(c)
    if total != 0:
        return round_to(form, total, mode) | ((total < 0) << (form.bits - 1))
    negative = [math.copysign(1, x) < 0 for x in (product, c)]
    return (all(negative) or (any(negative) and mode == "rm")) << (form.bits - 1)


def divide(form: Format, a: float, b: float, mode: str) -> int:
    """Return the code of a / b, rounded once."""
    if math.isnan(a) or math.isnan(b) or a == b == 0 or (math.isinf(a) and math.isinf(b)):
        return form.nan
    negative = math.copysign(1, a) * math.copysign(1, b) < 0
    sign = negative << (form.bits - 1)
    if math.isinf(a) or b == 0:
        return sign | (form.largest + 1)
    if math.isinf(b) or a == 0:
        return sign
    return round_to(form, Fraction(a) / Fraction(b), mode) | sign


def sqrt(form: Format, a: float, mode: str) -> int:
    """Return the code of the square root of a, rounded once."""
    if math.isnan(a) or a < 0:
        return form.nan
    if a == 0 or math.isinf(a):
        return from_float(form, a, mode)
    # 120 bits and a sticky one below decide every rounding.
    scaled = Fraction(a) * Fraction(4) ** 300
    root = math.isqrt(int(scaled))
    return round_to(
        form, Fraction(2 * root + (root * root != scaled), 2) / Fraction(2) ** 300, mode
    )


def flush(form: Format, code: int) -> int:
    """Return the code with a subnormal replaced by zero of the same sign."""
    return (
        code
        if (code >> form.mantissa) & ((1 << (form.bits - 1 - form.mantissa)) - 1)
        else (code & 1 << (form.bits - 1))
    )


def codes(values: np.ndarray) -> list[int]:
    """Return the bits of an array's elements as Python integers."""
    return [int(x) for x in values.view(f"u{values.itemsize}")]
