"""The files of the bundled model, which are data of the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from vidk.bundled.codec import BundledCodec
from vidk.models.checkpoint import load_model
from vidk.models.config import CONFIGS
from vidk.models.wan import CausalWan

FOLDER = Path(__file__).parent / "data"
MODEL, CODEC, PROVENANCE = "model.safetensors", "codec.safetensors", "provenance.json"


def bundled_model(
    *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> CausalWan:
    """Return the trained model in evaluation mode; its file holds bfloat16."""
    return load_model(FOLDER / MODEL, dtype=dtype, config=CONFIGS["bundled"], device=device)


def bundled_codec(device: torch.device | str = "cpu") -> BundledCodec:
    """Return the codec of the bundled model."""
    return BundledCodec(load_file(FOLDER / CODEC), device)


def provenance() -> dict[str, Any]:
    """Return how the model was trained and what was measured on it."""
    found: dict[str, Any] = json.loads((FOLDER / PROVENANCE).read_text())
    return found
