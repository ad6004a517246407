"""One test per golden file of the directory that the options name."""

from __future__ import annotations

import json

import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise over the files of `--golden-dir` and the cases of `--golden-diffusers-dir`."""
    if "golden_file" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--golden-dir")
        index = json.loads((folder / "index.json").read_text())
        metafunc.parametrize("golden_file", [folder / name for name in index], ids=list(index))
    if "diffusers_case" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--golden-diffusers-dir")
        cases = [
            (meta.parent, name)
            for meta in sorted(folder.glob("*/meta.json"))
            for name in json.loads(meta.read_text())["cases"]
        ]
        ids = [f"{path.name}-{name}" for path, name in cases]
        metafunc.parametrize("diffusers_case", cases, ids=ids)
