"""The PTX parser: what nvcc and TileLang write, the corners of the grammar, and its errors."""

from __future__ import annotations

import re
import struct
import time
from typing import Any

import pytest

from tests.ptxsim import SyntaxError as PtxError
from tests.ptxsim import parse

LINES_BEFORE = 6  # of the text in test_errors_name_line_and_text
HEAD = ".version 9.0\n.target sm_90a\n.address_size 64\n"

# In the style of nvcc (first function) and of inline assembly and TileLang (second).
SAMPLE = (
    HEAD
    + """\
.extern .func  (.param .b32 func_retval0) vprintf
(
\t.param .b64 vprintf_param_0,
\t.param .b64 vprintf_param_1
)
;
.extern .shared .align 1024 .b8 buf[];
.global .align 1 .b8 $str[4] = {37, 0x64, 012, 0};
.const .align 4 .f32 scale[2] = {0f3F800000, -0.5};

.visible .entry _Z6kernelPfi(
\t.param .u64 .ptr .global .align 16 _Z6kernelPfi_param_0,
\t.param .align 64 .b8 _Z6kernelPfi_param_1[128]
)
.maxntid 256
.minnctapersm 2
.explicitcluster
.reqnctapercluster 2, 1, 1
{
\t.local .align 8 .b8 \t__local_depot0[16];
\t.reg .b64 \t%SP, %SPL;
\t.reg .pred \t%p<4>;
\t.reg .f32 \t%f<7006>;
\t.reg .b32 \t%r<20>;
\t.reg .b64 \t%rd<15>;
\t// demoted variable
\t.shared .align 4 .f32 _ZZ6kernelE1s[256];
\t.loc 1 12 0
\tmov.u64 \t%SPL, __local_depot0;
\tld.param.u64 \t%rd1, [_Z6kernelPfi_param_1+8];
\tmov.u32 \t%r1, %tid.x;
\tsetp.lt.and.s32 \t%p1|%p2, %r1, -3, !%p3;
\t.loc 1 7 3, function_name $L__info_string0+2, inlined_at 1 13 5
\t@!%p1 bra \t$L__BB0_2;
\tfma.rn.f32 \t%f7005, %f1, 0f3FB8AA3B, %f0;
\tld.global.nc.L1::no_allocate.L2::128B.v4.u32 \t{%r2,%r3,%r4,%r5}, [%rd13+-4];
\tst.shared.f32 \t[_ZZ6kernelE1s+4], %f7005;
\tmov.b32 {%r6, _}, %rd2;
\tshfl.sync.bfly.b32 \t%r7|_, %r6, 1, 31, -1;
$L__BB0_2:
\t{ // callseq 0, 0
\t.param .b64 param0;
\tst.param.b64 \t[param0+0], %rd1;
\t.param .b64 param1;
\tst.param.b64 \t[param1+0], %rd2;
\t.param .b32 retval0;
\tcall.uni (retval0),
\tvprintf,
\t(
\tparam0,
\tparam1
\t);
\tld.param.b32 \t%r8, [retval0+0];
\t} // callseq 0
\tbra.uni \t$L__BB0_4;
\t.pragma "nounroll";
$L__BB0_4: ret;
}
.weak .entry waits()
{
\t.reg .pred %p<2>; .reg .b32 %r<9>; .reg .b64 %rd<4>;
\t{ .reg .pred P1; WAIT: mbarrier.try_wait.parity.shared::cta.b64 P1, [%r1], %r2;
\t@P1 bra DONE; bra WAIT; DONE: }
\t{ .reg .pred P1; WAIT: mbarrier.try_wait.parity.shared::cta.b64 P1, [%r1+8], %r2;
\t@P1 bra DONE; bra WAIT; DONE: }
\telect.sync _|%p1, 0xffffffffU;
\tcp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes .L2::cache_hint
\t  [%r3], [%rd1, {%r4, %r5}], [%r1], %rd2;
\tex2.approx.ftz.f32 %r6, 1.5; /* a comment
over lines */ mov.u32 %r7, buf;
}
\t.file 1 "/src/kernel.cu"
\t.file 2 "/src/a b.cuh", 1700000000, 12
\t.section .debug_str { $L__info_string0: .b8 95,90 { .b32 $L__a-$L__b } }
"""
)


def body(text: str) -> dict[str, Any]:
    """Parse the body of an entry; return the function."""
    return parse(HEAD + ".entry k(.param .u64 a)\n{\n" + text + "\n}\n")["functions"][0]


