"""No check is without its row in the table of errors."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vidk.ops import _check
from vidk.ops.registry import OPS

from . import test_fp4_quantize
from .error_checks import valid
from .error_rows import ROWS
from .test_errors import call, faked
from .test_overlap import CASES as OVERLAPS

ROOT = Path(__file__).parents[2]
Site = tuple[str, int]


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[tuple[str, str, Site, bool]]]:
    """Record (op, argument, place in the source, whether it held) of every check that runs."""
    seen: set[tuple[str, str, Site, bool]] = set()
    original = _check.check

    def check(cond: bool, op: str, arg: str, *words: str) -> None:
        frame = sys._getframe(1)
        site = (Path(frame.f_code.co_filename).name, frame.f_lineno)
        seen.add((op, arg, site, bool(cond)))
        original(cond, op, arg, *words)

    with monkeypatch.context() as patch:
        patch.setattr(_check, "check", check)
        yield seen


def failed_in_table(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str, Site]]:
    with recorded(monkeypatch) as seen:
        for row in ROWS:
            if row.kind != "data":
                mode, args = faked(row.broken(), "cuda")
                with mode, pytest.raises(RuntimeError):
                    call(row.op, args)
    return {(op, arg, site) for op, arg, site, held in seen if not held}


def test_every_check_of_every_argument_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = failed_in_table(monkeypatch)
    with recorded(monkeypatch) as seen:
        for op in OPS:
            mode, args = faked(valid(op), "cuda")
            with mode:
                call(op, args)
    passed = {(op, arg, site) for op, arg, site, _ in seen}
    assert len(passed) > 100
    assert not passed - failed, f"checks without a row: {sorted(passed - failed)}"


def check_calls(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name == "check":
                yield node


def test_every_check_in_python_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those too that no valid sample reaches, such as the check of an optional argument."""
    sites = {site for _, _, site in failed_in_table(monkeypatch)}
    with recorded(monkeypatch) as seen:
        for change, _ in test_fp4_quantize.ERRORS:
            with pytest.raises(RuntimeError):
                test_fp4_quantize.call_wrongly(change)
    sites |= {site for _, _, site, held in seen if not held}
    calls = [
        (p, c) for p in sorted(Path(_check.__file__).parent.glob("*.py")) for c in check_calls(p)
    ]
    assert len(calls) > 20
    for path, node in calls:
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        reached = any((path.name, line) in sites for line in lines)
        assert reached, f"no row for the check at {path.name}:{node.lineno}: {ast.unparse(node)}"


def test_python_checks_only_through_check() -> None:
    """Otherwise the two tests above would not see it."""
    for path in Path(_check.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text())
        raises = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Raise | ast.Assert)]
        assert not raises, f"{path.name}: line {raises}"
        direct = path.read_text().count("torch._check")
        assert direct == (path.name == "_check.py"), path.name


def fail_calls(text: str) -> Iterator[str]:
    """Yield the arguments of each call of `fail(...)` in C++ source."""
    for match in re.finditer(r"(?<![\w:])fail\(", text):
        depth, end, in_string = 1, match.end(), False
        while depth:
            char = text[end]
            if char == '"' and text[end - 1] != "\\":
                in_string = not in_string
            elif not in_string:
                depth += (char == "(") - (char == ")")
            end += 1
        yield text[match.end() : end - 1]


def test_every_failure_in_cpp_has_a_row() -> None:
    """The fixed words of each `fail(...)` of the CPU kernels stand in some row, in their order."""
    sources = [p for p in sorted((ROOT / "csrc").rglob("*.*")) if p.suffix in (".h", ".cpp")]
    # Device errors, and the definition of `fail` itself; plans fail in tests/ptxsim.
    elsewhere = {"cuda.h", "error.h", "launch_cuda.cpp"}
    sentences = [row.sentence() for row in ROWS]
    found = 0
    for path in sources:
        if path.name in elsewhere or path.stem.endswith(("_plan", "_cuda")):
            continue
        for arguments in fail_calls(path.read_text()):
            words = [w for w in re.findall(r'"((?:[^"\\]|\\.)*)"', arguments) if w != ": "]
            pattern = re.compile(".*".join(map(re.escape, words)))
            found += 1
            covered = any(pattern.search(sentence) for sentence in sentences)
            assert covered, f"no row for {path.relative_to(ROOT)}: fail({arguments})"
    assert found > 30


