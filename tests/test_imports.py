"""Imports point one way, and starting is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import vidk

PACKAGE = Path(vidk.__file__).parent
# Each part may import those before it.
ORDER = [
    {"_version", "_files"},
    {"_native"},
    {"reference"},
    {"rope"},
    {"ops"},
    {"cache_kinds"},
    {"cache"},
    {"media"},
    {"models"},
    {"rollout", "text", "vae"},
    {"integrations", "bench"},
    {"cli"},
]
LEVEL = {part: level for level, parts in enumerate(ORDER) for part in parts}


def imported_parts(path: Path) -> set[str]:
    """Return the parts of vidk that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
            if node.module == "vidk":
                names = [f"vidk.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("vidk.")}
    return found


def test_imports_point_one_way() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part in ("__init__", "__main__"):
            continue
        for other in imported_parts(path) & LEVEL.keys() - {part}:
            if part == "reference" or LEVEL[other] > LEVEL[part]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports vidk.{other}")
    assert not wrong


def test_importing_vidk_loads_no_optional_package() -> None:
    code = "import sys, vidk.rollout; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    heavy = {"av", "PIL", "diffusers", "transformers", "tilelang", "torchvision", "matplotlib"}
    assert "vidk.rollout" in loaded
    assert not heavy & set(loaded.split())
