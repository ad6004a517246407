"""The CUDA headers' conversions in their host form: an oracle by the vendor that needs no GPU."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest


def _include() -> str | None:
    """Return the flag that finds the headers of nvcc, which knows where they are."""
    if shutil.which("nvcc") is None:
        return None
    dry = subprocess.run(
        ["nvcc", "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True
    )
    found = re.search(r'INCLUDES="([^"]+)"', dry.stderr)
    return found and found[1].strip()


@functools.cache
def _library() -> ctypes.CDLL | None:
    include = _include()
    if include is None:
        return None
    source = Path(__file__).parent / "ptxsim" / "host_oracle.cpp"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "oracle.so"
        subprocess.run(["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-w", include, source,
                        "-o", library], check=True)  # fmt: skip
        return ctypes.CDLL(str(library))


def convert(name: str, a: np.ndarray) -> np.ndarray:
    """Apply a conversion of `host_oracle.cpp` to bits, uint32; skip the test without headers."""
    library = _library()
    if library is None:
        pytest.skip("no nvcc, so no CUDA headers")
    a = np.ascontiguousarray(a, np.uint32)
    out = np.zeros(a.shape, np.uint32)
    pointer = ctypes.POINTER(ctypes.c_uint32)
    getattr(library, name)(
        ctypes.c_int64(a.size), a.ctypes.data_as(pointer), out.ctypes.data_as(pointer)
    )
    return out
