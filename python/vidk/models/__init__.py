"""The causal Wan model, its sizes and its checkpoints."""

from vidk.models.config import CONFIGS, WanConfig
from vidk.models.context import TextContext
from vidk.models.wan import CausalWan

__all__ = ["CONFIGS", "CausalWan", "TextContext", "WanConfig"]
