"""fp4_attention on a GPU, by the CPU's checks: the device's own kernel and the portable one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops import test_fp4_attention as host
from tests.ops.helpers import ints, normal
from vidk import reference
from vidk.reference import fp4

from .helpers import move, same_bits

fp4_attention = torch.ops.vidk.fp4_attention
BF16 = torch.bfloat16
OUT, LSE = 3e-3, 1e-4  # relative L2: weights are rounded to bfloat16, and then the result
FP8_OUT = 3e-2  # weights have 3 bits

pytestmark = pytest.mark.usefixtures("choice")


@pytest.fixture(params=["auto", "portable"])
def choice(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the device's own kernel, or the one for all."""
    monkeypatch.setenv("VIDK_FP4_ATTENTION", request.param)


def on_gpu(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Call the op on copies of the arguments; what comes back lies on the CPU."""
    names = [name for name, x in kwargs.items() if isinstance(x, Tensor)]
    moved = iter(move(*(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))))
    args = tuple(next(moved) if isinstance(x, Tensor) else x for x in args)
    out, lse = fp4_attention(*args, **kwargs | {name: next(moved) for name in names})
    return out.cpu(), lse.cpu()


@pytest.fixture(autouse=True)
def in_place_of_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "fp4_attention", on_gpu)


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "e4m3"])
@pytest.mark.parametrize("recipe", fp4.RECIPES)
def test_recipes(recipe: str, fp8: bool) -> None:
    call = host.random_call(normal(BF16, recipe), recipe, batch=2, tokens=300, slots=5, fp8=fp8)
    host.check(call, 740, out=FP8_OUT if fp8 else OUT, lse=LSE)


@pytest.mark.parametrize("frame_tokens", [1, 24, 127, 128, 129, 280])
def test_lengths(frame_tokens: int) -> None:
    slots = max(2, 300 // frame_tokens)
    call = host.random_call(normal(BF16, frame_tokens), frame_tokens=frame_tokens, slots=slots)
    values = call.v.clone()
    for n in range(1, frame_tokens * slots + 1, 7):
        call.v = values.clone()
        call.v[:, n:] = host.NAN
        host.check(call, n, out=OUT, lse=LSE)


@pytest.mark.parametrize("tokens", [1, 64, 127, 129, 300])
def test_rows_of_q(tokens: int) -> None:
    host.check(host.random_call(normal(BF16, tokens), tokens=tokens), 290, out=OUT, lse=LSE)


def test_large_logits() -> None:
    """A maximum in the hundreds, which rises from tile to tile."""
    make = normal(BF16)
    k = make(1, 600, 2, 128) * torch.linspace(0.1, 30, 600).view(1, -1, 1, 1).to(BF16)
    call = host.quantized(make(1, 65, 2, 128), k, make(1, 600, 2, 128), "default", 300)
    host.check(call, 550, out=OUT, lse=LSE)


@pytest.mark.parametrize("recipe", ["default", "plain", "mxfp8"])
def test_nan_in_q_stays_in_its_row(recipe: str) -> None:
    host.test_nan_in_q_stays_in_its_row(recipe)


def test_padding_of_tiles_is_not_used() -> None:
    host.test_padding_of_tiles_is_not_used()


@pytest.mark.parametrize(("recipe", "fp8"), host.COSINES, ids=str)
def test_cosine(recipe: str, fp8: bool) -> None:
    host.test_cosine(recipe, fp8)


def test_no_keys_and_too_many() -> None:
    """Nobody can check the length without a synchronisation; memory past the end stays unread."""
    call = host.random_call(normal(BF16), tokens=9)
    for n in (0, -1, -(2**31)):
        out, lse = call.run(on_gpu, n)
        assert not out.any() and (lse == -torch.inf).all()
    full = call.run(on_gpu, 300)
    for n in (301, 2**31 - 1):
        assert all(map(torch.equal, call.run(on_gpu, n), full))


def test_same_bits_every_time() -> None:
    call = host.random_call(normal(BF16), tokens=1000, slots=8, heads=4)
    args = move(*call.q_codes, *call.k_codes, call.v, ints(1150), call.q, call.k_mean)
    *args, q, k_mean = args
    first, *others = (fp4_attention(*args, 150, q=q, k_mean=k_mean) for _ in range(4))
    for other in others:
        assert all(map(same_bits, other, first))


def test_model_shape() -> None:
    """A block of three frames against nine of 1560 tokens, a head at a time in the reference."""
    make = normal(BF16)
    call = host.random_call(make, tokens=4680, frame_tokens=1560, slots=9, heads=2)
    out, lse = call.run(on_gpu, 9 * 1560)
    expected, expected_lse = call.run(reference.fp4_attention, 9 * 1560)
    error = (out.double() - expected.double()).norm() / expected.double().norm()
    assert error <= OUT and (lse - expected_lse).abs().max() <= LSE


def test_refusals() -> None:
    call = host.random_call(normal(BF16), "plain", dim=64, tokens=9)
    with pytest.raises(RuntimeError, match=r"v_cache: got D = 64, expected D = 128 on CUDA"):
        call.run(on_gpu, 300)
    call = host.random_call(normal(torch.float16), "plain", tokens=9)
    with pytest.raises(RuntimeError, match=r"got dtype float16, expected dtype bfloat16 or float8"):
        call.run(on_gpu, 300)


def test_unknown_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDK_FP4_ATTENTION", "fastest")
    with pytest.raises(RuntimeError, match="VIDK_FP4_ATTENTION: got 'fastest', expected 'auto'"):
        host.random_call(normal(BF16), tokens=9).run(on_gpu, 300)
