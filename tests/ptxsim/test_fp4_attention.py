"""fp4_attention: which kernel a device gets, what none takes, and the same call on all of them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from . import has_nvcc
from .fp4_problem import random_problem
from .launch import ARCHS, plans
from .ops import Sim

SHAPE = {"batch": 2, "heads": 3, "tokens": 300, "capacity": 1000, "dim": 128, "row_bytes": 64}
DEFAULTS = SHAPE | {"capability": 80, "k_mean": 0x70000, "v_bytes": 2}


def view(name: str, address: int, tokens: int, row: int, size: int, n: dict[str, Any]) -> tuple:
    """Describe a tensor that is nowhere; `n` may move it and stretch its tokens."""
    heads = n["heads"]
    step = n.get(f"{name}_token", heads * row * size)
    strides = [tokens * step, step, row * size, size]
    return n.get(name, address), [n["batch"], tokens, heads, row], strides, size


def plan(choice: str | None = None, **changes: Any) -> dict[str, Any]:
    """Plan a call; `choice` is the value of VIDK_FP4_ATTENTION."""
    n = {**DEFAULTS, **changes}
    tokens, capacity, row = n["tokens"], n["capacity"], n["row_bytes"]
    q_codes = view("q_codes", 0x10000, tokens, row, 1, n)
    k_codes = view("k_codes", 0x20000, capacity, row, 1, n)
    q = view("q", 0x30000, tokens, n["dim"], 2, n)
    v = view("v_cache", 0x40000, capacity, n["dim"], n["v_bytes"], n)
    k_scales, q_scales = n.get("k_scales", 0x50000), n.get("q_scales", 0x60000)
    addresses = [q_scales, k_scales, n["k_mean"], 0x80000, 0x90000, 0xA0000]
    return plans.fp4_attention(
        q_codes, k_codes, row // 8, False, q, v, addresses, 100, 0.09, choice,
        plans.DeviceInfo(n["capability"], 132),
    )  # fmt: skip


KERNELS = {
    **{80: "portable", 86: "portable", 89: "portable", 90: "sm90"},
    **{100: "sm100", 103: "sm100", 110: "portable", 120: "sm120", 121: "sm120"},
}


@pytest.mark.parametrize("capability", KERNELS)
def test_kernel_of_a_device(capability: int) -> None:
    name = KERNELS[capability]
    assert plan(capability=capability)["kernel"].startswith(f"vidk_fp4_attention_{name}_")
    forced = plan("portable", capability=capability)["kernel"]
    family = "sm90" if capability == 90 else "portable"
    assert forced.startswith(f"vidk_fp4_attention_{family}_")


def test_choice() -> None:
    assert plan("auto", capability=120) == plan("", capability=120) == plan(capability=120)
    with pytest.raises(RuntimeError) as error:
        plan("sm120")
    assert str(error.value) == (
        "vidk::fp4_attention: VIDK_FP4_ATTENTION: got 'sm120', expected 'auto' or 'portable'"
    )


REFUSED = {
    "old device": (
        {"capability": 75},
        "q_codes: got compute capability 7.5, expected 8.0 or newer",
    ),
    "head dim": ({"dim": 64}, "v_cache: got D = 64, expected D = 128 on CUDA"),
    "queries": ({"tokens": 2**31 - 1}, "q_codes: got 2147483647 rows, expected at most 2147482623"),
    "keys": ({"capacity": 2**31 - 1}, "k_codes: got 2147483647 rows, expected 1 to 2147482623"),
    "no key": ({"capacity": 0}, "k_codes: got 0 rows, expected 1 to 2147482623"),
    "heads": (
        {"heads": 65536},
        "q_codes: got 2 batch rows of 65536 heads, expected at most 65535 of each",
    ),
    "stride": (
        {"v_cache_token": 776},
        "v_cache: got a stride of 776 bytes, expected multiples of 16 bytes below 34359738368 "
        "(call .contiguous())",
    ),
    "stride of q": ({"q_token": 2**35}, "q: got a stride of "),
    **{
        name: (
            {name: 0x30008},
            f"{name}: got data at address 196616, expected an address that is a multiple of 16 "
            "(call .clone())",
        )
        for name in ("q_codes", "q_scales", "k_codes", "k_scales", "v_cache", "q", "k_mean")
    },
}


@pytest.mark.parametrize("capability", [80, 90, 100, 120])
@pytest.mark.parametrize(("numbers", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(numbers: dict[str, Any], words: str, capability: int) -> None:
    with pytest.raises(RuntimeError) as error:
        plan(**{"capability": capability, **numbers})
    assert str(error.value).startswith(f"vidk::fp4_attention: {words}")


def test_strides_that_are_never_stepped_over() -> None:
    assert plan(batch=1, tokens=1, q_token=6)["kernel"]


@pytest.mark.parametrize("empty", ["batch", "tokens", "heads"])
def test_nothing_to_do(empty: str) -> None:
    assert plan(**{empty: 0})["kernel"] == ""


@pytest.mark.skipif(not has_nvcc(), reason="no nvcc to compile the kernels")
@pytest.mark.parametrize("arch", ARCHS)
def test_all_architectures(arch: str) -> None:
    """Two slots of a tile and a remainder, NaN behind the valid keys; more keys than queries."""
    on = Sim(arch)
    problem = random_problem("default", 20, 150, 2)
    problem.spoilt(270).check(270, on)
    (kernel,) = on.kernels
    assert f"_{KERNELS[int(re.sub(r'[a-z_]', '', arch))]}_" in kernel
    assert not on.reports[0]["warnings"]
