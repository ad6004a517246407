"""Options of the test suite and the tiny model that many tests run."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from tests.tiny import tiny_model, tiny_prompt
from vidk.models import CausalWan

DATA = Path(__file__).parent / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let other sets of golden files of the same format be run."""
    parser.addoption(
        "--golden-dir",
        type=Path,
        default=DATA / "golden",
        help="golden files of the causal reference, with their index.json",
    )
    parser.addoption(
        "--golden-diffusers-dir",
        type=Path,
        default=DATA / "golden_diffusers",
        help="folders of golden files made with diffusers, each with its meta.json",
    )


@pytest.fixture
def model() -> CausalWan:
    """A tiny model."""
    return tiny_model()


@pytest.fixture
def prompt(model: CausalWan) -> tuple[Tensor, Tensor]:
    """A prompt for it."""
    return tiny_prompt(model)