def operand(text: str) -> dict[str, Any]:
    """Parse the last operand of an instruction that may use a few registers."""
    registers = ".reg .b32 %r<4>; .reg .b64 %rd<4>; .reg .pred %p<4>;"
    return body(f"{registers}\nx.y %r0, {text};")["instructions"][0]["operands"][1]


def flat(item: dict[str, Any], function: dict[str, Any], module: dict[str, Any]) -> list[Any]:
    """Names and numbers of an operand in the order in which they are written."""
    names = [r["name"] for r in function["registers"]]
    variables = [v["name"] for v in module["variables"]]
    if item["kind"] in ("vector", "list"):
        return [name for one in item["items"] for name in flat(one, function, module)]
    found: list[Any] = []
    if item["kind"] == "none":
        found = ["_"]
    elif item["kind"] in ("special", "function", "label"):
        found = [item["name"]]
    if item["reg"] >= 0:
        found = ["!"] * item["negated"] + [names[item["reg"]]]
    if item["variable"] >= 0:
        found = [variables[item["variable"]]]
    if item["pair"] != -1:
        found.append("_" if item["pair"] == -2 else names[item["pair"]])
    if item["kind"] == "immediate" or item["value"] != 0:
        found.append(item["value"])
    return found + [name for one in item["items"] for name in flat(one, function, module)]


def number(text: str) -> int:
    """Bits of a number as PTX writes it."""
    if text[:2] in ("0f", "0d"):
        return int(text[2:], 16)
    if "." in text:
        return int(struct.unpack("<Q", struct.pack("<d", float(text)))[0])
    return int(text.rstrip("U"), 0) % 2**64


def written(text: str) -> list[Any]:
    """Names and numbers of the operands of an instruction's text; offsets of zero are left out."""
    text = text.replace("+0]", "]").replace("+-", " -").replace("+", " ")
    words = re.findall(r"!|-?[\w.%$]+", text)
    return [number(word) if re.match(r"-?\d", word) else word for word in words]


def test_each_instruction_says_what_its_text_says() -> None:
    module = parse(SAMPLE)
    count = 0
    for function in module["functions"]:
        for one in function["instructions"]:
            text = one["text"]
            if text == "}":
                continue  # the return at the end of a body
            guard = re.match(r"@(!?)(\S+) ", text)
            assert (one["guard"] >= 0) == (guard is not None)
            if guard is not None:
                assert function["registers"][one["guard"]]["name"] == guard[2]
                assert one["guard_negated"] == (guard[1] == "!")
                text = text[guard.end() :]
            opcode, _, rest = text[:-1].replace(" .", ".").partition(" ")
            assert ".".join([one["opcode"], *one["modifiers"]]) == opcode
            found = [x for item in one["operands"] for x in flat(item, function, module)]
            assert found == written(rest), one["text"]
            count += 1
    assert count == 26


def test_module() -> None:
    module = parse(SAMPLE)
    assert (module["version"], module["target"]) == ("9.0", "sm_90a")
    assert module["files"] == {1: "/src/kernel.cu", 2: "/src/a b.cuh"}
    named = {v["name"]: v for v in module["variables"]}
    assert named["buf"] == {
        "name": "buf",
        "space": "shared",
        "align": 1024,
        "bytes": 0,
        "external": True,
        "init": b"",
    }
    assert named["$str"]["init"] == bytes([37, 0x64, 0o12, 0])
    assert named["scale"]["init"] == struct.pack("<2f", 1.0, -0.5)
    assert named["scale"]["space"] == "const"
    assert [named["__local_depot0"][key] for key in ("space", "align", "bytes")] == ["local", 8, 16]
    assert named["_ZZ6kernelE1s"]["bytes"] == 1024
    assert (named["param0"]["space"], named["param0"]["bytes"]) == ("param", 8)


def test_functions() -> None:
    module = parse(SAMPLE)
    vprintf, kernel, waits = module["functions"]
    assert (vprintf["is_declaration"], vprintf["is_entry"], len(vprintf["params"])) == (
        True,
        False,
        2,
    )
    assert (kernel["is_declaration"], kernel["is_entry"], kernel["name"]) == (
        False,
        True,
        "_Z6kernelPfi",
    )
    assert kernel["maxntid"] == [256, 1, 1]
    assert kernel["reqcluster"] == [2, 1, 1]
    assert waits["maxntid"] == [0, 0, 0]
    pointer, blob = (module["variables"][i] for i in kernel["params"])
    # The alignment of a pointer's target is not that of the pointer.
    assert (pointer["align"], pointer["bytes"], pointer["space"]) == (8, 8, "param")
    assert (blob["align"], blob["bytes"]) == (64, 128)


