"""Loads the compiled objects and knows what was built, what was loaded, and why anything was not.

An object that cannot be loaded does not stop `import vidk`: schemas, fakes and tracing need none,
and `vidk env` must be able to say what is wrong. The first *call* of an op without a kernel raises
`ImportError` with that reason.
"""

from __future__ import annotations

import importlib
import json
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch

from vidk._version import __version__

_PACKAGE = Path(__file__).parent
_CURE = "reinstall vidk, from a source tree with `pip install .`"

# Per object: "loaded", or the reason why it is not.
status: dict[str, str] = {"_C": "not tried", "_cuda": "not tried"}
# (op, dispatch key) of ops that only say why they have no kernel there.
missing: set[tuple[str, str]] = set()


def load() -> None:
    """Load `_C`, and `_cuda` where torch itself has CUDA; record the outcome in `status`."""
    status["_C"] = _load_cpu()
    status["_cuda"] = _load_cuda()


def _load_cpu() -> str:
    try:
        native = importlib.import_module("vidk._C")
    except ImportError as error:
        if not (_PACKAGE / "_C.abi3.so").exists():
            return "_C.abi3.so is missing: vidk was not built"
        return f"_C.abi3.so cannot be loaded: {error}"
    # A wrong VIDK_CPU_ISA is an explicit request that cannot be met: it stops the import.
    native.cpu_isa()
    return "loaded"


def _load_cuda() -> str:
    if torch.version.cuda is None:
        return "this PyTorch has no CUDA"
    path = _PACKAGE / "_cuda.so"
    if not path.exists():
        return _static_info().get("cuda_reason") or "_cuda.so is missing: vidk was not built"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"_cuda.so cannot be loaded: {error}"
    return "loaded"


def explain_missing_kernels(library: torch.library.Library, ops: Iterable[str]) -> None:
    """Make every op without a kernel raise one sentence instead of torch's dispatcher dump."""
    keys = [("CPU", "_C"), ("CUDA", "_cuda")] if torch.version.cuda else [("CPU", "_C")]
    for op in ops:
        for key, name in keys:
            if not torch._C._dispatch_has_kernel_for_dispatch_key(f"vidk::{op}", key):
                library.impl(op, _raiser(op, key, name), key)
                missing.add((op, key))


def _raiser(op: str, key: str, name: str) -> Callable[..., NoReturn]:
    reason = status[name]
    if reason == "loaded":
        text = f"vidk::{op}: this build has no {key} kernel for it; run it on another device"
    else:
        text = f"vidk::{op}: no {key} kernel, because {reason}; {_CURE}"

    def kernel(*args: object, **kwargs: object) -> NoReturn:
        raise ImportError(text)

    return kernel


def _static_info() -> dict[str, Any]:
    try:
        info: dict[str, Any] = json.loads((_PACKAGE / "_build.json").read_text())
    except (OSError, ValueError):
        return {}
    return info


def build_info() -> dict[str, Any]:
    """Return what vidk is made of and what of it is in use, for bug reports and `vidk env`.

    Returns
    -------
    version, git_rev (None if unknown), python, torch, torch_cuda (None for a CPU build),
    torch_target (oldest torch the objects load in), compiler, build_type, sanitize;
    cpu_isas (compiled) and cpu_isa (in use, None without `_C`); cuda_toolkit and cuda_archs of
    `_cuda` (None and [] if it was not built); objects: for each "loaded" or the reason why not.
    """
    built = _static_info()
    loaded = status["_C"] == "loaded"
    return {
        "version": __version__,
        "git_rev": built.get("git_rev") or None,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torch_cuda": torch.version.cuda,
        "torch_target": built.get("torch_target"),
        "compiler": built.get("compiler"),
        "build_type": built.get("build_type"),
        "sanitize": built.get("sanitize", False),
        "cpu_isas": built.get("cpu_isas", []),
        "cpu_isa": importlib.import_module("vidk._C").cpu_isa() if loaded else None,
        "cuda_toolkit": built.get("cuda_toolkit") or None,
        "cuda_archs": built.get("cuda_archs", []),
        "objects": dict(status),
    }