def test_every_failure_of_a_plan_is_tested() -> None:
    """By its words: tests/ptxsim calls the plans of CUDA launches without a GPU."""
    tests = "".join(p.read_text() for p in (ROOT / "tests" / "ptxsim").glob("test_*.py"))
    calls = [c for p in (ROOT / "csrc").glob("*/*_plan.cpp") for c in fail_calls(p.read_text())]
    assert len(calls) >= 4
    for arguments in calls:
        words = [w for w in re.findall(r'"((?:[^"\\]|\\.)*)"', arguments) if len(w) > 3]
        assert all(w in tests for w in words[:3]), f"no test of fail({arguments})"


# Checks that only a kernel can make: name -> the arguments they are about, if they are not given,
# and the words of their rows. `{0}` is the last argument that the call names.
KERNEL_CHECKS: dict[str, tuple[str | None, list[str]]] = {
    "distinct_elements": (None, ["a view whose elements share memory"]),
    "disjoint": (None, ["memory that overlaps {0}"]),
    "slots": ("frame_slot", ["a slot whose", "distinct slots"]),
    "positions": ("frame_pos", ["a row of time_freqs"]),
    "length": (None, ["a length from 0 to the"]),
    "grid_size": ("height", ["whose token indices fit"]),
    "memory": (None, []),  # of all pairs: see below
    "channels": ("perm", ["a channel from 0 to"]),
}


def kernel_checks(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (op, check, arguments it names) for every call of a kernel's own check."""
    names = "|".join(KERNEL_CHECKS)
    pattern = rf'(?<!void )check_({names})\(\s*(?:"(\w+)"|op)\s*,([^;]*);'
    for match in re.finditer(pattern, text):
        op = match[2] or re.findall(r'op = "(\w+)"', text[: match.start()])[-1]
        yield op, match[1], re.findall(r'"(\w+)"', match[3])


def test_every_kernel_check_of_every_op_has_a_row() -> None:
    found = []
    for path in sorted((ROOT / "csrc").glob("*/*")):
        if path.parent.name != "common" and path.suffix in (".h", ".cpp"):
            found += list(kernel_checks(path.read_text()))
    assert len(found) > 20
    for op, check, named in found:
        if check == "disjoint" and (op, *reversed(named)) in OVERLAPS:
            continue
        if check == "memory":
            written = OPS[op].mutates
            for i, arg in enumerate(written):
                for other in {*named} - {*written[i:]}:
                    start = f"vidk::{op}: {arg}: got memory that overlaps {other},"
                    assert any(r.sentence().startswith(start) for r in ROWS), start
            continue
        arg, phrases = KERNEL_CHECKS[check]
        for phrase in phrases:
            start = f"vidk::{op}: {arg or named[0]}: got "
            words = phrase.format(named[-1] if named else "")
            rows = [r for r in ROWS if r.sentence().startswith(start) and words in r.sentence()]
            assert rows, f"no row for check_{check} of {op}: {named}"


def test_kernel_checks_are_known() -> None:
    """A check of C++ mirrors one of Python, or it is in the table above."""
    sources = [p for p in (ROOT / "csrc").rglob("*.h") if p.name != "cuda.h"]
    text = "".join(p.read_text() for p in sources)
    names = set(re.findall(r"void check_(\w+)\(", text))
    mirrored = {n for n in vars(_check) if not n.startswith("__")} | set(OPS)
    mirrored |= {"length_vector", "peers"}  # by a function of their family
    assert names - mirrored == set(KERNEL_CHECKS)
