"""`vidk env`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vidk
from vidk.cli import main, system
from vidk.ops.registry import OPS


def test_text(capsys, monkeypatch):
    monkeypatch.setenv("VIDK_SOMETHING", "7")
    assert main(["env"]) == 0
    out, err = capsys.readouterr()
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    assert err == ""
    assert lines[0][1].startswith(vidk.__version__)
    assert ["torch", str(torch.__version__)] in lines
    assert ["VIDK_SOMETHING", "7"] in lines
    assert ["_C", "loaded"] in lines
    isa = vidk.build_info()["cpu_isa"]
    assert ["qk_norm_rope_kv_write", f"vidk C++, {isa}"] in lines
    assert not any(line.rstrip() != line for line in out.splitlines())


def test_json(capsys):
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["vidk"] == json.loads(json.dumps(vidk.build_info()))
    assert found["cpu"]["threads"] == torch.get_num_threads()
    assert found["packages"]["torch"] == str(torch.__version__)
    assert found["kernels"]["cpu"].keys() == OPS.keys()
    assert all(found["kernels"]["cpu"].values())
    if torch.version.cuda is None:
        assert set(found["kernels"]["cuda"].values()) == {None}


@pytest.mark.parametrize("choice", [None, "tile", "simt", "fast"])
def test_attention_choice(choice, capsys, monkeypatch):
    monkeypatch.delenv("VIDK_ATTENTION", raising=False)
    if choice is not None:
        monkeypatch.setenv("VIDK_ATTENTION", choice)
    assert main(["env"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "cuda attention" in line]
    if choice == "fast":
        assert line.endswith("VIDK_ATTENTION=fast is none of auto, tile, simt")
    else:
        assert line.split()[2] == f"{choice or 'auto'}:"


def test_every_op_says_what_serves_it():
    assert system._CPU_KERNELS.keys() == OPS.keys()


def test_without_compiled_objects(tmp_path):
    package = Path(vidk.__file__).parent
    shutil.copytree(
        package, tmp_path / "vidk", ignore=shutil.ignore_patterns("*.so", "_build.json", "__pyc*")
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vidk", *words]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path
        )

    done = run("env", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["vidk"]["objects"]["_C"] == "_C.abi3.so is missing: vidk was not built"
    assert set(found["kernels"]["cpu"].values()) == {None}
    done = run("generate", "--out", "a.mp4")
    assert done.returncode == 2
    assert done.stderr == (
        "vidk generate: --device: got cpu, for which this build has no kernel of "
        "qk_norm_rope_kv_write, attention, cross_attention (vidk env says why)\n"
    )


def test_no_compiler(monkeypatch, capsys):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def nothing() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", nothing)
    reason = "no C++ compiler was found (install g++ or clang++, or set CXX)"
    assert system.cxx_compiler() == (None, reason)
    assert system.compile_obstacle(torch.device("cpu")) == reason
    main(["env"])
    assert f"c++     {reason}\n" in capsys.readouterr().out


def test_no_python_headers(monkeypatch, tmp_path):
    from torch._inductor import cpp_builder

    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho some compiler 1\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", lambda: str(compiler))
    monkeypatch.setattr(system.sysconfig, "get_path", lambda name: str(tmp_path))
    assert system.cxx_compiler() == (
        None,
        "Python.h is missing (install the development files of this Python)",
    )
    (tmp_path / "Python.h").touch()
    assert system.cxx_compiler() == (str(compiler), "some compiler 1")


def test_memory_and_rate():
    peak = system.peak_memory()
    assert peak > 50e6
    held = torch.ones(25_000_000)  # 100 MB
    assert system.peak_memory() >= peak
    assert system.free_memory(torch.device("cpu")) > held.nbytes
    assert 1e8 < system.matmul_rate(torch.float32, torch.device("cpu")) < 1e14


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (4e3, "4 kB"), (2.5e6, "2 MB"), (2.84e9, "2.84 GB")],
)
def test_bytes(count, text):
    assert system.bytes_text(count) == text
