"""cvt against Python's integers, rational arithmetic, ml_dtypes and the CUDA headers."""

from __future__ import annotations

import math
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from tests import cuda_headers

from . import exact, micro

INTEGERS = {f"{sign}{bits}": bits for sign in "us" for bits in (8, 16, 32, 64)}
ROUNDINGS = ["rn", "rz", "rm", "rp"]
EVERY_HALF = np.arange(1 << 16, dtype=np.uint16)


def register(kind: str) -> str:
    """The register that holds a type: there are no 8-bit ones for integers."""
    return f"b{max(16, INTEGERS[kind])}"


def limits(kind: str) -> tuple[int, int]:
    bits = INTEGERS[kind]
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if kind[0] == "s" else (0, (1 << bits) - 1)


def wrap(x: int, kind: str) -> int:
    low, high = limits(kind)
    return (x - low) % (high - low + 1) + low


@pytest.mark.parametrize("to", INTEGERS)
@pytest.mark.parametrize("source", INTEGERS)
def test_integers(to: str, source: str) -> None:
    (a,) = micro.integers(np.random.default_rng(0), [register(source)], 500)
    for sat in ("", ".sat"):
        got = micro.apply(
            f"cvt{sat}.{to}.{source} {{d}}, {{a}};", [register(source)], register(to), a
        )
        low, high = limits(to)
        mask = (1 << (8 * got.itemsize)) - 1
        for x, result in zip(a.tolist(), got.tolist(), strict=True):
            value = wrap(x, source)
            value = max(low, min(high, value)) if sat else wrap(value, to)
            assert result == value & mask, (to, source, sat, hex(x))


def test_narrow_results_fill_the_register() -> None:
    a = np.array([0x80, 0x7F, 0x1FF], np.uint32)
    got = micro.apply("cvt.s8.s32 {d}, {a};", ["b32"], "b32", a)
    assert got.tolist() == [0xFFFFFF80, 0x7F, 0xFFFFFFFF]
    got = micro.apply("cvt.u8.u32 {d}, {a};", ["b32"], "b32", a)
    assert got.tolist() == [0x80, 0x7F, 0xFF]


SOURCES = {
    "f32": (exact.F32, "b32"), "f16": (exact.F16, "b16"), "bf16": (exact.BF16, "b16"),
}  # fmt: skip


