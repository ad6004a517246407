"""Builds the compiled parts when their sources have changed, and loads them."""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / f"ptxsim-{sys.implementation.cache_tag}"


@functools.cache
def _build() -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:  # two test processes must not build at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        _run(
            "cmake", "-S", HERE, "-B", BUILD, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}",
            "-DPYBIND11_FINDPYTHON=ON",
        )  # fmt: skip
        _run("cmake", "--build", BUILD, "-j", os.environ.get("MAX_JOBS", "2"))


def load(name: str) -> ModuleType:
    """Return the compiled module `_ptxsim` or `_plans`, built first if need be."""
    _build()
    path = BUILD / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(*command: object) -> None:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"building the simulator failed:\n{done.stdout}\n{done.stderr}")
