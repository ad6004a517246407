"""Integer instructions against Python's integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from . import micro

WIDTHS = {"u16": 16, "s16": 16, "u32": 32, "s32": 32, "u64": 64, "s64": 64}
ALL = list(WIDTHS)


def check(
    instruction: str, in_types: Sequence[str], out_type: str, expected: Callable[..., int]
) -> None:
    """Compare on hostile and random values; `expected` may give any integer, which wraps."""
    rng = np.random.default_rng(len(instruction))
    arrays = micro.integers(rng, in_types)
    got = micro.apply(instruction, in_types, out_type, *arrays)
    mask = (1 << (8 * got.itemsize)) - 1
    inputs = [[int(x) for x in array] for array in arrays]
    for result, *values in zip(got, *inputs, strict=True):
        want = expected(*values) & mask
        assert int(result) & mask == want, (instruction, values, int(result), want)


def wrap(x: int, kind: str) -> int:
    bits = WIDTHS[kind]
    x &= (1 << bits) - 1
    return x - (1 << bits) if kind[0] == "s" and x >> (bits - 1) else x


def quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1) if b else -1


BINARY: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "div": quotient,
    "rem": lambda a, b: a - quotient(a, b) * b if b else a,
    "min": min,
    "max": max,
}


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("op", BINARY)
def test_binary(op: str, kind: str) -> None:
    check(f"{op}.{kind} {{d}}, {{a}}, {{b}};", [kind, kind], kind, BINARY[op])


@pytest.mark.parametrize("kind", ALL)
def test_products(kind: str) -> None:
    bits = WIDTHS[kind]
    check(f"mul.hi.{kind} {{d}}, {{a}}, {{b}};", [kind] * 2, kind, lambda a, b: a * b >> bits)
    check(f"mad.lo.{kind} {{d}}, {{a}}, {{b}}, {{c}};", [kind] * 3, kind,
          lambda a, b, c: a * b + c)  # fmt: skip
    check(f"mad.hi.{kind} {{d}}, {{a}}, {{b}}, {{c}};", [kind] * 3, kind,
          lambda a, b, c: (a * b >> bits) + c)  # fmt: skip
    check(f"sad.{kind} {{d}}, {{a}}, {{b}}, {{c}};", [kind] * 3, kind,
          lambda a, b, c: c + abs(a - b))  # fmt: skip


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32"])
def test_wide_products(kind: str) -> None:
    wide = f"{kind[0]}{2 * WIDTHS[kind]}"
    check(f"mul.wide.{kind} {{d}}, {{a}}, {{b}};", [kind] * 2, wide, lambda a, b: a * b)
    check(f"mad.wide.{kind} {{d}}, {{a}}, {{b}}, {{c}};", [kind, kind, wide], wide,
          lambda a, b, c: a * b + c)  # fmt: skip


@pytest.mark.parametrize("kind", ["s16", "s32", "s64"])
def test_sign(kind: str) -> None:
    check(f"neg.{kind} {{d}}, {{a}};", [kind], kind, lambda a: -a)
    check(f"abs.{kind} {{d}}, {{a}};", [kind], kind, abs)


def test_saturating() -> None:
    low, high = -(1 << 31), (1 << 31) - 1
    check("add.sat.s32 {d}, {a}, {b};", ["s32"] * 2, "s32", lambda a, b: max(low, min(high, a + b)))
    check("sub.sat.s32 {d}, {a}, {b};", ["s32"] * 2, "s32", lambda a, b: max(low, min(high, a - b)))


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_logic(bits: int) -> None:
    kind, u = f"b{bits}", f"u{bits}"
    check(f"and.{kind} {{d}}, {{a}}, {{b}};", [u, u], u, lambda a, b: a & b)
    check(f"or.{kind} {{d}}, {{a}}, {{b}};", [u, u], u, lambda a, b: a | b)
    check(f"xor.{kind} {{d}}, {{a}}, {{b}};", [u, u], u, lambda a, b: a ^ b)
    check(f"not.{kind} {{d}}, {{a}};", [u], u, lambda a: ~a)
    check(f"cnot.{kind} {{d}}, {{a}};", [u], u, lambda a: int(a == 0))


@pytest.mark.parametrize("op", ["and", "or", "xor"])
def test_predicate_logic(op: str) -> None:
    a, b = np.array([0, 0, 1, 1], np.uint8), np.array([0, 1, 0, 1], np.uint8)
    want = {"and": a & b, "or": a | b, "xor": a ^ b}[op].astype(bool)
    got = micro.apply(f"{op}.pred {{d}}, {{a}}, {{b}};", ["pred"] * 2, "pred", a, b)
    assert (got == want).all()
    got = micro.apply(f"{op}.pred {{d}}, {{a}}, !{{b}};", ["pred"] * 2, "pred", a, 1 - b)
    assert (got == want).all()
    text = "{ .reg .pred t; not.pred t, {a}; mov.pred {d}, t; }"
    assert (micro.apply(text, ["pred"], "pred", a) == (a == 0)).all()


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_shifts(bits: int) -> None:
    u, s = f"u{bits}", f"s{bits}"
    check(f"shl.b{bits} {{d}}, {{a}}, {{b}};", [u, "u32"], u,
          lambda a, n: a << n if n < bits else 0)  # fmt: skip
    check(f"shr.u{bits} {{d}}, {{a}}, {{b}};", [u, "u32"], u, lambda a, n: a >> min(n, bits))
    check(f"shr.b{bits} {{d}}, {{a}}, {{b}};", [u, "u32"], u, lambda a, n: a >> min(n, bits))
    check(f"shr.s{bits} {{d}}, {{a}}, {{b}};", [s, "u32"], s, lambda a, n: a >> min(n, bits))


@pytest.mark.parametrize("mode", ["wrap", "clamp"])
def test_funnel_shifts(mode: str) -> None:
    def amount(c: int) -> int:
        return c % 32 if mode == "wrap" else min(c, 32)

    check(f"shf.l.{mode}.b32 {{d}}, {{a}}, {{b}}, {{c}};", ["u32"] * 3, "u32",
          lambda a, b, c: (b << 32 | a) << amount(c) >> 32)  # fmt: skip
    check(f"shf.r.{mode}.b32 {{d}}, {{a}}, {{b}}, {{c}};", ["u32"] * 3, "u32",
          lambda a, b, c: (b << 32 | a) >> amount(c))  # fmt: skip
    # Amounts around the width, which random words rarely are.
    check(f"{{ .reg .u32 n; and.b32 n, {{c}}, 63; shf.l.{mode}.b32 {{d}}, {{a}}, {{b}}, n; }}",
          ["u32"] * 3, "u32", lambda a, b, c: (b << 32 | a) << amount(c & 63) >> 32)  # fmt: skip


def permute(a: int, b: int, c: int) -> int:
    table = (b << 32 | a).to_bytes(8, "little")
    out = []
    for i in range(4):
        pick = c >> (4 * i) & 15
        byte = table[pick & 7]
        out.append((255 if byte & 128 else 0) if pick & 8 else byte)
    return int.from_bytes(bytes(out), "little")


def test_permute() -> None:
    check("prmt.b32 {d}, {a}, {b}, {c};", ["u32"] * 3, "u32", permute)


@pytest.mark.parametrize("table", [0x00, 0x80, 0xFE, 0x96, 0xE8, 0xCA, 0x1D, 0xFF])
def test_lop3(table: int) -> None:
    def want(a: int, b: int, c: int) -> int:
        out = 0
        for i in range(32):
            at = (a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1
            out |= (table >> at & 1) << i
        return out

    check(f"lop3.b32 {{d}}, {{a}}, {{b}}, {{c}}, {table};", ["u32"] * 3, "u32", want)


def extract(a: int, position: int, length: int, bits: int, signed: bool) -> int:
    """The ISA's loop over the bits."""
    position, length = position & 255, length & 255
    a &= (1 << bits) - 1
    sign = signed and length and a >> min(position + length - 1, bits - 1) & 1
    out = 0
    for i in range(bits):
        inside = i < length and position + i < bits
        out |= int(a >> (position + i) & 1 if inside else sign) << i
    return out


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("limit", [31, 255])
def test_bit_fields(kind: str, limit: int) -> None:
    bits, u = WIDTHS[kind], f"u{WIDTHS[kind]}"
    near = f".reg .u32 p, n; and.b32 p, {{b}}, {limit}; and.b32 n, {{c}}, {limit};"
    check(f"{{ {near} bfe.{kind} {{d}}, {{a}}, p, n; }}", [u, "u32", "u32"], u,
          lambda a, p, n: extract(a, p & limit, n & limit, bits, kind[0] == "s"))  # fmt: skip
    check(f"bfe.{kind} {{d}}, {{a}}, {{b}}, {{c}};", [u, "u32", "u32"], u,
          lambda a, p, n: extract(a, p, n, bits, kind[0] == "s"))  # fmt: skip


