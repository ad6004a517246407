"""A model of 42 small tensors, and the golden diffusers data."""

from pathlib import Path

import pytest
import torch

from vidk.models.config import WanConfig
from vidk.models.names import parameter_shapes

GOLDEN = Path(__file__).parents[1] / "data" / "golden_diffusers"


@pytest.fixture(params=["d32", "d128"])
def golden(request) -> Path:
    return GOLDEN / request.param


@pytest.fixture
def small() -> WanConfig:
    return WanConfig(
        dim=16, ffn_dim=24, num_heads=2, num_layers=1, freq_dim=8, text_dim=12, text_len=4
    )


@pytest.fixture
def state(small) -> dict[str, torch.Tensor]:
    gen = torch.Generator().manual_seed(0)
    return {name: torch.randn(s, generator=gen) for name, s in parameter_shapes(small).items()}
