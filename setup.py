"""Drives CMake: one placeholder extension, whose build configures, builds and installs it all.

Environment: VIDK_BUILD_CUDA=auto|ON|OFF, VIDK_CUDA_ARCHS="90a;100a;90-virtual", VIDK_SANITIZE=ON,
CMAKE_BUILD_TYPE, MAX_JOBS.
"""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
MIN_TORCH = (2, 11)
CURE = (
    "Install PyTorch 2.11 or newer (for example `pip install torch`) into the environment that "
    "runs pip, then install vidk again."
)


def site_dirs() -> list[Path]:
    """Return where the running interpreter's packages lie, also under build isolation.

    pip's isolated build hides the environment from `sys.path` but runs its interpreter, so that
    `sysconfig` still knows the directories.
    """
    paths = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    paths += [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    for name in ("purelib", "platlib"):  # a virtual environment may lie on a system with torch
        paths.append(sysconfig.get_path(name, vars=base))
    paths.append(site.getusersitepackages())
    paths.append(f"/usr/lib/python{sys.version_info.major}/dist-packages")  # Debian's packages
    return list(dict.fromkeys(Path(p) for p in paths))


def find_torch(dirs: Iterable[Path]) -> Path:
    """Return the first usable torch package directory, or exit with the one thing to do."""
    dirs = list(dirs)
    found = next((d / "torch" for d in dirs if (d / "torch" / "version.py").is_file()), None)
    if found is None:
        places = ", ".join(str(d) for d in dirs)
        raise SystemExit(f"vidk: no PyTorch in {places}. {CURE}")
    text = (found / "version.py").read_text()
    match = re.search(r"^__version__\s*=\s*['\"]((\d+)\.(\d+)[^'\"]*)", text, re.MULTILINE)
    version = match[1] if match else "of unknown version"
    if match is None or (int(match[2]), int(match[3])) < MIN_TORCH:
        raise SystemExit(f"vidk: the PyTorch in {found} is {version}. {CURE}")
    if not (found / "include/torch/csrc/stable/library.h").is_file():
        raise SystemExit(
            f"vidk: the PyTorch {version} in {found} comes without its C++ headers "
            "(include/torch/csrc/stable/library.h is missing). Reinstall it, or install another "
            "version >= 2.11 whose wheel holds them, then install vidk again."
        )
    return found


def python_includes() -> str:
    """Return the include directories of the running interpreter, separated by semicolons."""
    paths = [sysconfig.get_path("include"), sysconfig.get_path("platinclude")]
    return ";".join(dict.fromkeys(paths))


def git_rev() -> str:
    """Return the short revision, with `+` if the tree differs from it; empty outside git."""
    if not (ROOT / ".git").exists():
        return ""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def jobs() -> str:
    """Return MAX_JOBS, or the cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return os.environ.get("MAX_JOBS") or str(cores or 1)


class CMakeBuild(build_ext):
    """Builds the CMake project into the directory where the placeholder would go."""

    def run(self) -> None:
        prefix = Path(self.get_ext_fullpath("vidk._C")).parent.resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        cmake = shutil.which("cmake")
        if cmake is None:
            raise SystemExit("vidk: cmake is missing. Install it with `pip install cmake`.")
        defines = {
            "VIDK_TORCH_DIR": find_torch(site_dirs()),
            "VIDK_PYTHON_INCLUDE": python_includes(),
            "VIDK_VERSION": self.distribution.get_version(),
            "VIDK_GIT_REV": git_rev(),
            "CMAKE_BUILD_TYPE": os.environ.get("CMAKE_BUILD_TYPE", "Release"),
            "CMAKE_INSTALL_PREFIX": prefix,
        }
        for name in ("VIDK_BUILD_CUDA", "VIDK_CUDA_ARCHS", "VIDK_SANITIZE"):
            if os.environ.get(name):
                defines[name] = os.environ[name]
        args = [f"-D{name}={value}" for name, value in defines.items()]
        # --fresh: pip's build isolation puts cmake and ninja into a new directory every time.
        configure = [cmake, "--fresh", "-G", "Ninja", "-S", ROOT, "-B", build]
        subprocess.run([*configure, *args], check=True)
        subprocess.run([cmake, "--build", build, "-j", jobs()], check=True)
        for name in ("_C.abi3.so", "_cuda.so", "_build.json"):
            (prefix / name).unlink(missing_ok=True)  # an earlier build may have had other objects
        subprocess.run([cmake, "--install", build, "--strip"], check=True)


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("vidk._C", sources=[], py_limited_api=True)],
        cmdclass={"build_ext": CMakeBuild},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
