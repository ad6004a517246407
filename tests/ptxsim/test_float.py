"""Floating-point instructions against rational arithmetic, NumPy and the ISA's error bounds."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from . import exact, micro

ROUNDINGS = ["rn", "rz", "rm", "rp"]
Compute = Callable[..., int]  # format, operands as floats, rounding -> code
OPS: dict[str, tuple[int, Compute]] = {
    "add": (2, lambda f, a, b, m: exact.fma(f, a, 1.0, b, m)),
    "sub": (2, lambda f, a, b, m: exact.fma(f, b, -1.0, a, m)),
    "mul": (2, lambda f, a, b, m: exact.from_float(f, a * b, m)),
    "fma": (3, exact.fma),
}
QUOTIENTS: dict[str, tuple[int, Compute]] = {
    "div": (2, exact.divide),
    "rcp": (1, lambda f, a, m: exact.divide(f, 1.0, a, m)),
    "sqrt": (1, exact.sqrt),
}


def expect(
    form: exact.Format, compute: Compute, inputs: list[int], rounding: str, flags: str
) -> int:
    """Return the code an instruction with these modifiers gives."""
    if ".ftz" in flags:
        inputs = [exact.flush(form, x) for x in inputs]
    code = compute(form, *(exact.to_float(form, x) for x in inputs), rounding)
    if ".ftz" in flags:
        code = exact.flush(form, code)
    value = exact.to_float(form, code)
    if ".sat" in flags:
        return exact.from_float(form, min(value, 1.0) if value > 0 else 0.0, "rn")
    return 0 if ".relu" in flags and value <= 0 else code


def check(
    text: str,
    form: exact.Format,
    compute: Compute,
    arrays: list[np.ndarray],
    rounding: str = "rn",
    flags: str = "",
) -> None:
    names = ", ".join("{" + name + "}" for name in "abc"[: len(arrays)])
    kind = f"b{form.bits}"
    got = micro.apply(f"{text} {{d}}, {names};", [kind] * len(arrays), kind, *arrays)
    for result, *inputs in zip(got, *map(exact.codes, arrays), strict=True):
        want = expect(form, compute, inputs, rounding, flags)
        assert int(result) == want, (text, [hex(x) for x in inputs], hex(int(result)), hex(want))


@pytest.mark.parametrize("flags", ["", ".ftz", ".sat", ".ftz.sat"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("op", OPS)
def test_f32(op: str, rounding: str, flags: str) -> None:
    operands, compute = OPS[op]
    arrays = micro.floats(np.random.default_rng(operands), operands, 500)
    check(f"{op}.{rounding}{flags}.f32", exact.F32, compute, arrays, rounding, flags)


@pytest.mark.parametrize("op", ["add", "sub", "mul"])
def test_f32_default_rounding(op: str) -> None:
    operands, compute = OPS[op]
    check(f"{op}.f32", exact.F32, compute, micro.floats(np.random.default_rng(0), operands))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_f32_sums_that_need_many_bits(rounding: str) -> None:
    rng = np.random.default_rng(5)
    a, b = (rng.standard_normal(2000).astype(np.float32) for _ in "ab")
    # c next to the rounding boundary of a * b, or far below it.
    c = (-a * b * np.float32(2.0) ** rng.integers(-60, 2, 2000).astype(np.float32)).astype(
        np.float32
    )
    check(f"fma.{rounding}.f32", exact.F32, exact.fma, [a, b, c], rounding)
    check(f"add.{rounding}.f32", exact.F32, OPS["add"][1], [a, c], rounding)


@pytest.mark.parametrize("ftz", ["", ".ftz"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("op", QUOTIENTS)
def test_f32_quotients(op: str, rounding: str, ftz: str) -> None:
    operands, compute = QUOTIENTS[op]
    arrays = micro.floats(np.random.default_rng(operands), operands, 500)
    check(f"{op}.{rounding}{ftz}.f32", exact.F32, compute, arrays, rounding, ftz)


@pytest.mark.parametrize("modifiers", ["rn", "rz", "rp", "rn.ftz"])
@pytest.mark.parametrize("op", OPS)
def test_f32x2(op: str, modifiers: str) -> None:
    operands, compute = OPS[op]
    arrays = micro.floats(np.random.default_rng(1), operands, 500)
    words = [
        (np.roll(x, 1).view(np.uint32).astype(np.uint64) << np.uint64(32)) | x.view(np.uint32)
        for x in arrays
    ]
    names = ", ".join("{" + name + "}" for name in "abc"[:operands])
    got = micro.apply(f"{op}.{modifiers}.f32x2 {{d}}, {names};", ["b64"] * operands, "b64", *words)
    rounding, flags = modifiers[:2], modifiers[2:]
    want = [
        expect(exact.F32, compute, list(x), rounding, flags)
        for x in zip(*map(exact.codes, arrays), strict=True)
    ]
    low = np.array(want, np.uint64)
    assert (got == (np.roll(low, 1) << np.uint64(32) | low)).all()


HALF_FORMS = {"f16": exact.F16, "bf16": exact.BF16}
HALF_CASES = [
    *((kind, op, "") for kind in HALF_FORMS for op in OPS),
    *(("f16", op, flags) for op in OPS for flags in (".ftz", ".sat", ".ftz.sat")),
    ("f16", "fma", ".relu"),
    ("f16", "fma", ".ftz.relu"),
    ("bf16", "fma", ".relu"),
]


@pytest.mark.parametrize(("kind", "op", "flags"), HALF_CASES)
def test_half(kind: str, op: str, flags: str) -> None:
    operands, compute = OPS[op]
    arrays = micro.halves(np.random.default_rng(2), operands)
    rn = ".rn" if op == "fma" else ""
    check(f"{op}{rn}{flags}.{kind}", HALF_FORMS[kind], compute, arrays, flags=flags)


@pytest.mark.parametrize("kind", HALF_FORMS)
@pytest.mark.parametrize("op", OPS)
def test_packed_half(op: str, kind: str) -> None:
    operands, compute = OPS[op]
    form = HALF_FORMS[kind]
    arrays = micro.halves(np.random.default_rng(3), operands, 1000)
    arrays = [x[: len(x) // 2 * 2] for x in arrays]
    names = ", ".join("{" + name + "}" for name in "abc"[:operands])
    got = micro.apply(f"{op}.rn.{kind}x2 {{d}}, {names};", ["b32"] * operands, "b32",
                      *(x.view(np.uint32) for x in arrays))  # fmt: skip
    want = [
        expect(form, compute, list(x), "rn", "")
        for x in zip(*map(exact.codes, arrays), strict=True)
    ]
    assert (got.view(np.uint16) == want).all()


def doubles(operands: int) -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    edges = np.array([0.0, -0.0, 1.0, -1.5, math.inf, -math.inf, math.nan, 5e-324, -5e-324,
                      2.2250738585072014e-308, 1.7976931348623157e308, 1 / 3])  # fmt: skip
    grid = [x.ravel() for x in np.meshgrid(edges, edges)]
    out = []
    for i in range(operands):
        any_bits = rng.integers(0, 1 << 64, 2000, np.uint64).view(np.float64)
        edge = grid[i] if i < 2 else rng.permutation(grid[0])
        out.append(np.concatenate([edge, any_bits, rng.standard_normal(2000)]))
    return out


def same(got: np.ndarray, want: np.ndarray) -> bool:
    """Equal bits, or both NaN."""
    bits = f"u{got.itemsize}"
    return bool(((got.view(bits) == want.view(bits)) | (np.isnan(got) & np.isnan(want))).all())


@np.errstate(all="ignore")
def test_f64() -> None:
    a, b, c = doubles(3)
    for text, want in {
        "add.f64 {d}, {a}, {b};": a + b,
        "sub.rn.f64 {d}, {a}, {b};": a - b,
        "mul.f64 {d}, {a}, {b};": a * b,
        "div.rn.f64 {d}, {a}, {b};": a / b,
        "sqrt.rn.f64 {d}, {a};": np.sqrt(a),
        "rcp.rn.f64 {d}, {a};": 1 / a,
        "neg.f64 {d}, {a};": -a,
        "abs.f64 {d}, {a};": abs(a),
        "copysign.f64 {d}, {a}, {b};": np.copysign(b, a),
    }.items():
        names = [x for x in "ab" if "{" + x + "}" in text]
        got = micro.apply(text, ["f64"] * len(names), "f64", *(a, b)[: len(names)])
        assert same(got, want), text
    got = micro.apply("fma.rn.f64 {d}, {a}, {b}, {c};", ["f64"] * 3, "f64", a, b, c)
    for x, y, z, result in zip(*(v.tolist() for v in (a, b, c, got)), strict=True):
        try:
            total = exact.Fraction(x) * exact.Fraction(y) + exact.Fraction(z)
            want = float(total) if total else None
        except (OverflowError, ValueError):
            continue  # not finite
        assert want is None or result == want, (x, y, z)


@np.errstate(all="ignore")
@pytest.mark.parametrize("op", ["min", "max"])
def test_extremes(op: str) -> None:
    def pick(form: exact.Format, a: float, b: float, mode: str) -> int:
        if math.isnan(a) or math.isnan(b):
            return exact.from_float(form, b if math.isnan(a) and mode != "NaN" else a + 0 * b
                                    if mode == "NaN" else a, "rn")  # fmt: skip
        # -0 < +0 by the sign.
        first = (a, math.copysign(1, a)) < (b, math.copysign(1, b))
        return exact.from_float(form, a if first == (op == "min") else b, "rn")

    rng = np.random.default_rng(6)
    for kind, form, arrays in (
        ("f32", exact.F32, micro.floats(rng, 2, 500)),
        ("f16", exact.F16, micro.halves(rng, 2, 1000)),
        ("bf16", exact.BF16, micro.halves(rng, 2, 1000)),
    ):
        check(f"{op}.{kind}", form, pick, arrays)
        check(f"{op}.NaN.{kind}", form, pick, arrays, "NaN")
        if kind != "bf16":
            check(f"{op}.ftz.{kind}", form, pick, arrays, flags=".ftz")
    a, b = doubles(2)
    want = (np.fmin if op == "min" else np.fmax)(a, b)
    got = micro.apply(f"{op}.f64 {{d}}, {{a}}, {{b}};", ["f64"] * 2, "f64", a, b)
    zeros = (a == 0) & (b == 0)
    assert same(got[~zeros], want[~zeros])
    signs = np.signbit(a) | np.signbit(b) if op == "min" else np.signbit(a) & np.signbit(b)
    assert (np.signbit(got) == signs)[zeros].all() and zeros.any()


@pytest.mark.parametrize("op", ["min", "max"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_packed_extremes(op: str, kind: str) -> None:
    a, b = (x[:1000] & 0x7FFF for x in micro.halves(np.random.default_rng(7), 2))
    a, b = (np.where(x > 0x7B00, 0x3C00, x).astype(np.uint16) for x in (a, b))  # numbers only
    got = micro.apply(f"{op}.{kind}x2 {{d}}, {{a}}, {{b}};", ["b32"] * 2, "b32",
                      a.view(np.uint32), b.view(np.uint32))  # fmt: skip
    # Codes of positive numbers are ordered as the numbers are.
    assert (got.view(np.uint16) == (np.minimum if op == "min" else np.maximum)(a, b)).all()


def test_signs() -> None:
    (a, b) = micro.floats(np.random.default_rng(8), 2)
    bits = a.view(np.uint32)
    assert (micro.apply("neg.f32 {d}, {a};", ["f32"], "b32", a) == bits ^ 0x80000000).all()
    assert (micro.apply("abs.f32 {d}, {a};", ["f32"], "b32", a) == bits & 0x7FFFFFFF).all()
    got = micro.apply("neg.ftz.f32 {d}, {a};", ["f32"], "b32", a)
    assert got.tolist() == [exact.flush(exact.F32, x) ^ 0x80000000 for x in exact.codes(a)]
    got = micro.apply("copysign.f32 {d}, {a}, {b};", ["f32", "f32"], "b32", a, b)
    assert (got == (b.view(np.uint32) & 0x7FFFFFFF | bits & 0x80000000)).all()
    words = micro.halves(np.random.default_rng(9), 1)[0][:2000]
    for kind in ("f16", "bf16"):
        got = micro.apply(f"neg.{kind}x2 {{d}}, {{a}};", ["b32"], "b32", words.view(np.uint32))
        assert (got.view(np.uint16) == words ^ 0x8000).all()
        got = micro.apply(f"abs.{kind} {{d}}, {{a}};", ["b16"], "b16", words)
        assert (got == words & 0x7FFF).all()


@np.errstate(all="ignore")
@pytest.mark.parametrize("ftz", ["", ".ftz"])
@pytest.mark.parametrize(
    ("op", "reference", "ulps"),
    [("ex2", np.exp2, 1), ("lg2", np.log2, 1), ("rsqrt", lambda x: 1 / np.sqrt(x), 0),
     ("sqrt", np.sqrt, 0), ("rcp", lambda x: 1 / x, 0), ("sin", np.sin, 1), ("cos", np.cos, 1)],
)  # fmt: skip
def test_approximations(
    op: str, reference: Callable[[np.ndarray], np.ndarray], ulps: int, ftz: str
) -> None:
    (a,) = micro.floats(np.random.default_rng(10), 1)
    if op in ("sin", "cos"):
        a = a[~(abs(a) > 1e5)]
    got = micro.apply(f"{op}.approx{ftz}.f32 {{d}}, {{a}};", ["f32"], "f32", a)
    if ftz:
        a = np.array([exact.flush(exact.F32, x) for x in exact.codes(a)], np.uint32).view(
            np.float32
        )
    want = reference(a.astype(np.float64)).astype(np.float32)
    if ftz:
        want = np.array([exact.flush(exact.F32, x) for x in exact.codes(want)], np.uint32).view(
            np.float32
        )
    check_ulps(got, want, ulps)


def check_ulps(got: np.ndarray, want: np.ndarray, ulps: int) -> None:
    nan = np.isnan(want)
    assert (got.view(np.uint32)[nan] == 0x7FFFFFFF).all() and not np.isnan(got[~nan]).any()
    distance = got.view(np.int32).astype(np.int64) - want.view(np.int32)
    assert (abs(distance[~nan]) <= ulps).all()


@np.errstate(all="ignore")
def test_approximate_division() -> None:
    a, b = micro.floats(np.random.default_rng(11), 2)
    want = (a.astype(np.float64) / b.astype(np.float64)).astype(np.float32)
    full = micro.apply("div.full.f32 {d}, {a}, {b};", ["f32", "f32"], "f32", a, b)
    check_ulps(full, want, 0)
    got = micro.apply("div.approx.f32 {d}, {a}, {b};", ["f32", "f32"], "f32", a, b)
    large = (abs(b) > 2.0**126) & np.isfinite(b)
    check_ulps(got[~large], want[~large], 0)
    # The ISA: beyond 2^126, NaN if a is infinite, else zero.
    check = large & ~np.isnan(a)
    assert (np.where(np.isinf(a), np.isnan(got), got == 0))[check].all() and check.any()


@np.errstate(all="ignore")
@pytest.mark.parametrize(
    ("text", "form"),
    [("ex2.approx.f16", exact.F16), ("ex2.approx.ftz.f16", exact.F16),
     ("ex2.approx.ftz.bf16", exact.BF16), ("tanh.approx.f16", exact.F16),
     ("tanh.approx.bf16", exact.BF16), ("tanh.approx.f32", exact.F32)],
)  # fmt: skip
def test_half_approximations(text: str, form: exact.Format) -> None:
    def compute(form: exact.Format, a: float, mode: str) -> int:
        value = float(np.exp2(a) if text.startswith("ex2") else np.tanh(a))
        return exact.from_float(form, value, "rn")

    if form is exact.F32:
        (a,) = micro.floats(np.random.default_rng(12), 1)
        got = micro.apply(f"{text} {{d}}, {{a}};", ["f32"], "f32", a)
        check_ulps(got, np.tanh(a.astype(np.float64)).astype(np.float32), 1)
        return
    arrays = [np.arange(0, 1 << 16, 9, dtype=np.uint16)]
    check(text, form, compute, arrays, flags=".ftz" if "ftz" in text else "")
    got = micro.apply(f"{text}x2 {{d}}, {{a}};", ["b32"], "b32", arrays[0].view(np.uint32))
    assert (
        got.view(np.uint16) == micro.apply(f"{text} {{d}}, {{a}};", ["b16"], "b16", *arrays)
    ).all()


COMPARISONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "eq": np.equal, "ne": lambda a, b: (a != b) & ~(np.isnan(a) | np.isnan(b)), "lt": np.less,
    "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)), "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}  # fmt: skip


def holds(op: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if op in COMPARISONS:
        return COMPARISONS[op](a, b)
    return COMPARISONS[op[:2]](a, b) | np.isnan(a) | np.isnan(b)


ALL_COMPARISONS = [*COMPARISONS, "equ", "neu", "ltu", "leu", "gtu", "geu"]


def brains(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("op", ALL_COMPARISONS)
def test_compare(op: str) -> None:
    rng = np.random.default_rng(13)
    a, b = micro.floats(rng, 2)
    got = micro.apply(f"setp.{op}.f32 {{d}}, {{a}}, {{b}};", ["f32", "f32"], "pred", a, b)
    assert (got == holds(op, a, b)).all()
    flushed = [
        np.array([exact.flush(exact.F32, x) for x in exact.codes(v)], np.uint32).view(np.float32)
        for v in (a, b)
    ]
    got = micro.apply(f"setp.{op}.ftz.f32 {{d}}, {{a}}, {{b}};", ["f32", "f32"], "pred", a, b)
    assert (got == holds(op, *flushed)).all()
    x, y = doubles(2)
    got = micro.apply(f"setp.{op}.f64 {{d}}, {{a}}, {{b}};", ["f64", "f64"], "pred", x, y)
    assert (got == holds(op, x, y)).all()
    h, k = (v[: len(v) // 2 * 2] for v in micro.halves(rng, 2))
    for kind, values in (("f16", (h.view(np.float16), k.view(np.float16))),
                         ("bf16", (brains(h), brains(k)))):  # fmt: skip
        want = holds(op, *values)
        got = micro.apply(f"setp.{op}.{kind} {{d}}, {{a}}, {{b}};", ["b16", "b16"], "pred", h, k)
        assert (got == want).all()
        packed = f"{kind}x2"
        pair = micro.apply(f"set.{op}.{packed}.{packed} {{d}}, {{a}}, {{b}};", ["b32"] * 2, "b32",
                           h.view(np.uint32), k.view(np.uint32))  # fmt: skip
        assert (
            pair.view(np.uint16) == np.where(want, 0x3C00 if kind == "f16" else 0x3F80, 0)
        ).all()
        mask = micro.apply(f"set.{op}.u32.{kind}x2 {{d}}, {{a}}, {{b}};", ["b32", "b32"], "b32",
                           h.view(np.uint32), k.view(np.uint32))  # fmt: skip
        assert (mask.view(np.uint16) == np.where(want, 0xFFFF, 0)).all()


def test_select_by_sign() -> None:
    a, b = micro.floats(np.random.default_rng(14), 2)
    got = micro.apply("slct.b32.f32 {d}, {a}, {b}, {a};", ["b32", "b32"], "b32",
                      a.view(np.uint32), b.view(np.uint32))  # fmt: skip
    assert (got == np.where(a >= 0, a.view(np.uint32), b.view(np.uint32))).all()


@pytest.mark.parametrize(
    ("text", "kind", "want"),
    [("add.f32 {d}, {a}, 0f40000000;", "f32", 5.0), ("add.f32 {d}, {a}, 2.0;", "f32", 5.0),
     ("fma.rn.f32 {d}, {a}, -0.5, 0fBF800000;", "f32", -2.5), ("mov.f32 {d}, 1.5;", "f32", 1.5),
     ("add.f64 {d}, {a}, 0d4000000000000000;", "f64", 5.0), ("add.f64 {d}, {a}, 2.0;", "f64", 5.0),
     ("mov.b32 {d}, 0f40490FDB;", "f32", np.float32(math.pi)),
     ("{ .reg .pred p; setp.gt.f32 p, {a}, 2.5; selp.f32 {d}, 0f3F800000, {a}, p; }", "f32", 1.0)],
)  # fmt: skip
def test_immediates(text: str, kind: str, want: float) -> None:
    a = np.full(3, 3.0, np.float32 if kind == "f32" else np.float64)
    assert micro.apply(text, [kind], kind, a).tolist() == [want] * 3


@pytest.mark.parametrize(
    "text",
    ["fma.f32 {d}, {a}, {a}, {a};", "div.f32 {d}, {a}, {a};", "add.rn.relu.f32 {d}, {a}, {a};",
     "add.f32 {d}, {a}, 1;", "ex2.f32 {d}, {a};", "rsqrt.rn.f32 {d}, {a};",
     "min.rn.f32 {d}, {a}, {a};",
     "rem.f32 {d}, {a}, {a};", "mad.rn.f32 {d}, {a}, {a}, {a};",
     "min.xorsign.abs.f32 {d}, {a}, {a};",
     "add.sat.f32x2 {d}, {a}, {a};", "mul.lo.f32 {d}, {a}, {a};", "setp.lo.f32 p, {a}, {a};"],
)  # fmt: skip
def test_unknown_forms_are_errors(text: str) -> None:
    with pytest.raises(micro.SyntaxError, match="line"):
        micro.apply("{ .reg .pred p; " + text + " }", ["f32"], "f32", np.zeros(1, np.float32))
