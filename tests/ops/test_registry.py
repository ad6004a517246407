"""The checklist of CONTRIBUTING.md: what an op must have before it is one of vidk's."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path

import pytest
import torch

import vidk
from vidk import reference
from vidk.ops.registry import OPS

from . import test_hypothesis
from .error_rows import ROWS
from .samples import block, overload

ROOT = Path(__file__).parents[2]
FAMILIES = sorted({op.family for op in OPS.values()})
every_op = pytest.mark.parametrize("name", OPS)


def has_kernel(name: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"vidk::{name}", key)


def argument_names(name: str) -> list[str]:
    return [a.name for a in overload(name)._schema.arguments]


@every_op
def test_key_is_the_name(name: str) -> None:
    assert OPS[name].name == name


@every_op
def test_schema(name: str) -> None:
    assert hasattr(torch.ops.vidk, name), f"{name}: no schema is defined in vidk/ops"
    registered = overload(name)._schema
    written = torch._C.parse_schema(f"vidk::{OPS[name].schema}")
    assert str(registered) == str(written), f"{name}: the registry holds another schema"


@every_op
def test_schema_tells_what_is_mutated(name: str) -> None:
    mutated = tuple(a.name for a in overload(name)._schema.arguments if a.is_write)
    assert mutated == OPS[name].mutates, f"{name}: `mutates` and the schema differ"
    assert all(r.alias_info is None for r in overload(name)._schema.returns), (
        f"{name}: an output that aliases an argument cannot be functionalized"
    )


@every_op
def test_tags(name: str) -> None:
    tags = overload(name).tags
    for tag in (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides):
        assert tag in tags, f"{name}: the tag {tag} is missing; define it with vidk.ops._library"


@every_op
def test_fake(name: str) -> None:
    fake = torch._library.simple_registry.singleton.find(f"vidk::{name}").fake_impl
    assert fake.kernel is not None, f"{name}: no fake kernel is registered in vidk/ops"


@every_op
def test_cpu_kernel(name: str) -> None:
    assert vidk.build_info()["objects"]["_C"] == "loaded", vidk.build_info()["objects"]["_C"]
    assert has_kernel(name, "CPU"), f"{name}: no CPU kernel is registered"
    # A kernel that only explains why there is none is registered from Python.
    library = (ROOT / "csrc" / OPS[name].family).glob("*_cpu.cpp")
    registered = [p for p in library if f'm.impl("{name}"' in p.read_text()]
    assert registered, f"{name}: csrc/{OPS[name].family}/*_cpu.cpp registers no kernel of its name"


@every_op
def test_cuda_kernel(name: str) -> None:
    """By text: a CPU build of torch cannot load the object that registers it."""
    library = (ROOT / "csrc" / OPS[name].family).glob("*_cuda.cpp")
    registered = [p for p in library if f'm.impl("{name}"' in p.read_text()]
    assert registered, f"{name}: csrc/{OPS[name].family}/*_cuda.cpp registers no kernel of its name"
    simulated = (ROOT / "tests/ptxsim/ops.py").read_text()
    assert f"\ndef {name}(" in simulated, f"{name}: tests/ptxsim/ops.py does not execute it"


@every_op
def test_no_kernel_hides_the_devices(name: str) -> None:
    for key in ("CompositeImplicitAutograd", "CompositeExplicitAutograd"):
        assert not has_kernel(name, key), f"{name}: a {key} kernel would run on any device"


@every_op
def test_public_function(name: str) -> None:
    op = OPS[name]
    assert getattr(vidk, name) is op.function and name in vidk.__all__, (
        f"{name}: the public function is not exported by vidk"
    )
    parameters = [p for p in inspect.signature(op.function).parameters if p != "return_lse"]
    assert parameters == argument_names(name), f"{name}: function and schema differ"
    doc = inspect.getdoc(op.function) or ""
    for section in ("Parameters", "Raises", "Source:"):
        assert section in doc, f"{name}: the docstring lacks {section}"
    for argument in argument_names(name):
        assert re.search(rf"^.*\b{argument}\b.* : ", doc, re.M), f"{name}: {argument} has no docs"


@every_op
def test_reference(name: str) -> None:
    op = OPS[name]
    assert getattr(reference, name, None) is op.reference, f"{name}: not in vidk.reference"
    parameters = list(inspect.signature(op.reference).parameters)
    assert parameters == argument_names(name), f"{name}: reference and schema differ"


@every_op
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sample_runs(dtype: torch.dtype, name: str) -> None:
    op = OPS[name]
    args, kwargs = op.sample(block(), dtype, "cpu", torch.Generator().manual_seed(0))
    again, _ = op.sample(block(), dtype, "cpu", torch.Generator().manual_seed(0))
    for x, y in zip(args, again, strict=True):
        same = torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        assert same, f"{name}: the sample does not follow its generator"
    op.function(*args, **kwargs)
    op.reference(*again, **kwargs)


@every_op
def test_cost(name: str) -> None:
    op = OPS[name]
    one, two = (op.cost(block(frames), torch.bfloat16) for frames in (1, 2))
    wide = op.cost(block(1), torch.float32)
    assert one.read > 0 and one.written > 0 and one.flops >= 0
    assert one.bytes == one.read + one.written
    assert two.written == 2 * one.written, f"{name}: the floor does not grow with the block"
    assert wide.bytes > one.bytes, f"{name}: the floor does not grow with the dtype"
    assert wide.flops == one.flops, f"{name}: the work depends on the dtype"
    assert op.floor, f"{name}: the floor is not said in words"


@every_op
def test_docs(name: str) -> None:
    path = ROOT / "docs" / "ops.md"
    assert path.exists(), "docs/ops.md is missing"
    heading = re.compile(rf"^#+ .*\b{name}\b", re.M)
    assert heading.search(path.read_text()), f"{name}: docs/ops.md has no section with its name"


def test_docs_are_current() -> None:
    spec = importlib.util.spec_from_file_location("generate_ops", ROOT / "docs/generate_ops.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    stale = "docs/ops.md is stale: run python docs/generate_ops.py"
    assert (ROOT / "docs" / "ops.md").read_text() == generate.page(), stale


@every_op
def test_tests(name: str) -> None:
    tested = "".join(p.read_text() for p in Path(__file__).parent.glob("test_*.py"))
    assert f"torch.ops.vidk.{name}\n" in tested, f"{name}: no test binds torch.ops.vidk.{name}"
    assert hasattr(test_hypothesis, f"test_{name}"), f"{name}: no property in test_hypothesis.py"
    assert any(row.op == name for row in ROWS), f"{name}: no row in error_rows.py"


@pytest.mark.parametrize("family", FAMILIES)
def test_family_has_its_files(family: str) -> None:
    names = [name for name, op in OPS.items() if op.family == family]
    for path in (
        f"python/vidk/ops/{family}.py",
        f"python/vidk/reference/{family}.py",
        f"csrc/{family}/{family}_cpu.cpp",
        f"csrc/{family}/{family}_cuda.cpp",
        f"csrc/{family}/{family}_plan.cpp",
        f"tests/ops/test_{family}.py",
        f"tests/ptxsim/test_{family}.py",
        f"docs/{family}.md",
    ):
        assert (ROOT / path).is_file(), f"{names}: {path} is missing"


def test_every_defined_op_is_in_the_table() -> None:
    defined = {
        name.removeprefix("vidk::").split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("vidk::")
    }
    assert defined == set(OPS), f"not in vidk.ops.registry.OPS: {sorted(defined - set(OPS))}"


@pytest.mark.parametrize(
    ("folder", "ignored"),
    [
        ("csrc", {"common"}),
        ("python/vidk/ops", {"registry", "fp4_quantize"}),
        ("python/vidk/reference", {"fp4"}),
    ],
    ids=str,
)
def test_every_family_folder_or_file_is_in_the_table(folder: str, ignored: set[str]) -> None:
    paths = (ROOT / folder).iterdir()
    names = {p.stem for p in paths if p.is_dir() == (folder == "csrc")}
    names = {n for n in names if not n.startswith("_")} - ignored
    unknown = sorted(names - set(FAMILIES))
    assert not unknown, f"{folder}: {unknown} belong to no op of vidk.ops.registry.OPS"
