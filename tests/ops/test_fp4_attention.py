"""fp4_attention against the float64 reference on the same codes, and against exact attention."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import vidk
from vidk import reference
from vidk.reference import fp4, nvfp4

from .helpers import (
    CACHES,
    DTYPES,
    READ_LAYOUTS,
    Make,
    assert_same_bits,
    ints,
    memory_of,
    normal,
)

fp4_attention = torch.ops.vidk.fp4_attention
every_recipe = pytest.mark.parametrize("recipe", fp4.RECIPES)
BF16 = torch.bfloat16
NAN = float("nan")


@dataclass
class Call:
    """The arguments of one call, and the q and k that they were made of."""

    q: Tensor
    k: Tensor
    q_codes: tuple[Tensor, Tensor]
    k_codes: tuple[Tensor, Tensor]
    k_mean: Tensor | None
    v: Tensor
    frame_tokens: int

    def run(self, op: Any, n: int, scale: float | None = None) -> tuple[Tensor, Tensor]:
        """Call an op or its reference on the first n keys."""
        means = {} if self.k_mean is None else {"q": self.q, "k_mean": self.k_mean}
        args = (*self.q_codes, *self.k_codes, self.v, ints(n), self.frame_tokens)
        return op(*args, **means, scale=scale)

    @property
    def tensors(self) -> list[Tensor]:
        """Return all tensors of the call."""
        means = () if self.k_mean is None else (self.q, self.k_mean)
        return [*self.q_codes, *self.k_codes, self.v, *means]


def quantized(
    q: Tensor, k: Tensor, v: Tensor, recipe: str, frame_tokens: int, fp8: bool = False
) -> Call:
    """Return a call of a recipe; the loudest channels lead where that matters."""
    perm = None
    if fp4.RECIPES[recipe].cross:
        energy = q.float().square().mean((0, 1)) + k.float().square().mean((0, 1))
        perm = energy.argsort(dim=-1, descending=True).int()
    *q_codes, _ = fp4.fp4_quantize(q, role="q", recipe=recipe, perm=perm)
    *k_codes, mean = fp4.fp4_quantize(
        k, role="k", recipe=recipe, frame_tokens=frame_tokens, perm=perm
    )
    v = nvfp4.e4m3_encode(v.float()) if fp8 else v
    return Call(q, k, tuple(q_codes), tuple(k_codes), mean, v, frame_tokens)


def random_call(
    make: Make,
    recipe: str = "default",
    *,
    tokens: int = 70,
    frame_tokens: int = 150,
    slots: int = 2,
    heads: int = 2,
    dim: int = 128,
    batch: int = 1,
    fp8: bool = False,
) -> Call:
    """Return a call on normal values, keys with a mean that differs from frame to frame."""
    keys = frame_tokens * slots
    q, k, v = (make(batch, rows, heads, dim) for rows in (tokens, keys, keys))
    k = k + make(1, slots, 1, dim).repeat_interleave(frame_tokens, 1)
    return quantized(q, k, v, recipe, frame_tokens, fp8)


def check(
    call: Call, n: int, scale: float | None = None, out: float = 0, lse: float = 2e-6
) -> None:
    """Hold the output to a relative L2 error of `out`, or to one rounding, and the LSE to `lse`."""
    before = [x.clone() for x in memory_of(*call.tensors)]
    got, got_lse = call.run(fp4_attention, n, scale)
    assert all(map(torch.equal, memory_of(*call.tensors), before)), "an input was written to"
    expected, expected_lse = call.run(reference.fp4_attention, n, scale)
    assert got.dtype == expected.dtype and got.shape == expected.shape and got.is_contiguous()
    assert got_lse.shape == expected_lse.shape and got_lse.is_contiguous()
    error = (got.double() - expected.double()).norm() / expected.double().norm()
    allowed = out or 2 * 2.0**-20 + torch.finfo(got.dtype).eps / 16
    assert error <= allowed, f"output: relative error {error:.3g}"
    error = (got_lse.double() - expected_lse.double()).abs().max()
    assert error <= lse * max(1.0, float(expected_lse.abs().max())), f"LSE: error {error:.3g}"


@every_recipe
@pytest.mark.parametrize("fp8", [False, True], ids=["v", "fp8"])
def test_recipes(fp8: bool, recipe: str) -> None:
    for dtype in (BF16,) if fp8 else DTYPES:
        check(random_call(normal(dtype, recipe), recipe, batch=2, heads=1, fp8=fp8), 280)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Many small calls, which a pool of threads only slows down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_lengths() -> None:
    """Every remainder; values past the valid prefix are NaN, which must not be read."""
    call = random_call(normal(torch.float32), tokens=5, heads=1)
    values = call.v.clone()
    for n in (*range(1, 301, 3), 128, 129, 150, 151, 278, 279, 300):
        call.v = values.clone()
        call.v[:, n:] = NAN
        check(call, n)


@pytest.mark.parametrize("tokens", [1, 47, 48, 49, 127, 129, 240, 241, 500])
def test_rows_of_q(tokens: int) -> None:
    check(random_call(normal(BF16, tokens), tokens=tokens), 300)


@pytest.mark.parametrize("frame_tokens", [1, 2, 24, 127, 128, 129, 256, 280])
def test_rows_of_a_frame(frame_tokens: int) -> None:
    slots = max(2, 300 // frame_tokens)
    call = random_call(normal(BF16, frame_tokens), frame_tokens=frame_tokens, slots=slots)
    check(call, frame_tokens * slots)
    check(call, frame_tokens * slots - 1)


@pytest.mark.parametrize(
    ("dim", "recipe"),
    [(64, "plain"), (64, "accurate"), (64, "default"), (192, "accurate256"), (256, "mxfp8")],
)
def test_head_dims(dim: int, recipe: str) -> None:
    check(random_call(normal(BF16, dim), recipe, dim=dim), 290)


@pytest.mark.parametrize("layout", READ_LAYOUTS)
def test_layouts_of_q(layout: str) -> None:
    make = normal(BF16, layout)
    q = READ_LAYOUTS[layout](make, 2, 50, 3, 128)
    k, v = make(2, 200, 3, 128), make(2, 200, 3, 128)
    check(quantized(q, k, v, "default", 100), 170)


@pytest.mark.parametrize("cache", CACHES)
def test_layouts_of_v(cache: str) -> None:
    make = normal(torch.float16, cache)
    k, v = CACHES[cache](make, 2, 200, 3, 64)
    check(quantized(make(2, 50, 3, 64), k, v, "default", 100), 170)


@pytest.mark.parametrize("scale", [1e-3, 0.3, 2.0])
def test_scale(scale: float) -> None:
    check(random_call(normal(torch.float32, scale)), 300, scale, lse=4e-6)


def test_large_logits() -> None:
    """A maximum in the hundreds, which rises from tile to tile."""
    make = normal(torch.float32)
    k = make(1, 600, 2, 128) * torch.linspace(0.1, 40, 600).view(1, -1, 1, 1)
    call = quantized(make(1, 65, 2, 128), k, make(1, 600, 2, 128), "default", 300)
    assert call.run(reference.fp4_attention, 600)[1].max() > 100
    check(call, 600, out=2e-5)


def test_no_key_gives_zeros() -> None:
    call = random_call(normal(BF16), tokens=9)
    for x in (call.v, call.k_mean):
        x.fill_(NAN)
    got, lse = call.run(fp4_attention, 0)
    assert_same_bits(got, torch.zeros_like(got))
    assert (lse == -math.inf).all() and lse.shape == (1, 2, 9)


@pytest.mark.parametrize("slots", [0, 2])
@pytest.mark.parametrize("size", [(0, 9, 3), (2, 0, 3), (2, 9, 0)], ids=["B", "S", "H"])
def test_empty(size: tuple[int, int, int], slots: int) -> None:
    batch, tokens, heads = size
    codes = (torch.zeros(batch, heads, rows, 64, dtype=torch.uint8) for rows in (tokens, 4 * slots))
    scales = (
        torch.zeros(batch, heads, tiles, 2, 32, 4, 4, dtype=torch.float8_e4m3fn)
        for tiles in (-(-tokens // 128), slots)
    )
    q, k = zip(codes, scales, strict=True)
    for n in {0, 4 * slots}:
        out, lse = fp4_attention(*q, *k, torch.zeros(batch, 4 * slots, heads, 128), ints(n), 4)
        assert out.shape == (batch, tokens, heads, 128) and lse.shape == (batch, heads, tokens)


def spoilt(x: Tensor, at: tuple[int, ...], value: Any) -> Tensor:
    out = x.clone()
    out.view(torch.uint8)[at] = value
    return out


@pytest.mark.parametrize("recipe", ["default", "plain", "mxfp8"])
def test_nan_in_q_stays_in_its_row(recipe: str) -> None:
    call = random_call(normal(BF16, recipe), recipe)
    clean, clean_lse = call.run(fp4_attention, 280)
    dirty = call.q.clone()
    dirty[0, 50, 1, 6] = NAN
    q_codes = fp4.fp4_quantize(dirty, role="q", recipe=recipe)[:2]
    got, lse = replace(call, q=dirty, q_codes=q_codes).run(fp4_attention, 280)
    assert got[0, 50, 1].isnan().all() and lse[0, 1, 50].isnan()
    got[0, 50, 1], lse[0, 1, 50] = clean[0, 50, 1], clean_lse[0, 1, 50]
    assert_same_bits(got, clean)
    assert_same_bits(lse, clean_lse)


def test_nan_in_a_key_stays_in_its_head() -> None:
    call = random_call(normal(BF16))
    clean, _ = call.run(fp4_attention, 280)
    dirty = call.k.clone()
    dirty[0, 200, 1, 6] = NAN
    *k_codes, mean = fp4.fp4_quantize(dirty, role="k", recipe="default", frame_tokens=150)
    got, _ = replace(call, k_codes=tuple(k_codes), k_mean=mean).run(fp4_attention, 280)
    assert got[0, :, 1].isnan().all()
    assert_same_bits(got[0, :, 0], clean[0, :, 0])


def test_padding_of_tiles_is_not_used() -> None:
    """Rows that a slot's last tile lacks, and those of the other slots past the prefix."""
    call = random_call(normal(BF16))  # tiles of 128 and 22 rows
    clean = call.run(fp4_attention, 290)
    codes, scales = call.k_codes
    dirty = spoilt(scales, (0, slice(None), 1, slice(None), slice(22, None), 0), 0x7F)
    dirty = spoilt(dirty, (0, slice(None), slice(1, None, 2), slice(None), slice(None), 1), 0x7F)
    for a, b in zip(
        replace(call, k_codes=(codes, dirty)).run(fp4_attention, 290), clean, strict=True
    ):
        assert_same_bits(a, b)