def whole(x: float, mode: str) -> int:
    if mode == "rni":
        return round(x)  # ties to even
    return {"rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}[mode](x)


def sources(kind: str) -> tuple[np.ndarray, list[float]]:
    """Bits of hostile values of a floating-point type, and the values."""
    rng = np.random.default_rng(1)
    if kind == "f64":
        values = np.array(
            [*(s * (2.0**e + o) for s in (1, -1) for e in (7, 8, 15, 16, 31, 32, 53, 63, 64)
               for o in (-1, -0.5, 0, 0.5, 1)), 0.0, -0.0, 0.5, 1.5, 2.5, -0.5, math.inf, -math.inf,
             math.nan, 1e300, -1e300, 5e-324, *rng.standard_normal(500) * 1e4]
        )  # fmt: skip
        return values.view(np.uint64), values.tolist()
    if kind == "f32":
        (a,) = micro.floats(rng, 1, 400)
        ties = rng.integers(-600, 600, 400).astype(np.float32) / 2
        edges = [s * np.float32(2.0) ** e for s in (1, -1) for e in (7, 8, 15, 16, 31, 32, 63, 64)]
        below = np.nextafter(np.array(edges, np.float32), np.float32(0))
        a = np.concatenate([a, ties, np.array(edges, np.float32), below])
    else:
        a = rng.permutation(EVERY_HALF)[:4000]
    form = SOURCES[kind][0]
    return a.view(f"u{a.itemsize}"), [exact.to_float(form, x) for x in exact.codes(a)]


@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
@pytest.mark.parametrize("source", ["f32", "f64", "f16", "bf16"])
@pytest.mark.parametrize("to", INTEGERS)
def test_float_to_integer(to: str, source: str, mode: str) -> None:
    a, values = sources(source)
    got = micro.apply(
        f"cvt.{mode}.{to}.{source} {{d}}, {{a}};", [f"b{8 * a.itemsize}"], register(to), a
    )
    low, high = limits(to)
    nan = wrap(1 << (INTEGERS[to] - 1), to) if source == "f64" or INTEGERS[to] == 64 else 0
    mask = (1 << (8 * got.itemsize)) - 1
    for x, result in zip(values, got.tolist(), strict=True):
        if math.isnan(x):
            want = nan
        elif math.isinf(x):
            want = high if x > 0 else low
        else:
            want = max(low, min(high, whole(x, mode)))
        assert result == want & mask, (x, hex(result), want)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("to", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("source", INTEGERS)
def test_integer_to_float(source: str, to: str, rounding: str) -> None:
    (a,) = micro.integers(np.random.default_rng(2), [register(source)], 600)
    if INTEGERS[source] == 64:  # next to the rounding boundaries of every format
        shifts = np.arange(64, dtype=np.uint64)
        edge = np.uint64(0x8000008000008001) >> shifts
        a = np.concatenate([a, edge, edge - np.uint64(1), np.uint64(0xFFFFFF7FFFFFFFFF) >> shifts])
    form, out = SOURCES[to]
    got = micro.apply(f"cvt.{rounding}.{to}.{source} {{d}}, {{a}};", [register(source)], out, a)
    for x, result in zip(a.tolist(), got.tolist(), strict=True):
        want = exact.round_to(form, exact.Fraction(wrap(x, source)), rounding)
        assert result == want, (hex(x), hex(result), hex(want))


@pytest.mark.parametrize("source", INTEGERS)
def test_integer_to_double(source: str) -> None:
    (a,) = micro.integers(np.random.default_rng(3), [register(source)], 600)
    got = micro.apply(f"cvt.rn.f64.{source} {{d}}, {{a}};", [register(source)], "f64", a)
    assert got.tolist() == [float(wrap(x, source)) for x in a.tolist()]


NARROWING = [
    (to, source, rounding, flags)
    for to in ("f16", "bf16")
    for source in ("f32", "f64")
    for rounding in ROUNDINGS
    for flags in ("", ".sat")
] + [
    *(("f32", "f64", rounding, flags) for rounding in ROUNDINGS for flags in ("", ".ftz")),
    *((to, "f32", "rn", flags) for to in ("f16", "bf16")
      for flags in (".relu", ".satfinite", ".relu.satfinite")),
]  # fmt: skip


def narrowed(form: exact.Format, x: float, rounding: str, flags: str) -> int:
    if ".relu" in flags and x <= 0:
        return 0
    code = exact.from_float(form, x, rounding)
    if ".satfinite" in flags and code & ((1 << (form.bits - 1)) - 1) == form.largest + 1:
        code -= 1
    if ".ftz" in flags:
        code = exact.flush(form, code)
    value = exact.to_float(form, code)
    if ".sat" in flags.split("satfinite")[0]:
        return exact.from_float(form, min(value, 1.0) if value > 0 else 0.0, "rn")
    return code


@pytest.mark.parametrize(("to", "source", "rounding", "flags"), NARROWING)
def test_narrowing(to: str, source: str, rounding: str, flags: str) -> None:
    form, out = SOURCES[to]
    a, values = narrowing_sources(source)
    text = f"cvt.{rounding}{flags}.{to}.{source} {{d}}, {{a}};"
    got = micro.apply(text, [f"b{8 * a.itemsize}"], out, a)
    for x, result in zip(values, got.tolist(), strict=True):
        want = narrowed(form, x, rounding, flags)
        assert result == want, (text, x, hex(result), hex(want))


@np.errstate(all="ignore")
def narrowing_sources(source: str) -> tuple[np.ndarray, list[float]]:
    """As `sources`, with values on and next to the boundaries between halves."""
    rng = np.random.default_rng(4)
    a, _ = sources(source)
    halves = rng.integers(0, 1 << 16, 400, np.uint16)
    near = halves.view(np.float16).astype(np.float64)
    brain = (halves.astype(np.uint32) << 16 | 0x8000).view(np.float32).astype(np.float64)
    middle = np.concatenate([near * (1 + 2.0**-11), near, brain])
    values = middle.astype(np.float32 if source == "f32" else np.float64)
    towards = [np.nextafter(values, values.dtype.type(x)) for x in (math.inf, 0)]
    tilted = np.concatenate([values, *towards])
    tilted = np.concatenate([a.view(tilted.dtype), tilted])
    return tilted.view(f"u{tilted.itemsize}"), tilted.astype(np.float64).tolist()


@pytest.mark.parametrize("source", ["f16", "bf16"])
@np.errstate(invalid="ignore")
def test_widening_is_exact(source: str) -> None:
    form = SOURCES[source][0]
    values = np.array([exact.to_float(form, x) for x in range(1 << 16)])
    single = micro.apply(f"cvt.f32.{source} {{d}}, {{a}};", ["b16"], "f32", EVERY_HALF)
    double = micro.apply(f"cvt.f64.{source} {{d}}, {{a}};", ["b16"], "f64", EVERY_HALF)
    for got in (single.astype(np.float64), double):
        assert ((got.view(np.uint64) == values.view(np.uint64)) | np.isnan(values)).all()
        assert (np.isnan(got) == np.isnan(values)).all()


@np.errstate(invalid="ignore")
def test_single_to_double() -> None:
    (a,) = micro.floats(np.random.default_rng(5), 1)
    got = micro.apply("cvt.f64.f32 {d}, {a};", ["f32"], "f64", a)
    np.testing.assert_array_equal(got, a.astype(np.float64))
    got = micro.apply("cvt.ftz.f64.f32 {d}, {a};", ["f32"], "f64", a)
    np.testing.assert_array_equal(got, np.where(abs(a) < 2.0**-126, 0, a).astype(np.float64))


@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
@pytest.mark.parametrize("kind", ["f32", "f64", "f16", "bf16"])
def test_round_to_integral(kind: str, mode: str) -> None:
    a, values = sources(kind)
    rounded = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[mode](values)
    register_ = f"b{8 * a.itemsize}"
    got = micro.apply(f"cvt.{mode}.{kind}.{kind} {{d}}, {{a}};", [register_], register_, a)
    if kind == "f64":
        np.testing.assert_array_equal(got.view(np.float64), rounded)
        assert (np.signbit(got.view(np.float64)) == np.signbit(rounded))[~np.isnan(rounded)].all()
        return
    form = SOURCES[kind][0]
    assert got.tolist() == [exact.from_float(form, x, "rn") for x in rounded.tolist()]


def test_saturation_of_single() -> None:
    (a,) = micro.floats(np.random.default_rng(6), 1)
    got = micro.apply("cvt.sat.f32.f32 {d}, {a};", ["f32"], "f32", a)
    np.testing.assert_array_equal(got, np.where(a > 0, np.fmin(a, 1), 0))
    got = micro.apply("cvt.ftz.f32.f32 {d}, {a};", ["f32"], "b32", a)
    want = [0x7FFFFFFF if math.isnan(exact.to_float(exact.F32, x)) else exact.flush(exact.F32, x)
            for x in exact.codes(a)]  # fmt: skip
    assert got.tolist() == want


@pytest.mark.parametrize(
    "modifiers", ["rna", "rn", "rz", "rn.relu", "rna.satfinite", "rn.satfinite"]
)
def test_tf32(modifiers: str) -> None:
    a, values = narrowing_sources("f32")
    rounding, _, flags = modifiers.partition(".")
    got = micro.apply(f"cvt.{modifiers}.tf32.f32 {{d}}, {{a}};", ["b32"], "b32", a)
    for x, result in zip(values, got.tolist(), strict=True):
        want = narrowed(exact.TF32, x, rounding, "." + flags if flags else "") << 13
        assert result == (0x7FFFFFFF if math.isnan(x) else want), (x, hex(result))


# --- pairs ---------------------------------------------------------------------------------------


def pair_from_single(text: str, bits: int, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the upper and the lower element, from a and from a in reverse."""
    reverse = a[::-1].copy()
    got = micro.apply(
        f"cvt.{text}.f32 {{d}}, {{a}}, {{b}};", ["b32", "b32"], f"b{2 * bits}", a, reverse
    )
    return got >> bits, (got & ((1 << bits) - 1))[::-1]


@pytest.mark.parametrize("flags", ["rn", "rz", "rn.relu", "rn.satfinite", "rz.relu.satfinite"])
@pytest.mark.parametrize("to", ["f16", "bf16"])
def test_pairs_of_halves(to: str, flags: str) -> None:
    a, values = narrowing_sources("f32")
    want = [narrowed(SOURCES[to][0], x, flags[:2], flags[2:]) for x in values]
    high, low = pair_from_single(f"{flags}.{to}x2", 16, a)
    assert high.tolist() == want
    assert low.tolist() == want


NARROW = {
    "e4m3": (exact.E4M3, ml_dtypes.float8_e4m3fn),
    "e5m2": (exact.E5M2, ml_dtypes.float8_e5m2),
    "e2m1": (exact.E2M1, ml_dtypes.float4_e2m1fn),
}


def finite(form: exact.Format, x: float) -> int:
    """Nearest code, with what is too large kept at the largest value."""
    if math.isnan(x):
        return form.nan
    limit = float(exact.decode(form, form.largest))
    return exact.from_float(form, math.copysign(min(abs(x), limit), x), "rn")


@pytest.mark.parametrize("relu", ["", ".relu"])
@pytest.mark.parametrize("to", NARROW)
def test_narrow_pairs(to: str, relu: str) -> None:
    form, dtype = NARROW[to]
    single = np.array([exact.to_float(exact.F16, x) for x in range(1 << 16)], np.float32)
    tilted = [np.nextafter(single, np.float32(s * math.inf)) for s in (1, -1)]
    a = np.concatenate([single, *tilted])
    high, low = pair_from_single(f"rn.satfinite{relu}.{to}x2", form.bits, a.view(np.uint32))
    want = np.array([0 if relu and x <= 0 else finite(form, x) for x in a.tolist()])
    assert (high == want).all()
    assert (low == want).all()
    if not relu:  # ml_dtypes does not saturate
        inside = abs(a) <= float(exact.decode(form, form.largest))
        with np.errstate(all="ignore"):
            codes = a[inside].astype(dtype).view(np.uint8)
        assert (codes & ((1 << form.bits) - 1) == want[inside]).all()
    for source, kind in (("f16x2", exact.F16), ("bf16x2", exact.BF16)):
        # Every value of the upper element with another one in the lower.
        codes = EVERY_HALF if source == "f16x2" else EVERY_HALF[::5]
        values = [exact.to_float(kind, x) for x in codes.tolist()]
        table = np.array([0 if relu and x <= 0 else finite(form, x) for x in values], np.uint16)
        halves = np.stack([codes[::-1], codes], 1).ravel()
        text = f"cvt.rn.satfinite{relu}.{to}x2.{source} {{d}}, {{a}};"
        out = "b8" if to == "e2m1" else "b16"
        got = micro.apply(text, ["b32"], out, halves.view(np.uint32))
        assert (got == table << form.bits | table[::-1]).all()


@pytest.mark.parametrize("source", NARROW)
def test_widening_pairs(source: str) -> None:
    form, _ = NARROW[source]
    dtype = np.uint8 if form.bits == 4 else np.uint16
    codes = np.arange(1 << (2 * form.bits), dtype=dtype)
    mask = (1 << form.bits) - 1
    table = np.array([exact.from_float(exact.F16, exact.to_float(form, x), "rn")
                      for x in range(mask + 1)])  # fmt: skip
    for relu in ("", ".relu"):
        if relu:
            negative = (table & 0x8000 != 0) & (table & 0x7FFF <= 0x7C00)
            table = np.where(negative, 0, table)
        text = f"cvt.rn{relu}.f16x2.{source}x2 {{d}}, {{a}};"
        got = micro.apply(text, [f"b{2 * form.bits}"], "b32", codes)
        assert (got & 0xFFFF == table[codes & mask]).all()
        assert (got >> 16 == table[codes >> form.bits]).all()


def test_packing_order() -> None:
    one, six = np.array([1, 6], np.float32)
    got = micro.apply("cvt.rn.satfinite.e2m1x2.f32 {d}, {b}, {a};", ["f32", "f32"], "b8",
                      np.array([one]), np.array([six]))  # fmt: skip
    assert got.tolist() == [0x72]


@pytest.mark.parametrize("rounding", ["rz", "rp"])
@pytest.mark.parametrize("sat", ["", ".satfinite"])
def test_scales(rounding: str, sat: str) -> None:
    def code(x: float) -> int:
        x = abs(x)
        if math.isnan(x) or math.isinf(x):
            return 0xFE if sat and math.isinf(x) else 0xFF
        if x <= 2.0**-127:
            return 0
        fraction, exponent = math.frexp(x)
        up = rounding == "rp" and fraction != 0.5
        return max(0, min(exponent + 126 + up, 0xFE if sat else 0xFF))

    a, values = narrowing_sources("f32")
    high, low = pair_from_single(f"{rounding}{sat}.ue8m0x2", 8, a)
    want = [code(x) for x in values]
    assert high.tolist() == want
    assert low.tolist() == want
    got = micro.apply(f"cvt.{rounding}{sat}.ue8m0x2.bf16x2 {{d}}, {{a}};", ["b32"], "b16",
                      EVERY_HALF.view(np.uint32))  # fmt: skip
    assert got.view(np.uint8).tolist() == [
        code(exact.to_float(exact.BF16, x)) for x in range(1 << 16)
    ]


def test_scales_to_brains() -> None:
    codes = np.arange(1 << 16, dtype=np.uint16)
    got = micro.apply("cvt.rn.bf16x2.ue8m0x2 {d}, {a};", ["b16"], "b32", codes).view(np.uint16)
    table = codes.view(np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    want = [exact.from_float(exact.BF16, x, "rn") for x in table.tolist()]
    assert got.tolist() == want


# --- the CUDA headers ----------------------------------------------------------------------------


def unary(text: str, in_type: str, out_type: str) -> Callable[[np.ndarray], np.ndarray]:
    dtype = {"b8": np.uint8, "b16": np.uint16, "b32": np.uint32}[in_type]

    def convert(a: np.ndarray) -> np.ndarray:
        return micro.apply(f"{text} {{d}}, {{a}};", [in_type], out_type, a.astype(dtype))

    return convert


def low_of_pair(text: str, out_type: str, bits: int) -> Callable[[np.ndarray], np.ndarray]:
    def convert(a: np.ndarray) -> np.ndarray:
        body = f"{text} {{d}}, 0f00000000, {{a}};"
        return micro.apply(body, ["b32"], out_type, a) & ((1 << bits) - 1)

    return convert


FROM_HEADERS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "e4m3_from_f32": ("f32", low_of_pair("cvt.rn.satfinite.e4m3x2.f32", "b16", 8)),
    "e5m2_from_f32": ("f32", low_of_pair("cvt.rn.satfinite.e5m2x2.f32", "b16", 8)),
    "e2m1_from_f32": ("f32", low_of_pair("cvt.rn.satfinite.e2m1x2.f32", "b8", 4)),
    "e4m3_from_f16": ("f16", unary("cvt.rn.satfinite.e4m3x2.f16x2", "b32", "b16")),
    "e5m2_from_f16": ("f16", unary("cvt.rn.satfinite.e5m2x2.f16x2", "b32", "b16")),
    "f16_from_e4m3": ("byte", unary("cvt.rn.f16x2.e4m3x2", "b16", "b32")),
    "f16_from_e2m1": ("nibble", unary("cvt.rn.f16x2.e2m1x2", "b8", "b32")),
    "f16_from_e5m2": ("byte", unary("cvt.rn.f16x2.e5m2x2", "b16", "b32")),
    "ue8m0_from_f32_rz": ("f32", low_of_pair("cvt.rz.ue8m0x2.f32", "b16", 8)),
    "ue8m0_from_f32_rp": ("f32", low_of_pair("cvt.rp.ue8m0x2.f32", "b16", 8)),
    "ue8m0_from_f32_rz_satfinite": ("f32", low_of_pair("cvt.rz.satfinite.ue8m0x2.f32", "b16", 8)),
    "ue8m0_from_f32_rp_satfinite": ("f32", low_of_pair("cvt.rp.satfinite.ue8m0x2.f32", "b16", 8)),
    "ue8m0_from_bf16_rp_satfinite": ("f16", unary("cvt.rp.satfinite.ue8m0x2.bf16x2", "b32", "b16")),
    "bf16_from_ue8m0": ("byte", unary("cvt.rn.bf16x2.ue8m0x2", "b16", "b32")),
    **{f"{kind}_from_f32_{mode}": ("f32", unary(f"cvt.{mode}.{kind}.f32", "b32", "b16"))
       for kind in ("f16", "bf16") for mode in ROUNDINGS},
    "f32_from_f16": ("f16", unary("cvt.f32.f16", "b16", "b32")),
    "f32_from_bf16": ("f16", unary("cvt.f32.bf16", "b16", "b32")),
    "s32_from_f16_rzi": ("f16", unary("cvt.rzi.s32.f16", "b16", "b32")),
    "s32_from_bf16_rzi": ("f16", unary("cvt.rzi.s32.bf16", "b16", "b32")),
    "f16_from_s32_rn": ("f32", unary("cvt.rn.f16.s32", "b32", "b16")),
    "bf16_from_s32_rn": ("f32", unary("cvt.rn.bf16.s32", "b32", "b16")),
}  # fmt: skip


@pytest.mark.parametrize("name", FROM_HEADERS)
def test_as_the_headers(name: str) -> None:
    kind, convert = FROM_HEADERS[name]
    if kind == "f32":  # every half, its neighbours, and any bits
        rng = np.random.default_rng(8)
        single = EVERY_HALF.view(np.float16).astype(np.float32)
        a = np.concatenate([single.view(np.uint32), single.view(np.uint32) + 1,
                            single.view(np.uint32) - 1, EVERY_HALF.astype(np.uint32) << 16,
                            rng.integers(0, 1 << 32, 1 << 16, np.uint32)])  # fmt: skip
    else:
        a = np.arange({"nibble": 16, "byte": 256, "f16": 1 << 16}[kind], dtype=np.uint32)
    want = cuda_headers.convert(name, a)
    out = name.split("_")[0]
    bits = {"e4m3": 8, "e5m2": 8, "e2m1": 4, "ue8m0": 8, "f16": 16, "bf16": 16}.get(out, 32)
    got = convert(a) & np.uint32((1 << bits) - 1)
    # The host functions leave NaNs their payload, or make their own.
    nan = {"e5m2": 0x7C, "f16": 0x7C00, "bf16": 0x7F80, "f32": 0x7F800000}.get(out)
    differ = got != want
    if nan is not None:
        magnitude = (1 << (bits - 1)) - 1
        differ &= ~(((got & magnitude) > nan) & ((want & magnitude) > nan))
    assert not differ.any(), (hex(a[differ][0]), hex(got[differ][0]), hex(want[differ][0]))


@pytest.mark.parametrize(
    "text",
    ["cvt.f16.f32 {d}, {a};", "cvt.rn.f32.f16 {d}, {a};", "cvt.s32.f32 {d}, {a};",
     "cvt.f32.s32 {d}, {a};", "cvt.rn.e4m3x2.f32 {d}, {a}, {a};", "cvt.rz.f64.s32 {d}, {a};",
     "cvt.rn.satfinite.e4m3x2.f32 {d}, {a};", "cvt.rn.ue8m0x2.f32 {d}, {a}, {a};",
     "cvt.rp.bf16x2.f32 {d}, {a}, {a};", "cvt.rn.bf16.f16 {d}, {a};",
     "cvt.rs.f16x2.f32 {d}, {a}, {a}, {a};",
     "cvt.rn.e2m1x2.bf16x2 {d}, {a};", "cvt.rn.bf16x2.e2m1x2 {d}, {a};",
     "cvt.rn.satfinite.e2m1x4.f32 {d}, {a}, {a};", "cvt.rni.s32.s32 {d}, {a};",
     "cvt.u32 {d}, {a};"],
)  # fmt: skip
def test_unknown_forms_are_errors(text: str) -> None:
    with pytest.raises(micro.SyntaxError, match="line"):
        micro.apply(text, ["b32"], "b32", np.zeros(1, np.uint32))
