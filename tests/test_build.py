"""The package as built: what it says of itself, how it finds torch, how it fails."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import vidk

ROOT = Path(__file__).parents[1]
PACKAGE = Path(vidk.__file__).parent
ISAS = ("generic", "avx2", "avx512")


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


# --- build_info and metadata ----------------------------------------------------------------------


def test_build_info_names_versions_and_objects() -> None:
    info = vidk.build_info()
    assert info["version"] == vidk.__version__ == importlib.metadata.version("vidk")
    assert info["torch"] == torch.__version__
    assert info["torch_cuda"] == torch.version.cuda
    assert info["torch_target"] == "2.11"
    assert re.fullmatch(r"\w+ \d+\.\d+.*", info["compiler"])
    assert info["cpu_isas"][0] == "generic"
    assert info["cpu_isa"] in info["cpu_isas"]
    assert info["objects"]["_C"] == "loaded"
    assert info["git_rev"] is None or re.fullmatch(r"[\w.-]+\+?", info["git_rev"])


def test_the_cuda_object_is_loaded_or_has_a_reason() -> None:
    info = vidk.build_info()
    assert (PACKAGE / "_cuda.so").exists() == bool(info["cuda_archs"])
    assert bool(info["cuda_toolkit"]) == bool(info["cuda_archs"])
    status = info["objects"]["_cuda"]
    if torch.version.cuda is None:
        assert status == "this PyTorch has no CUDA"
    elif info["cuda_archs"]:
        assert status == "loaded"
    else:
        assert "built" in status


def test_wheel_metadata() -> None:
    dist = importlib.metadata.distribution("vidk")
    wheel = dist.read_text("WHEEL") or ""
    assert re.search(r"^Tag: .*cp310-abi3-", wheel, re.MULTILINE)
    assert dist.metadata["Requires-Python"] == ">=3.10"
    assert "torch>=2.11" in (dist.requires or [])
    scripts = {e.name: e.value for e in dist.entry_points if e.group == "console_scripts"}
    assert scripts == {"vidk": "vidk.cli:main"}
    assert (PACKAGE / "py.typed").exists()


# --- choice of the instruction set ----------------------------------------------------------------

BITS = """
import hashlib, torch, vidk
g = torch.Generator().manual_seed(0)
digest = hashlib.sha256()
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    q, k, v = torch.randn(3, 1, 70, 3, 44, generator=g).to(dtype)
    q[0, 3, 0, 5] = float("nan")
    weight = torch.randn(2, 3 * 44, generator=g).to(dtype)
    time, space = torch.randn(9, 8, 2, generator=g), torch.randn(9, 7, 2, generator=g)
    index = torch.tensor([4, 2], dtype=torch.int32)
    caches = torch.zeros(2, 1, 180, 3, 44, dtype=dtype)
    out = [vidk.rope_3d(q, index, time, space, 6, 6)]
    out += [vidk.qk_norm_rope_kv_write(q, k, v, *weight, 1e-6, index, index, time, space, 6, 6,
                                       *caches), caches]
    for x in out:
        digest.update(x.contiguous().view(torch.uint8).numpy().tobytes())
print(vidk.build_info()["cpu_isa"], digest.hexdigest())
"""


def cpu_has(isa: str) -> bool:
    if isa == "generic":
        return True
    flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
    needed = {"avx2": {"avx2", "fma", "bmi2"}, "avx512": {"avx512f", "avx512bw", "avx512vl"}}
    return needed[isa] <= flags


def test_all_instruction_sets_give_the_same_bits() -> None:
    here = [isa for isa in vidk.build_info()["cpu_isas"] if cpu_has(isa)]
    digests = set()
    for isa in here:
        result = run_python(BITS, VIDK_CPU_ISA=isa)
        assert result.returncode == 0, result.stderr
        used, digest = result.stdout.split()
        assert used == isa
        digests.add(digest)
    assert len(digests) == 1
    assert vidk.build_info()["cpu_isa"] == os.environ.get("VIDK_CPU_ISA", here[-1])


@pytest.mark.parametrize("isa", ["AVX2", *(i for i in ISAS if not cpu_has(i))])
def test_an_instruction_set_that_cannot_be_used_stops_the_import(isa: str) -> None:
    result = run_python("import vidk", VIDK_CPU_ISA=isa)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"RuntimeError: vidk: VIDK_CPU_ISA: got '{isa}', expected "), last


# --- objects that cannot be loaded ----------------------------------------------------------------

CALL = """
import torch, vidk
x = torch.zeros(1, 1, 1, 2)
print(vidk.build_info()["objects"]["_C"])
meta = x.to("meta")  # tracing needs no kernel
vidk.attention(meta, meta, meta, torch.ones(1, dtype=torch.int32, device="meta"))
try:
    vidk.attention(x, x, x, torch.ones(1, dtype=torch.int32))