@pytest.mark.parametrize("bits", [32, 64])
def test_insert(bits: int) -> None:
    def want(a: int, b: int, position: int, length: int) -> int:
        position, length = position & 255, length & 255
        for i in range(length):
            if position + i < bits:
                b = b & ~(1 << position + i) | (a >> i & 1) << position + i
        return b

    u = f"u{bits}"
    check(f"bfi.b{bits} {{d}}, {{a}}, {{b}}, {{c}}, {{e}};", [u, u, "u32", "u32"], u, want)


@pytest.mark.parametrize("bits", [32, 64])
def test_counting(bits: int) -> None:
    u = f"u{bits}"
    check(f"popc.b{bits} {{d}}, {{a}};", [u], "u32", lambda a: a.bit_count())
    check(f"clz.b{bits} {{d}}, {{a}};", [u], "u32", lambda a: bits - a.bit_length())
    check(f"brev.b{bits} {{d}}, {{a}};", [u], u, lambda a: int(f"{a:0{bits}b}"[::-1], 2))


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_find(kind: str) -> None:
    def highest(a: int) -> int:
        return (a if a >= 0 else ~a).bit_length() - 1

    bits = WIDTHS[kind]
    check(f"bfind.{kind} {{d}}, {{a}};", [kind], "u32", highest)
    check(f"bfind.shiftamt.{kind} {{d}}, {{a}};", [kind], "u32",
          lambda a: bits - 1 - highest(a) if highest(a) >= 0 else -1)  # fmt: skip


COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
}  # fmt: skip


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("op", COMPARISONS)
def test_compare(op: str, kind: str) -> None:
    check(f"setp.{op}.{kind} {{d}}, {{a}}, {{b}};", [kind] * 2, "pred", COMPARISONS[op])


@pytest.mark.parametrize("op", ["lo", "ls", "hi", "hs"])
def test_compare_unsigned_names(op: str) -> None:
    plain = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}[op]
    check(f"setp.{op}.u32 {{d}}, {{a}}, {{b}};", ["u32"] * 2, "pred", COMPARISONS[plain])


@pytest.mark.parametrize("combine", ["and", "or", "xor"])
def test_compare_combined(combine: str) -> None:
    both = {"and": lambda a, b: a & b, "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b}[combine]
    text = f"""{{ .reg .pred c, p, q; .reg .u32 t, u;
        and.b32 t, {{c}}, 1; setp.ne.u32 c, t, 0;
        setp.lt.{combine}.s32 p|q, {{a}}, {{b}}, !c;
        selp.u32 t, 1, 0, p; selp.u32 u, 2, 0, q; or.b32 {{d}}, t, u; }}"""
    check(text, ["s32", "s32", "u32"], "u32",
          lambda a, b, c: both(a < b, not c & 1) | both(a >= b, not c & 1) << 1)  # fmt: skip


def test_compare_two_results() -> None:
    text = """{ .reg .pred p, q; .reg .u32 t, u; setp.lt.u64 p|q, {a}, {b};
        selp.u32 t, 1, 0, p; selp.u32 u, 2, 0, q; or.b32 {d}, t, u; }"""
    check(text, ["u64", "u64"], "u32", lambda a, b: 1 if a < b else 2)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_select(bits: int) -> None:
    kind = f"b{bits}"
    rng = np.random.default_rng(bits)
    a, b = micro.integers(rng, [kind, kind])
    p = rng.integers(0, 2, len(a), np.uint8)
    got = micro.apply(
        f"selp.{kind} {{d}}, {{a}}, {{b}}, {{c}};", [kind, kind, "pred"], kind, a, b, p
    )
    assert (got == np.where(p, a, b)).all()
    got = micro.apply(f"selp.{kind} {{d}}, {{a}}, -1, !{{b}};", [kind, "pred"], kind, a, p)
    assert (got == np.where(p, ~a * 0 - 1, a)).all()


def test_set_and_slct() -> None:
    check("set.lt.u32.s32 {d}, {a}, {b};", ["s32"] * 2, "u32", lambda a, b: -(a < b))
    check("set.ge.f32.u32 {d}, {a}, {b};", ["u32"] * 2, "b32",
          lambda a, b: 0x3F800000 if a >= b else 0)  # fmt: skip
    check("slct.u32.s32 {d}, {a}, {b}, {c};", ["u32", "u32", "s32"], "u32",
          lambda a, b, c: a if c >= 0 else b)  # fmt: skip


def test_moves() -> None:
    check("mov.b32 {d}, {{a}, {b}};", ["u16", "u16"], "u32", lambda a, b: a | b << 16)
    check("mov.b64 {d}, {{a}, {b}};", ["u32", "u32"], "u64", lambda a, b: a | b << 32)
    check("mov.b64 {d}, {{a}, {b}, {a}, 7};", ["u16", "u16"], "u64",
          lambda a, b: a | b << 16 | a << 32 | 7 << 48)  # fmt: skip
    check(
        "{ .reg .b16 h; mov.b32 {_, h}, {a}; mov.b16 {d}, h; }", ["u32"], "b16", lambda a: a >> 16
    )
    check("mov.b64 {_, {d}}, {a};", ["u64"], "u32", lambda a: a >> 32)
    check("{ .reg .b16 p, q, r, s; mov.b64 {p, q, r, s}, {a}; mov.b64 {d}, {s, r, q, p}; }",
          ["u64"], "u64",
          lambda a: sum((a >> 16 * i & 0xFFFF) << 48 - 16 * i for i in range(4)))  # fmt: skip
    lanes = micro.apply("mov.u32 {d}, %laneid;", ["u32"], "u32", np.zeros(100, np.uint32))
    assert (lanes == np.arange(100) % 32).all()


@pytest.mark.parametrize(
    "text",
    [
        "add.cc.u32 {d}, {a}, {b};",
        "mul.u32 {d}, {a}, {b};",
        "mul.wide.u64 {d}, {a}, {b};",
        "shl.s32 {d}, {a}, {b};",
        "setp.lo.s32 {d}, {a}, {b};",
        "setp.lt.b32 {d}, {a}, {b};",
        "prmt.b32.f4e {d}, {a}, {b}, 1;",
        "add.u32 {d}, {a};",
        "clz.b16 {d}, {a};",
        "mov.b32 {d}, {{a}, {b}};",
    ],
)
def test_unknown_forms_are_errors(text: str) -> None:
    a = np.zeros(1, np.uint32)
    with pytest.raises(micro.SyntaxError, match="line"):
        micro.apply(text, ["u32", "u32"], "u32", a, a)