def test_means_of_zero_are_none() -> None:
    call = random_call(normal(BF16), "plain")
    mean = torch.zeros(1, 2, 4, 128, dtype=BF16)
    without, with_zeros = (c.run(fp4_attention, 280) for c in (call, replace(call, k_mean=mean)))
    for a, b in zip(with_zeros, without, strict=True):
        assert_same_bits(a, b)


def test_rows_and_threads_do_not_change_bits() -> None:
    call = random_call(normal(BF16), tokens=500, heads=3)
    got, lse = call.run(fp4_attention, 300)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = call.run(fp4_attention, 300)
    finally:
        torch.set_num_threads(threads)
    assert_same_bits(alone[0], got)
    assert_same_bits(alone[1], lse)
    tail = fp4.fp4_quantize(call.q[:, 384:], role="q", recipe="default")[:2]
    few = replace(call, q=call.q[:, 384:], q_codes=tail).run(fp4_attention, 300)
    assert_same_bits(few[0], got[:, 384:])
    assert_same_bits(few[1], lse[..., 384:])


def test_public_function() -> None:
    call = random_call(normal(BF16), tokens=9)
    args = (*call.q_codes, *call.k_codes, call.v, ints(280), 150)
    options = {"q": call.q, "k_mean": call.k_mean, "scale": 0.2}
    out, lse = fp4_attention(*args, **options)
    both = vidk.fp4_attention(*args, **options, return_lse=True)
    assert_same_bits(vidk.fp4_attention(*args, **options), out)
    assert_same_bits(both[0], out)
    assert_same_bits(both[1], lse)


