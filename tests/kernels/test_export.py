"""The committed PTX: is it what the TileLang sources give, and does it hold what they promise."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest

from tests.kernels.launches import LAUNCHES, PTX, ROOT, TYPES, entry_text, param_layout

HOPPER = [entry for entry in LAUNCHES if "sm90" in entry]
AMPERE = [entry for entry in LAUNCHES if "attention_sm80" in entry]
COPIES = [entry for entry in LAUNCHES if "kv_cache_write" in entry]


@pytest.mark.skipif(
    importlib.util.find_spec("tilelang") is None, reason="tilelang is not installed"
)
def test_export_is_current():
    done = subprocess.run(
        [sys.executable, ROOT / "kernels" / "export.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_entry_is_described():
    text = "".join(path.read_text() for path in PTX.glob("*.ptx"))
    assert sorted(re.findall(r"^\.visible \.entry (\w+)\($", text, re.M)) == sorted(LAUNCHES)
    assert {launch["file"] for launch in LAUNCHES.values()} == {p.name for p in PTX.glob("*.ptx")}


@pytest.mark.parametrize("entry", LAUNCHES)
def test_parameters(entry):
    launch = LAUNCHES[entry]
    header, body = entry_text(entry).split("{", 1)
    params = launch["params"]
    assert [name for name, _, _ in param_layout(entry)] == [param["name"] for param in params]
    for param in params:
        if param["type"] == "tensor_map":
            assert f".param .align 128 .b8 arg_{param['name']}[128]" in header
            # Its address goes to the copy instructions; it is never read as data.
            assert not re.search(rf"ld\.param\S* \S+ \[arg_{param['name']}\b", body)
        else:
            assert f".param {TYPES[param['type']]} arg_{param['name']}" in header
    assert f".maxntid {launch['threads']}, 1, 1" in header


@pytest.mark.parametrize("entry", LAUNCHES)
def test_no_local_memory_and_nothing_of_the_machine(entry):
    body = entry_text(entry)
    assert ".local" not in body
    assert not re.search(r"\.(file|loc|section)\b|/", body)


def test_shared_memory_fits():
    for entry in HOPPER:
        static = sum(
            map(int, re.findall(r"\.shared \.align 16 \.b8 \w+\[(\d+)\]", entry_text(entry)))
        )
        # 227 KiB for a block, 1 KiB of alignment and the barriers.
        assert LAUNCHES[entry]["shared_bytes"] + 1024 + static <= 227 << 10
    for entry in AMPERE:
        assert LAUNCHES[entry]["shared_bytes"] <= 48 << 10  # so that nothing has to be asked for


@pytest.mark.parametrize("entry", HOPPER)
def test_hopper_instructions(entry):
    body = entry_text(entry)
    tile = LAUNCHES[entry]["tile"]
    kind = "f16.f16" if "_f16_" in entry else "bf16.bf16"
    # Q K^T twice (first tile, loop) over D / 16, P V twice over keys / 16.
    assert body.count(f"wgmma.mma_async.sync.aligned.m64n{tile['keys']}k16.f32.{kind}") == 2 * 8
    product = f"wgmma.mma_async.sync.aligned.m64n128k16.f32.{kind}"
    assert body.count(product) == 2 * (tile["keys"] // 16)
    # Q K^T of a tile stays under way behind P V of the tile before it.
    assert "wgmma.wait_group.sync.aligned 1" in body
    assert "cp.async.bulk.tensor.4d.shared::cta.global" in body
    assert "cp.async.bulk.tensor.4d.global.shared::cta" in body
    assert "setmaxnreg.inc.sync.aligned.u32 240" in body
    assert "setmaxnreg.dec.sync.aligned.u32 24" in body
    # Loads and stores of tensors are all TMA's; what is left are lengths and the log-sum-exp.
    assert re.findall(r"\bld\.global\S*", body) == ["ld.global.nc.u32"]
    assert set(re.findall(r"\bst\.global\S*", body)) == {"st.global.f32"}


@pytest.mark.parametrize("entry", HOPPER)
def test_hopper_tensor_maps(entry):
    tile = LAUNCHES[entry]["tile"]
    maps = {p["name"]: p for p in LAUNCHES[entry]["params"] if p["type"] == "tensor_map"}
    assert maps.keys() == set("KOQV")
    for name, param in maps.items():
        rows = tile["keys"] if name in "KV" else tile["rows"]
        tokens = "C" if name in "KV" else "S"
        assert param["dims"] == ["128", tokens, "H", "B"]
        assert param["box"] == [64, rows, 1, 1]
        assert (param["element_bytes"], param["swizzle_bytes"]) == (2, 128)


@pytest.mark.parametrize("entry", AMPERE)
def test_ampere_instructions(entry):
    body = entry_text(entry)
    kind = "f16.f16" if "_f16_" in entry else "bf16.bf16"
    products = body.count(f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.f32")
    tile = LAUNCHES[entry]["tile"]
    # Four warps of 16 rows; Q K^T and P V, first tile and loop, or loop and last tile.
    assert products == 4 * (tile["keys"] // 8) * (128 // 16)
    loads = re.findall(r"\bcp\.async\.c[ag]\S* \[\S+\], \[\S+\], (\d+)", body)
    assert loads and set(loads) == {"16"}
    assert "ldmatrix.sync.aligned.x4" in body
    assert set(re.findall(r"\bst\.global\S*", body)) == {"st.global.f32", "st.global.v4.u32"}


@pytest.mark.parametrize("entry", COPIES)
def test_copy_instructions(entry):
    width = LAUNCHES[entry]["tile"]["vector_bytes"]
    kind = {16: "v4.u32", 8: "v4.u16", 4: "v2.u16", 2: "u16"}[width]
    body = entry_text(entry)
    moves = re.findall(r"\b(ld|st)\.global(?:\.nc)?\.(\S+)", body)
    # One 32-bit load of the slot; then k and v are both on their way before either is stored.
    assert moves[0] == ("ld", "u32")
    assert moves[1:] == [(what, kind) for what in ("ld", "ld", "st", "st")] * (len(moves) // 4)
    # Divisions in the loop are of 32 bits.
    assert not re.search(r"\b(div|rem)\.[su]64", body)
