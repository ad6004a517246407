"""compute-sanitizer over every op, each tensor in an allocation of its own so that it can see."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TIMEOUT_S = int(os.environ.get("VIDK_SANITIZER_TIMEOUT", "600"))


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_sanitizer(tool: str) -> None:
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        pytest.skip("compute-sanitizer is not installed")
    # Only vidk's kernels are watched: torch's own are not what is tested, and are many.
    watch = ["--kernel-name", "kernel_substring=vidk_", "--report-api-errors", "no"]
    script = [sys.executable, "-m", "tests.gpu.sanitized"]
    done = subprocess.run(
        [program, "--tool", tool, "--error-exitcode", "9", *watch, *script],
        cwd=ROOT,
        env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
    )
    if "Device not supported" in done.stdout:
        pytest.skip("compute-sanitizer does not support this device or its driver")
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"^sanitized: \d+ calls$", done.stdout, re.M), done.stdout[-4000:]
    assert re.search(r"ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards", done.stdout)
