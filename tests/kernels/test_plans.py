"""Launch plans against what the PTX expects: names, parameters, tensor maps, sizes."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.kernels.launches import LAUNCHES, ROOT, param_layout

F32, BF16, F16 = range(3)
SHAPE = {"batch": 2, "tokens": 300, "heads": 3, "dim_bytes": 256, "capacity": 1000}
Dump = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler was found")
    path = tmp_path_factory.mktemp("plans") / "plan_dump"
    sources = [
        ROOT / "tests" / "kernels" / "plan_dump.cpp",
        ROOT / "csrc" / "attention" / "attention_plan.cpp",
        ROOT / "csrc" / "kv_cache" / "kv_cache_plan.cpp",
    ]
    command = [compiler, "-std=c++17", "-I", ROOT / "csrc", *sources, "-o", path]
    subprocess.run(command, check=True)
    return path


@pytest.fixture
def dump(program) -> Dump:
    def run(op: str, choice: str | None = None, **numbers: int) -> dict[str, Any]:
        environment = {k: v for k, v in os.environ.items() if k != "VIDK_ATTENTION"}
        if choice is not None:
            environment["VIDK_ATTENTION"] = choice
        words = [f"{name}={number}" for name, number in numbers.items()]
        done = subprocess.run(
            [program, op, *words], capture_output=True, text=True, env=environment
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return json.loads(done.stdout)

    return run


@pytest.fixture
def attention(dump) -> Dump:
    defaults = {**SHAPE, "capability": 90, "element": BF16, "lse": 0x50000, "scale_percent": 9}
    return lambda choice=None, **numbers: dump("attention", choice, **{**defaults, **numbers})


def values_of(plan: dict[str, Any]) -> dict[str, int | float]:
    """Return the value of every parameter that is no tensor map, read where the PTX reads it."""
    launch, data = LAUNCHES[plan["kernel"]], bytes(plan["bytes"])
    layout = param_layout(plan["kernel"])
    assert plan["offset"] == [offset for _, offset, _ in layout]
    assert len(data) == layout[-1][1] + layout[-1][2]
    assert plan["block"] == [launch["threads"], 1, 1]
    assert plan["shared_bytes"] == launch["shared_bytes"]
    formats = {"pointer": "Q", "i64": "q", "i32": "i", "f32": "f"}
    return {
        param["name"]: struct.unpack_from(formats[param["type"]], data, offset)[0]
        for param, (_, offset, _) in zip(launch["params"], layout, strict=True)
        if param["type"] != "tensor_map"
    }


@pytest.mark.parametrize("element", [BF16, F16])
def test_hopper(attention, element):
    plan = attention(element=element, fold=1, len_per_batch=1)
    assert plan["kernel"] == f"vidk_attention_sm90_{'f16' if element == F16 else 'bf16'}_d128"
    tile = LAUNCHES[plan["kernel"]]["tile"]
    assert plan["grid"] == [-(-300 // tile["rows"]), 3, 2]
    values = values_of(plan)
    assert values.pop("scale") == pytest.approx(0.09)
    assert values == {
        **{"kv_len": 0x60000, "lse": 0x50000, "with_lse": 1, "fold": 1, "len_stride": 1},
        **{"B": 2, "C": 1000, "H": 3, "S": 300},
    }
    maps = [p for p in LAUNCHES[plan["kernel"]]["params"] if p["type"] == "tensor_map"]
    sizes = {"128": 128, "B": 2, "C": 1000, "H": 3, "S": 300}
    bases = {"Q": 0x10000, "K": 0x20000, "V": 0x30000, "O": 0x40000}
    offsets = {name: offset for name, offset, _ in param_layout(plan["kernel"])}
    for described, made in zip(maps, plan["maps"], strict=True):
        tokens = sizes[described["dims"][1]]
        assert made == {
            "offset": offsets[described["name"]],
            "base": bases[described["name"]],
            "swizzle": {0: 0, 32: 1, 64: 2, 128: 3}[described["swizzle_bytes"]],
            "element_bytes": described["element_bytes"],
            "dim": [sizes[dim] for dim in described["dims"]],
            "stride": [3 * 256, 256, tokens * 3 * 256],
            "box": described["box"],
        }


@pytest.mark.parametrize("capability", [80, 86, 89, 100, 103, 120])
def test_other_devices(attention, capability):
    plan = attention(capability=capability, q_token=3 * 768, lse=0)
    assert plan["kernel"] == "vidk_attention_sm80_bf16_d128"
    tile = LAUNCHES[plan["kernel"]]["tile"]
    assert plan["grid"] == [-(-300 // tile["rows"]), 3, 2]
    values = values_of(plan)
    assert values.pop("scale") == pytest.approx(0.09)
    assert values == {
        **{"Q": 0x10000, "K": 0x20000, "V": 0x30000, "O": 0x40000, "kv_len": 0x60000, "lse": 0},
        **{"B": 2, "C": 1000, "H": 3, "S": 300, "fold": 0, "len_stride": 0, "with_lse": 0},
        **{"q_batch": 300 * 3 * 48, "q_token": 3 * 48, "q_head": 16},
        **{"k_batch": 1000 * 48, "k_token": 48, "k_head": 16},
        **{"v_batch": 1000 * 48, "v_token": 48, "v_head": 16},
    }


# What the tile kernels do not take, and the words for it.
OBSTACLES = {
    "old device": ({"capability": 75}, "compute capability 7.5, expected 8.0 or newer"),
    "float32": ({"element": F32, "dim_bytes": 512}, "float32, expected bfloat16 or float16"),
    "head dim": ({"dim_bytes": 128}, "D = 64, expected D = 128"),
    "scale": ({"scale_percent": -9}, "scale -0.090000, expected a positive one"),
    "no key": ({"capacity": 0}, "300 queries and 0 keys, expected 1 to "),
    "many folded": (
        {"element": F16, "fold": 1, "capacity": 65505},
        "65505 keys of float16, expected at most 65504 to fold",
    ),
    "heads": ({"heads": 65536}, "2 batch rows of 65536 heads, expected at most 65535 of each"),
    "stride": ({"k_token": 776}, "k of strides 776000, 776, 256 bytes at address "),
    "address": ({"v": 0x30008}, "expected an address that is a multiple of 16"),
}


@pytest.mark.parametrize(("numbers", "words"), OBSTACLES.values(), ids=OBSTACLES)
def test_obstacles(attention, numbers, words):
    element = ["f32", "bf16", "f16"][numbers.get("element", BF16)]
    assert attention(**numbers)["kernel"] == f"vidk_attention_simt_{element}"
    with pytest.raises(RuntimeError) as error:
        attention("tile", **numbers)
    text = str(error.value)
    assert text.startswith("vidk::attention: VIDK_ATTENTION: got 'tile' with ")
    assert words in text
    assert text.endswith(" (use VIDK_ATTENTION=auto or simt)")


def test_choice(attention):
    assert attention("auto") == attention("tile") == attention()
    assert attention("simt")["kernel"] == "vidk_attention_simt_bf16"
    with pytest.raises(RuntimeError) as error:
        attention("fast")
    assert str(error.value) == (
        "vidk::attention: VIDK_ATTENTION: got 'fast', expected 'auto', 'tile' or 'simt'"
    )


def test_strides_that_are_never_stepped_over(attention):
    plan = attention(batch=1, heads=1, tokens=1, q_token=6)
    assert plan["kernel"] == "vidk_attention_sm90_bf16_d128"
    assert all(stride % 16 == 0 for made in plan["maps"] for stride in made["stride"])


@pytest.mark.parametrize("empty", ["batch", "tokens", "heads"])
def test_nothing_to_do(attention, empty):
    assert attention(**{empty: 0})["kernel"] == ""


@pytest.mark.parametrize("width", [16, 8, 4, 2])
def test_kv_cache_write(dump, width):
    shift = {"k": 0x10000 + width, "v_cache_token": 768 + 16 * width}
    plan = dump("kv_cache_write", **SHAPE, **shift, frame_tokens=100, capability=90)
    assert plan["kernel"] == f"vidk_kv_cache_write_{width}B"
    assert plan["grid"] == [2 * 300, 1, 1]
    values = values_of(plan)
    tokens = {"k": 768, "v": 768, "k_cache": 768, "v_cache": 768 + 16 * width}
    rows = {"k": 300, "v": 300, "k_cache": 1000, "v_cache": 1000}
    assert values == {
        **{"k": 0x10000 + width, "v": 0x20000, "k_cache": 0x30000, "v_cache": 0x40000},
        **{"frame_slot": 0x50000, "frame_tokens": 100, "vectors": 256 // width},
        **{"B": 2, "C": 1000, "H": 3, "S": 300},
        **{f"{name}_head": 256 // width for name in tokens},
        **{f"{name}_token": tokens[name] // width for name in tokens},
        **{f"{name}_batch": tokens[name] * rows[name] // width for name in tokens},
    }


def test_kv_cache_write_refuses_what_its_indices_cannot_count(dump):
    shape = {**SHAPE, "capability": 90}
    for numbers in ({"frame_tokens": 2**31}, {"frame_tokens": 1, "batch": 2**30}):
        with pytest.raises(RuntimeError, match="expected counts that fit in 31 bits"):
            dump("kv_cache_write", **{**shape, **numbers})
    assert dump("kv_cache_write", **{**shape, "tokens": 0}, frame_tokens=1)["kernel"] == ""
