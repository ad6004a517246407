"""What plans refuse: sizes that no test could allocate, and choices that cannot be met."""

from __future__ import annotations

import pytest
import torch

from .launch import device_info, plans
from .ops import Sim, attention

HUGE = 2**24


def view(batch: int, tokens: int, heads: int, dim: int) -> tuple:
    """Describe a contiguous bfloat16 tensor that is nowhere."""
    sizes = [batch, tokens, heads, dim]
    strides = [2 * tokens * heads * dim, 2 * heads * dim, 2 * dim, 2]
    return 1 << 20, sizes, strides, 2


def test_rope_grid() -> None:
    x = view(HUGE, HUGE, 1, 8)
    grid = (0, 1, 0, 0, 1, 4, 0, 1, 1, 0, 1)
    with pytest.raises(RuntimeError, match=r"rope_3d: x: got \d+ tiles of work, expected at most "):
        plans.rope_3d("bf16", x, x, grid, device_info("sm_90a"))
    assert "at most 2147483647" in refusal(plans.rope_3d, "bf16", x, x, grid)


def test_kv_cache_counts() -> None:
    x = view(HUGE, HUGE, 1, 8)
    text = refusal(plans.kv_cache_write, x, x, x, x, 0, 1)
    assert text.startswith("vidk::kv_cache_write: k: got 16777216 x 16777216 tokens of 1 x 1 ")
    assert " vectors in frames of 1, for a cache of 16777216 rows" in text
    assert "counts that fit in 31 bits" in text


def refusal(plan, *args: object) -> str:
    with pytest.raises(RuntimeError) as caught:
        plan(*args, device_info("sm_90a"))
    return str(caught.value)


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ("tile", "got 'tile' with float32, expected bfloat16 or float16 "),
        ("fast", "got 'fast', expected 'auto', 'tile' or 'simt'"),
    ],
)
def test_attention_choice(choice: str, text: str) -> None:
    q = torch.zeros(1, 4, 1, 128)
    with pytest.raises(RuntimeError) as caught:
        attention(Sim("sm_90a"), q, q, q, torch.tensor([4], dtype=torch.int32), choice=choice)
    assert str(caught.value).startswith(f"vidk::attention: VIDK_ATTENTION: {text}")
    if choice == "tile":
        assert str(caught.value).endswith("(use VIDK_ATTENTION=auto or simt)")