def test_register_ranges_are_in_order() -> None:
    registers = body(".reg .f32 %f<7006>, x; .reg .f16x2 h; .reg .pred p;")["registers"]
    assert [r["name"] for r in registers] == [*(f"%f{i}" for i in range(7006)), "x", "h", "p"]
    assert [(r["kind"], r["bits"]) for r in registers[-3:]] == [("f", 32), ("h", 32), ("p", 1)]


def test_lines_are_those_of_the_text_and_of_the_source() -> None:
    kernel = parse(SAMPLE)["functions"][1]
    lines = SAMPLE.split("\n")
    for one in kernel["instructions"]:
        assert one["opcode"] in lines[one["line"] - 1]
    assert [one["source_line"] for one in kernel["instructions"][:5]] == [12, 12, 12, 12, 7]
    assert kernel["instructions"][0]["source_file"] == 1
    call = next(one for one in kernel["instructions"] if one["opcode"] == "call")
    assert call["text"] == "call.uni (retval0), vprintf, ( param0, param1 );"
    assert [item["kind"] for item in call["operands"]] == ["list", "function", "list"]
    assert parse(SAMPLE)["functions"][2]["instructions"][0]["source_file"] == -1


def test_scopes() -> None:
    waits = parse(SAMPLE)["functions"][2]
    code = waits["instructions"]
    assert [one["operands"][0]["target"] for one in code if one["opcode"] == "bra"] == [3, 0, 6, 3]
    first, second = code[0]["operands"][0]["reg"], code[3]["operands"][0]["reg"]
    assert first != second
    assert waits["registers"][first]["name"] == waits["registers"][second]["name"] == "P1"


def test_an_inner_label_or_register_hides_the_outer_one() -> None:
    function = body(
        """.reg .b32 r; L: add.s32 r, r, 1;
        { .reg .b64 r; bra L; add.s64 r, r, 1; L: bra M; }
        bra L; add.s32 r, r, 1; M: ret;"""
    )
    code = function["instructions"]
    assert [one["operands"][0]["target"] for one in code if one["opcode"] == "bra"] == [3, 6, 0]
    assert [one["operands"][0]["reg"] for one in code if one["opcode"] == "add"] == [0, 1, 0]


@pytest.mark.parametrize(
    ("text", "last", "count"),
    [
        ("ret;", "ret;", 1),
        ("@p ret;", "}", 2),
        ("mov.b32 r, 1;", "}", 2),
        ("@p bra E; ret; E:", "}", 3),
        ("L: bra L;", "bra L;", 1),
    ],
)
def test_control_never_leaves_the_end_of_a_body(text: str, last: str, count: int) -> None:
    code = body(".reg .pred p; .reg .b32 r;" + text)["instructions"]
    assert (code[-1]["text"], len(code)) == (last, count)
    assert code[-1]["opcode"] in ("ret", "bra")


@pytest.mark.parametrize(
    ("text", "value", "float_bits"),
    [
        ("0f3F800000", 0x3F800000, 32),
        ("0FBf800000", 0xBF800000, 32),
        ("-0f3F800000", 0xBF800000, 32),
        ("0d3FF0000000000000", 0x3FF0000000000000, 64),
        ("1.0", 0x3FF0000000000000, 64),
        ("-2.5e-1", 0xBFD0000000000000, 64),
        ("1e2", 0x4059000000000000, 64),
        ("7", 7, 0),
        ("-1", 2**64 - 1, 0),
        ("-9223372036854775808", 2**63, 0),
        ("0xffffffff", 0xFFFFFFFF, 0),
        ("0XFFFFFFFFFFFFFFFF", 2**64 - 1, 0),
        ("0x1FU", 0x1F, 0),
        ("017", 15, 0),
        ("0", 0, 0),
        ("0b101", 5, 0),
        ("3U", 3, 0),
        ("WARP_SZ", 32, 0),
        ("WARP_SZ*4 - 1", 127, 0),
        ("2+3*4", 14, 0),
        ("(2+3)*4", 20, 0),
        ("8-4-2", 2, 0),
        ("-7/2", 2**64 - 3, 0),
        ("-7%2", 2**64 - 1, 0),
        ("-8>>1", 2**64 - 4, 0),
        ("0xFFFFFFFFFFFFFFF8>>1", 0x7FFFFFFFFFFFFFFC, 0),
        ("1<<4|1", 17, 0),
        ("~0&0xF0^0x30", 0xC0, 0),
        ("!5", 0, 0),
        ("-1 < 1", 1, 0),
        ("-1 < 1U", 0, 0),
        ("(.u64)-1 > 1", 1, 0),
        ("1 == 1 && 0 != 0 || 0", 0, 0),
        ("3 <= 2 ? 5 : 6", 6, 0),
    ],
)
def test_constants(text: str, value: int, float_bits: int) -> None:
    found = operand(text)
    assert (found["kind"], found["value"], found["float_bits"]) == ("immediate", value, float_bits)
    assert found["is_float"] == (float_bits > 0)