except ImportError as error:
    print(error)
"""


@pytest.fixture
def package_copy(tmp_path: Path) -> Path:
    """Copy the Python files of the package, without the compiled objects."""
    ignore = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "vidk", ignore=ignore)
    return tmp_path


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "_C.abi3.so is missing: vidk was not built"),
        (b"\x7fELF", "_C.abi3.so cannot be loaded"),
    ],
    ids=["missing", "broken"],
)
def test_without_the_cpu_object_calls_say_why(
    package_copy: Path, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (package_copy / "vidk" / "_C.abi3.so").write_bytes(content)
    result = run_python(CALL, PYTHONPATH=str(package_copy))
    assert result.returncode == 0, result.stderr
    status, error = result.stdout.strip().splitlines()
    assert status.startswith(reason)
    assert error == (
        f"vidk::attention: no CPU kernel, because {status}; "
        "reinstall vidk, from a source tree with `pip install .`"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "_cuda.so is missing: vidk was not built"), (b"?", "_cuda.so cannot be loaded")],
    ids=["missing", "broken"],
)
def test_a_cuda_torch_without_the_cuda_object(
    package_copy: Path, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (package_copy / "vidk" / "_cuda.so").write_bytes(content)
    code = "import torch; torch.version.cuda = '13.0'; import vidk\n"
    result = run_python(
        code + "print(vidk.build_info()['objects']['_cuda'])", PYTHONPATH=str(package_copy)
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(reason)


# --- how the build finds torch --------------------------------------------------------------------


@pytest.fixture(scope="module")
def setup_py() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vidk_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_torch(site: Path, version: str, headers: bool = True) -> Path:
    torch_dir = site / "torch"
    torch_dir.mkdir(parents=True)
    (torch_dir / "version.py").write_text(f"__all__ = []\n__version__ = '{version}'\n")
    if headers:
        header = torch_dir / "include/torch/csrc/stable/library.h"
        header.parent.mkdir(parents=True)
        header.touch()
    return torch_dir


@pytest.mark.parametrize("version", ["2.11.0", "2.13.0+cpu", "2.15.0.dev20260801+cu132", "3.0.0"])
def test_find_torch_takes_the_first_one(setup_py: ModuleType, tmp_path: Path, version: str) -> None:
    expected = make_torch(tmp_path / "b", version)
    make_torch(tmp_path / "c", "2.12.0")
    assert setup_py.find_torch([tmp_path / "a", tmp_path / "b", tmp_path / "c"]) == expected


@pytest.mark.parametrize(
    ("version", "headers", "sentence"),
    [
        (None, False, r"vidk: no PyTorch in \S+\. Install PyTorch 2\.11 or newer .*"),
        ("2.10.2+cu128", True, r"vidk: the PyTorch in \S+ is 2\.10\.2\+cu128\. Install PyTorch .*"),
        ("unknown", True, r"vidk: the PyTorch in \S+ is of unknown version\. Install PyTorch .*"),
        ("2.11.0+cpu", False, r"vidk: the PyTorch 2\.11\.0\+cpu in \S+ comes without its C\+\+ .*"),
    ],
    ids=["missing", "too-old", "unreadable", "stripped"],
)
def test_find_torch_says_what_to_do(
    setup_py: ModuleType, tmp_path: Path, version: str | None, headers: bool, sentence: str
) -> None:
    if version is not None:
        make_torch(tmp_path, version, headers)
    with pytest.raises(SystemExit) as error:
        setup_py.find_torch([tmp_path])
    assert re.fullmatch(sentence, str(error.value))


def test_site_dirs_hold_the_running_torch(setup_py: ModuleType) -> None:
    assert Path(torch.__file__).parents[1] in setup_py.site_dirs()
    # Under build isolation the environment is not on sys.path.
    code = (
        f"import runpy, sys; m = runpy.run_path({str(ROOT / 'setup.py')!r}); sys.path.clear(); "
        "print(m['find_torch'](m['site_dirs']()))"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()) == Path(torch.__file__).parent
