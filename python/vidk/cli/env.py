"""`vidk env`: what is installed, what is loaded, and what serves each op."""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib import metadata
from typing import Any

_PACKAGES = (
    "torch",
    "numpy",
    "safetensors",
    "tqdm",
    "av",
    "pillow",
    "triton",
    "diffusers",
    "transformers",
)
_PREFIXES = ("VIDK_", "OMP_", "MKL_", "KMP_", "TORCHINDUCTOR_", "TORCHDYNAMO_")
_ATTENTION = {
    "auto": "auto: tiles on tensor cores for 16-bit types, D = 128 and aligned strides, else SIMT",
    "tile": "tile: on tensor cores, or an error (VIDK_ATTENTION)",
    "simt": "simt: never on tensor cores (VIDK_ATTENTION)",
}
_VARIABLES = ("CXX", "CUDA_VISIBLE_DEVICES", "ATEN_CPU_CAPABILITY", "PYTORCH_ALLOC_CONF")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `env` command."""
    parser = subparsers.add_parser(
        "env",
        help="show versions, devices, and the kernel that serves each op",
        description="Show versions, devices, and the kernel that serves each op. Also works where "
        "the compiled objects are missing, and then says why.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the environment."""
    found = environment()
    print(json.dumps(found, indent=2) if args.json else as_text(found))
    return 0


def environment() -> dict[str, Any]:
    """Gather everything that `vidk env` shows."""
    # First of all: some of torch's modules set variables when they are imported.
    variables = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(_PREFIXES) or name in _VARIABLES
    }
    import torch

    from vidk import build_info
    from vidk.bench.machine import cpu_model
    from vidk.cli.system import cxx_compiler, kernels

    compiler, version = cxx_compiler()
    cuda = torch.cuda.is_available()
    return {
        "vidk": build_info(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cpu": {
            "model": cpu_model(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if cuda
        else [],
        "cxx": {"path": compiler, "version": version if compiler else None}
        | ({} if compiler else {"reason": version}),
        "kernels": {device: kernels(device) for device in ("cpu", "cuda")},
        "cuda_attention": _attention(),
        "variables": variables,
    }


def _attention() -> str:
    choice = os.environ.get("VIDK_ATTENTION", "auto")
    return _ATTENTION.get(choice, f"VIDK_ATTENTION={choice} is none of {', '.join(_ATTENTION)}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def as_text(found: dict[str, Any]) -> str:
    """Lay the environment out for reading."""
    built, cpu, cxx = found["vidk"], found["cpu"], found["cxx"]
    rev = f" ({built['git_rev']})" if built["git_rev"] else ""
    sanitize = ", with sanitizers" if built["sanitize"] else ""
    rows = [
        ("vidk", f"{built['version']}{rev}"),
        ("built", f"{built['compiler']}, {built['build_type']}{sanitize}")
        if built["compiler"]
        else ("built", "not built"),
        ("python", f"{built['python']} on {found['platform']}"),
        ("cpu", f"{cpu['model']}, {cpu['capability']}"),
        ("", f"{cpu['cores']} cores, {cpu['threads']} threads"),
        ("gpu", "; ".join(found["gpus"]) or "none"),
        ("c++", f"{cxx['path']} ({cxx['version']})" if cxx["path"] else cxx["reason"]),
    ]
    sections = [("", rows)]
    sections.append(("packages", [(n, v or "not installed") for n, v in found["packages"].items()]))
    isas = ", ".join(built["cpu_isas"]) or "none"
    archs = ", ".join(built["cuda_archs"]) or "none"
    sections.append(
        (
            "objects",
            [
                *built["objects"].items(),
                ("cpu isas", f"{isas}; in use: {built['cpu_isa'] or 'none'}"),
                ("cuda archs", archs),
                ("cuda attention", found["cuda_attention"]),
            ],
        )
    )
    for device, served in found["kernels"].items():
        sections.append((f"{device} kernels", [(op, k or "none") for op, k in served.items()]))
    if found["variables"]:
        sections.append(("variables", list(found["variables"].items())))
    return "\n".join(_section(title, rows) for title, rows in sections)


def _section(title: str, rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows) + 2
    indent = "  " if title else ""
    lines = [f"{indent}{name:{width}}{value}".rstrip() for name, value in rows]
    return "\n".join([*([f"\n{title}"] if title else []), *lines])