def test_other_operands() -> None:
    assert operand("_")["kind"] == "none"
    assert (operand("%clusterid.x")["kind"], operand("%clusterid.x")["name"]) == (
        "special",
        "%clusterid.x",
    )
    assert operand("%envreg3")["name"] == "%envreg3"
    assert (operand("%p1|%p2")["reg"], operand("%p1|%p2")["pair"]) == (9, 10)
    assert operand("%r1|_")["pair"] == -2
    assert (operand("_|%p3")["kind"], operand("_|%p3")["pair"]) == ("none", 11)
    assert (operand("!%p2")["negated"], operand("!%p2")["reg"]) == (True, 10)
    assert [x["kind"] for x in operand("{%r1, _, 3, %laneid}")["items"]] == [
        "register",
        "none",
        "immediate",
        "special",
    ]
    assert (operand("a")["kind"], operand("a")["variable"]) == ("variable", 0)
    assert operand("a + 4")["value"] == 4


@pytest.mark.parametrize(
    ("text", "reg", "variable", "value"),
    [
        ("[%rd1]", 5, -1, 0),
        ("[ %rd1 + -4 ]", 5, -1, 2**64 - 4),
        ("[%rd1-4+1]", 5, -1, 2**64 - 3),
        ("[%rd1+2*8]", 5, -1, 16),
        ("[a+0x10]", -1, 0, 16),
        ("[64]", -1, -1, 64),
    ],
)
def test_addresses(text: str, reg: int, variable: int, value: int) -> None:
    found = operand(text)
    assert found["kind"] == "address"
    assert (found["reg"], found["variable"], found["value"]) == (reg, variable, value)
    assert found["items"] == []


def test_tensor_coordinates() -> None:
    found = operand("[%rd1, {%r1, %r2, 0}]")
    assert [item["reg"] for item in found["items"]] == [1, 2, -1]


def test_modifiers_keep_colons_and_digits() -> None:
    text = "mma.sync.m16n8k64.kind::mxf4nvf4.scale_vec::4X.L2::128B.2d;"
    assert body(text)["instructions"][0]["modifiers"] == [
        "sync",
        "m16n8k64",
        "kind::mxf4nvf4",
        "scale_vec::4X",
        "L2::128B",
        "2d",
    ]


def test_variables() -> None:
    declared = """\
.global .align 16 .b8 padded[8] = {1, 2};
.global .v4 .f32 quad;
.shared .u16 one, two[3];
.const .b8 counted[] = {1, 2, 3};
.global .f64 wide[2] = {0f3F800000, 2};
.global .s32 table[2][3] = {-1, 1, WARP_SZ};
.global .b32 float_bits = 0f3F800000;
"""
    found = {v["name"]: v for v in parse(HEAD + declared)["variables"]}
    assert found["padded"]["init"] == bytes([1, 2, 0, 0, 0, 0, 0, 0])
    assert (found["quad"]["align"], found["quad"]["bytes"]) == (16, 16)
    assert (found["one"]["bytes"], found["two"]["bytes"], found["two"]["align"]) == (2, 6, 2)
    assert (found["counted"]["bytes"], found["counted"]["init"]) == (3, bytes([1, 2, 3]))
    assert found["wide"]["init"] == struct.pack("<2d", 1.0, 2.0)
    assert found["table"]["init"] == struct.pack("<6i", -1, 1, 32, 0, 0, 0)
    assert found["float_bits"]["init"] == struct.pack("<f", 1.0)


