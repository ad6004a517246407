"""Launch plans: what the PTX expects of them, and what they refuse."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.kernels.launches import LAUNCHES, param_layout

from .launch import plans

F32, BF16, F16 = "f32", "bf16", "f16"
SHAPE = {"batch": 2, "tokens": 300, "heads": 3, "dim_bytes": 256, "capacity": 1000}
ATTENTION = {**SHAPE, "capability": 90, "element": BF16, "lse": 0x50000, "scale": 0.09}


def view(name: str, tokens: int, address: int, numbers: dict[str, Any]) -> tuple:
    """Describe a 2-byte tensor that is nowhere; `numbers` may move it and stretch its tokens."""
    heads, dim = numbers["heads"], numbers["dim_bytes"]
    step = numbers.get(f"{name}_token", heads * dim)
    sizes = [numbers["batch"], tokens, heads, dim // 2]
    return numbers.get(name, address), sizes, [tokens * step, step, dim, 2], 2


def attention(choice: str | None = None, **changes: Any) -> dict[str, Any]:
    """Plan an attention; `choice` is the value of VIDK_ATTENTION."""
    n = {**ATTENTION, **changes}
    q = view("q", n["tokens"], 0x10000, n)
    k, v = (view(x, n["capacity"], at, n) for x, at in (("k", 0x20000), ("v", 0x30000)))
    device = plans.DeviceInfo(n["capability"], 132)
    return plans.attention(
        n["element"], q, k, v, 0x40000, n["lse"], 0x60000, n.get("len_per_batch", False),
        n.get("fold", False), n["scale"], choice, device,
    )  # fmt: skip


def kv_cache_write(**changes: Any) -> dict[str, Any]:
    """Plan a kv_cache_write."""
    n = {**SHAPE, **changes}
    views = [
        view(name, n[length], at, n)
        for name, length, at in (
            ("k", "tokens", 0x10000),
            ("v", "tokens", 0x20000),
            ("k_cache", "capacity", 0x30000),
            ("v_cache", "capacity", 0x40000),
        )
    ]
    device = plans.DeviceInfo(90, 132)
    return plans.kv_cache_write(*views, 0x50000, n["frame_tokens"], device)


def values_of(plan: dict[str, Any]) -> dict[str, int | float]:
    """Return the value of every parameter that is no tensor map, read where the PTX reads it."""
    launch, data = LAUNCHES[plan["kernel"]], plan["args"]
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
def test_hopper(element: str) -> None:
    plan = attention(element=element, fold=True, len_per_batch=True)
    assert plan["kernel"] == f"vidk_attention_sm90_{element}_d128"
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
    assert plan["map_at"] == [offsets[described["name"]] for described in maps]
    for described, made in zip(maps, plan["maps"], strict=True):
        tokens = sizes[described["dims"][1]]
        assert made == {
            "base": bases[described["name"]],
            "mode": {0: 0, 32: 1, 64: 2, 128: 3}[described["swizzle_bytes"]],
            "size": described["element_bytes"],
            "dims": [sizes[dim] for dim in described["dims"]],
            "strides": [3 * 256, 256, tokens * 3 * 256],
            "box": described["box"],
        }


@pytest.mark.parametrize("capability", [80, 86, 89, 100, 103, 120])
def test_other_devices(capability: int) -> None:
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
    "scale": ({"scale": -0.09}, "scale -0.090000, expected a positive one"),
    "no key": ({"capacity": 0}, "300 queries and 0 keys, expected 1 to "),
    "many folded": (
        {"element": F16, "fold": True, "capacity": 65505},
        "65505 keys of float16, expected at most 65504 to fold",
    ),
    "heads": ({"heads": 65536}, "2 batch rows of 65536 heads, expected at most 65535 of each"),
    "stride": ({"k_token": 776}, "k of strides 776000, 776, 256 bytes at address "),
    "address": ({"v": 0x30008}, "expected an address that is a multiple of 16"),
}


@pytest.mark.parametrize(("numbers", "words"), OBSTACLES.values(), ids=OBSTACLES)
def test_obstacles(numbers: dict[str, Any], words: str) -> None:
    element = numbers.get("element", BF16)
    assert attention(**numbers)["kernel"] == f"vidk_attention_simt_{element}"
    with pytest.raises(RuntimeError) as error:
        attention("tile", **numbers)
    text = str(error.value)
    assert text.startswith("vidk::attention: VIDK_ATTENTION: got 'tile' with ")
    assert words in text
    assert text.endswith(" (use VIDK_ATTENTION=auto or simt)")


def test_choice() -> None:
    assert attention("auto") == attention("tile") == attention("") == attention()
    assert attention("simt")["kernel"] == "vidk_attention_simt_bf16"
    with pytest.raises(RuntimeError) as error:
        attention("fast")
    assert str(error.value) == (
        "vidk::attention: VIDK_ATTENTION: got 'fast', expected 'auto', 'tile' or 'simt'"
    )


def test_strides_that_are_never_stepped_over() -> None:
    plan = attention(batch=1, heads=1, tokens=1, q_token=6)
    assert plan["kernel"] == "vidk_attention_sm90_bf16_d128"
    assert all(stride % 16 == 0 for made in plan["maps"] for stride in made["strides"])


@pytest.mark.parametrize("empty", ["batch", "tokens", "heads"])
def test_nothing_to_do(empty: str) -> None:
    assert attention(**{empty: 0})["kernel"] == ""


@pytest.mark.parametrize("width", [16, 8, 4, 2])
def test_kv_cache_write(width: int) -> None:
    shift = {"k": 0x10000 + width, "v_cache_token": 768 + 16 * width}
    plan = kv_cache_write(**shift, frame_tokens=100)
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


def test_kv_cache_write_refuses_what_its_indices_cannot_count() -> None:
    for numbers in ({"frame_tokens": 2**31}, {"frame_tokens": 1, "batch": 2**30}):
        with pytest.raises(
            RuntimeError,
            match=r"x 300 tokens of .* vectors in frames of .*counts that fit in 31 bits",
        ):
            kv_cache_write(**numbers)
    assert kv_cache_write(tokens=0, frame_tokens=1)["kernel"] == ""


def test_rope_refuses_more_tiles_than_a_grid_holds() -> None:
    x = view("x", 2**24, 0, {"batch": 2**24, "heads": 1, "dim_bytes": 16})
    grid = (0, 1, 0, 0, 1, 4, 0, 1, 1, 0, 1)
    with pytest.raises(
        RuntimeError, match=r"x: got \d+ tiles of work, expected at most 2147483647"
    ):
        plans.rope_3d(BF16, x, x, grid, plans.DeviceInfo(90, 132))