def verify() -> None:
    """What a child process holds another instruction set to."""
    for recipe, dtype in (("accurate", torch.float32), ("mxfp8", BF16), ("default", torch.float16)):
        check(random_call(normal(dtype, recipe), recipe, heads=1), 280)


@pytest.mark.parametrize("isa", vidk.build_info()["cpu_isas"])
def test_instruction_sets(isa: str) -> None:
    paths = [os.path.dirname(os.path.dirname(p)) for p in (vidk.__file__, __file__)]
    program = f"import sys; sys.path[:0] = {paths!r}; import {__name__} as t; t.verify()"
    child = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"VIDK_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    if "cannot run" in child.stderr:
        pytest.skip(f"this machine has no {isa}")
    assert child.returncode == 0, child.stderr


# --- what is lost to the format: cosine to exact attention on normal values ----------------------


def in_tiles(x: Tensor, recipe: str) -> tuple[Tensor, Tensor]:
    """Return codes and scales of `nvfp4_quantize`, arranged for attention."""
    codes, scales = (t.transpose(1, 2) for t in vidk.nvfp4_quantize(x, recipe=recipe))
    return codes.contiguous(), nvfp4.swizzle_scales(scales)


COSINES = {
    ("plain", False): 0.9900,
    ("4/6", False): 0.9918,
    ("search", False): 0.9927,
    ("default", False): 0.9912,  # a mean of 16 keys adds a sixteenth to the energy of normal ones
    ("accurate", False): 0.9938,
    ("accurate256", False): 0.9958,
    ("mxfp8", False): 0.9983,
    ("plain", True): 0.9892,
    ("4/6", True): 0.9910,
    ("mxfp8", True): 0.9983,
}


@pytest.mark.parametrize(("recipe", "fp8"), COSINES, ids=str)
def test_cosine(recipe: str, fp8: bool) -> None:
    make = normal(BF16)
    q, k, v = (make(1, 1024, 12, 128) for _ in range(3))
    if recipe in fp4.RECIPES:
        call = quantized(q, k, v, recipe, 1024, fp8)
    else:
        values = nvfp4.e4m3_encode(v.float()) if fp8 else v
        call = Call(q, k, in_tiles(q, recipe), in_tiles(k, recipe), None, values, 1024)
    got, _ = call.run(fp4_attention, 1024)
    expected, _ = reference.attention(q.float(), k.float(), v.float(), ints(1024))
    cosine = torch.cosine_similarity(got.double().flatten(), expected.double().flatten(), dim=0)
    assert cosine >= COSINES[recipe, fp8], f"{cosine:.5f}"