def test_a_definition_takes_the_place_of_its_declaration() -> None:
    module = parse(
        HEAD
        + """.extern .global .b32 x;
        .func f(.param .b32 n);
        .entry k() { ld.global.b32 %q, [x]; call f, (x); }
        .visible .global .b32 x = 5;
        .func f(.param .b32 n) { ret; }
        .func f(.param .b32 n);"""
    )
    assert next((v["name"], v["init"]) for v in module["variables"]) == ("x", b"\5\0\0\0")
    assert [(f["name"], f["is_declaration"]) for f in module["functions"]] == [
        ("f", False),
        ("k", False),
    ]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("mov.b32 %r1 %r2;", 1, "expected ',' or ';', got '%r2'"),
        ("bra NOWHERE;", 1, "'NOWHERE' is not declared in 'bra NOWHERE;'"),
        ("{ IN: }\nbra IN;", 2, "'IN' is not declared in 'bra IN;'"),
        ("ld.b32 %r1, [nothing];", 1, "'nothing' is not declared"),
        ("mov.b32 {%r1, nothing}, 1;", 1, "'nothing' is not declared"),
        ("@%q bra L; L:", 1, "'%q' is not a register"),
        ("{ .reg .b32 in; }\nmov.b32 [in], 1;", 2, "'in' is not declared"),
        ("call f, (a);", 1, "'f' is called but not declared"),
        ("L: ret;\nL: ret;", 2, "'L' is declared twice in one scope"),
        (".reg .b32 x;\n.reg .b64 x;", 2, "'x' is declared twice in one scope"),
        ("T: .branchtargets A, B;", 1, "'.branchtargets' is not supported"),
        ("T: .callprototype (.param .b32 _) _ ();", 1, "'.callprototype' is not supported"),
        ("\n\n.dance;", 3, "expected an instruction, got '.dance'"),
        (".reg .z32 x;", 1, "'.z32' is not a type"),
        (".reg .b24 x;", 1, "'.b24' is not a type"),
        (".shared .align 3 .b8 x;", 1, "the alignment '3' is not a power of two"),
        (".shared .pred x;", 1, "a variable cannot have the type '.pred'"),
        (".global .b8 x[2] = {1, 2, 3};", 1, "'x' has more initial values than elements"),
        (".global .b64 x = generic(a);", 1, "'generic' in initialisers are not supported"),
        (".global .b64 x[1] = {a};", 1, "'a' in initialisers are not supported"),
        (".reg .b32 %y<99999999>;", 1, "'%y' is a range of too many registers"),
        ("mov.b32 %r1, 0f3F80;", 1, "'0f3F80' must have 8 hexadecimal digits"),
        ("mov.b32 %r1, 12ab;", 1, "'12ab' is not a number"),
        ("mov.b32 %r1, 089;", 1, "'089' is not a number"),
        ("mov.b32 %r1, 0x10000000000000000;", 1, "'0x10000000000000000' is not a number that fits"),
        ("mov.b32 %r1, 1/0;", 1, "the result of '/' in a constant does not exist"),
        ("mov.b32 %r1, 1.0+1;", 1, "'+' of floating-point constants is not supported"),
        ("mov.b32 %r1, ;", 1, "expected an operand, got ';'"),
        ("mov.b32 %r1, `;", 1, "got the character '`'"),
        ('.pragma "nounroll;', 1, 'the string "nounroll; has no end'),
        ("/* no end", 1, "the comment '/*' has no end"),
        ("mov.b32 %r1,", 2, "expected a constant, got '}'"),
    ],
)
def test_errors_name_line_and_text(text: str, line: int, message: str) -> None:
    with pytest.raises(PtxError, match=rf"^PTX line {LINES_BEFORE + line}: .*{re.escape(message)}"):
        body(".reg .b32 %r<4>;\n" + text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (".address_size 32", "addresses of '32' bits are not supported"),
        (".entry k() {", "expected an instruction, got the end of the text"),
        (".entry k() { ret; } .entry k() { ret; }", "'k' has two bodies"),
        (".entry k(.reg .b32 x) { ret; }", "expected '.param', got '.reg'"),
        (".global .b32 k; .entry k() { ret; }", "'k' is declared twice in one scope"),
        (".alias a, b;", "expected a directive of a module, got '.alias'"),
        ("hello", "expected a directive of a module, got 'hello'"),
        (".section .debug { {", "expected '}', got the end of the text"),
    ],
)
def test_errors_of_a_module(text: str, message: str) -> None:
    with pytest.raises(PtxError, match=rf"^PTX line 1: {re.escape(message)}"):
        parse(text)


def test_time_grows_as_the_text_does() -> None:
    def seconds(lines: int) -> float:
        code = "".join(f"add.s32 %r{i % 7000}, %r{i % 6999}, {i};\n" for i in range(lines))
        text = HEAD + ".entry k()\n{\n.reg .b32 %r<7006>;\n" + code + "ret;\n}\n"
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            assert len(parse(text)["functions"][0]["instructions"]) == lines + 1
            best = min(best, time.process_time() - start)
        return best

    # Quadratic time would be 16 times the linear one.
    assert seconds(32000) < 16 * 4 * seconds(2000)
