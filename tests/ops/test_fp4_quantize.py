"""`vidk.fp4_quantize`: the bits of the reference, in eager mode and compiled."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vidk import fp4_quantize
from vidk.reference import fp4

FRAME = 150  # rows of a slot: a whole tile and part of one


def sample(dtype: torch.dtype, dim: int = 128) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2 * FRAME, 2, dim, generator=generator)
    # Scales that differ between rows, an offset that a mean takes off, a block of zeros, a NaN.
    x = (x * torch.logspace(-2, 1, 2 * FRAME)[:, None, None] + 1).to(dtype)
    x[0, 3, 0, :32] = 0
    x[1, 5, 1, 7] = torch.nan
    orders = torch.stack([torch.randperm(dim, generator=generator) for _ in range(2)])
    return x, orders.int()


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int16 if x.dtype == torch.bfloat16 else torch.uint8)


def assert_same(got: tuple[Tensor | None, ...], expected: tuple[Tensor | None, ...]) -> None:
    for x, y in zip(got, expected, strict=True):
        if y is None:
            assert x is None
            continue
        assert x is not None
        assert (x.dtype, x.shape, x.stride()) == (y.dtype, y.shape, y.stride())
        assert torch.equal(bits(x), bits(y))


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("role", "qk")
@pytest.mark.parametrize("recipe", fp4.RECIPES)
def test_bits_of_the_reference(recipe: str, role: str, dtype: torch.dtype, ordered: bool) -> None:
    x, order = sample(dtype)
    options = {
        "role": role,
        "recipe": recipe,
        "frame_tokens": FRAME if role == "k" else None,
        "perm": order if ordered else None,
    }
    assert_same(fp4_quantize(x, **options), fp4.fp4_quantize(x, **options))


def test_strided_views_and_a_depth_of_64() -> None:
    x, order = sample(torch.float32, 64)
    wide = torch.cat([x, x], 2)[:, :, ::2]
    options = {"role": "k", "recipe": "accurate", "frame_tokens": FRAME, "perm": order}
    assert_same(fp4_quantize(wide, **options), fp4.fp4_quantize(wide.contiguous(), **options))


# What a compiler must not simplify: the rounding of the mean, and a type that it hardly knows.
@pytest.mark.parametrize("recipe", ["accurate", "mxfp8"])
def test_compiled_has_the_same_bits(recipe: str) -> None:
    x, order = sample(torch.bfloat16)
    torch._dynamo.reset()
    compiled = torch.compile(fp4_quantize, fullgraph=True)
    options = {"role": "k", "recipe": recipe, "frame_tokens": FRAME, "perm": order}
    assert_same(compiled(x, **options), fp4_quantize(x, **options))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"role": "v"}, "role: got 'v', expected 'q' or 'k'"),
        ({"recipe": "fp3"}, "recipe: got 'fp3', expected one of 'plain', 'default', 'accurate', "),
        ({"recipe": "mxfp8"}, "x: got D = 64, expected a multiple of 128"),
        ({"frame_tokens": 70}, "x: got 300 tokens, expected whole frames of 70"),
        ({"role": "q"}, "frame_tokens: got 150 for role 'q', expected at least 1, and only for k"),
        ({"perm": torch.zeros(2, 4)}, "perm: got shape [2, 4], expected shape [H, D] = [2, 64]"),
    ],
)
def test_errors(change: dict[str, object], sentence: str) -> None:
    x, _ = sample(torch.float32, 64)
    options = {"role": "k", "recipe": "default", "frame_tokens": FRAME, **change}
    with pytest.raises(RuntimeError) as error:
        fp4_quantize(x, **options)
    assert str(error.value).startswith(f"vidk::fp4_quantize: {sentence}")
