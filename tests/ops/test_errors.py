"""Every check raises its one sentence, from the kernel and from the fake, and writes nothing."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from vidk.ops import _check
from vidk.ops.registry import OPS

from .error_checks import Arguments, Row, valid
from .error_rows import ROWS
from .helpers import assert_same_memory, twins

ROOT = Path(__file__).parents[2]


def row_id(row: Row) -> str:
    return f"{row.op}-{row.arg}-got {row.got}"


def call(op: str, args: Arguments) -> Any:
    return getattr(torch.ops.vidk, op)(**args)


def faked(args: Arguments, device: str) -> tuple[FakeTensorMode, Arguments]:
    """Return the arguments as fakes on a device; what was on "meta" becomes the odd one out."""
    mode = FakeTensorMode()
    homes = {"cpu": device, "meta": "cpu" if device == "cuda" else "cuda"}
    with mode:
        return mode, {
            name: torch.empty_strided(
                x.shape, x.stride(), dtype=x.dtype, device=homes[x.device.type]
            )
            if isinstance(x, Tensor)
            else x
            for name, x in args.items()
        }


def raised(op: str, args: Arguments) -> str:
    with pytest.raises(RuntimeError) as info:
        call(op, args)
    return str(info.value)


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_kernel(row: Row) -> None:
    args = row.broken()
    tensors = [x for x in args.values() if isinstance(x, Tensor) and x.device.type == "cpu"]
    before = twins(*tensors)
    assert raised(row.op, args) == row.sentence()
    assert_same_memory(tensors, before, "something was written")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_fake(row: Row, device: str) -> None:
    mode, args = faked(row.broken(), device)
    with mode:
        if row.kind == "data":
            call(row.op, args)  # a fake sees no values and no addresses
            return
        cuda, cpu = "cuda:0", "cpu"
        home, odd = (cuda, cpu) if device == "cuda" else (cpu, cuda)
        assert raised(row.op, args) == row.sentence(home, odd)


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_sentence_has_all_its_parts(row: Row) -> None:
    pattern = rf"vidk::{row.op}: {row.arg}: got [^,].*, expected .+"
    assert re.fullmatch(pattern, row.sentence())
    assert row.arg in valid(row.op) or row.arg in str(
        getattr(torch.ops.vidk, row.op).default._schema
    )


@pytest.mark.parametrize("op", OPS)
def test_valid_sample_is_valid(op: str) -> None:
    """Each row breaks this call, so it must hold unbroken."""
    call(op, valid(op))


def test_compiled_graph_raises_the_same_sentence() -> None:
    row = next(r for r in ROWS if r.op == "attention" and r.arg == "k_cache")
    args = row.broken()
    compiled = torch.compile(lambda **kw: torch.ops.vidk.attention(**kw), fullgraph=True)
    with pytest.raises(Exception, match=re.escape(row.sentence())):
        compiled(**args)


# --- nothing is missing from the table -----------------------------------------------------------

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
    headers_of_cuda = {"cuda.h", "error.h"}  # device errors; the definition of `fail` itself
    sentences = [row.sentence() for row in ROWS]
    found = 0
    for path in sources:
        if path.name in headers_of_cuda:
            continue
        for arguments in fail_calls(path.read_text()):
            words = [w for w in re.findall(r'"((?:[^"\\]|\\.)*)"', arguments) if w != ": "]
            pattern = re.compile(".*".join(map(re.escape, words)))
            found += 1
            covered = any(pattern.search(sentence) for sentence in sentences)
            assert covered, f"no row for {path.relative_to(ROOT)}: fail({arguments})"
    assert found > 30
