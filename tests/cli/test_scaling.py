"""`vidk plan`."""

from __future__ import annotations

import json

import pytest

from vidk.cli import main
from vidk.models import CONFIGS
from vidk.parallel import choose_sharding
from vidk.parallel.cost import ACCELERATORS, LINKS, estimate


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict]:
    assert main(["plan", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_patterns_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    rows = plan(capsys, "--model", "14b", "--size", "480x832", "--gpus", "8")
    assert [r["exchange"] for r in rows] == ["heads", "hybrid", "gather"]
    best = choose_sharding(CONFIGS["wan-14b"], ranks=8, frame_tokens=1560, frames=3, itemsize=2)
    assert rows[0]["layer_bytes"] == best.layer_bytes == 4 * 585 * 5120 * 2 * 7 // 8
    assert rows[0]["forward_bytes"] == best.forward_bytes
    assert rows[0]["tokens"] == 585 and rows[0]["padding"] == 0
    whole = 2 * 40 * 21 * 1560 * 5120 * 2
    assert [r["cache_bytes"] for r in rows] == [whole // 8, whole // 4, whole]
    assert {r["weight_bytes"] for r in rows} == {rows[0]["weight_bytes"]}


@pytest.mark.parametrize(("kv", "key_row", "value_row"), [
    ("bf16", 256, 256), ("nvfp4", 64 + (8 * 1664 + 13 * 256) / 1560, 256),
    ("fp8", 128 + 4 * 1664 / 1560, 128),
])  # fmt: skip
def test_quantised_caches(
    kv: str, key_row: float, value_row: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Codes, scales and means of 40 layers of 40 heads, and the values."""
    (row, *_) = plan(capsys, "--model", "14b", "--gpus", "8", "--kv", kv)
    assert row["cache_bytes"] == 40 * 5 * 21 * 1560 * (key_row + value_row)


def test_every_number_of_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    rows = plan(capsys)
    assert {r["ranks"] for r in rows} == {1, 2, 4, 8, 16, 32, 64}
    assert rows[0]["efficiency"] == 1 and rows[0]["communication_s"] == 0
    for row in rows[1:]:
        assert 0 < row["efficiency"] < 1
        assert row["communication_s"] > 0
    assert "heads" not in {r["exchange"] for r in rows if r["ranks"] == 8}


def test_slower_links_take_longer(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = [
        plan(capsys, "--gpus", "4", "--link", link)[0]["communication_s"]
        for link in ("nvlink5", "nvlink4", "pcie5", "ib", "pcie4")
    ]
    assert seconds == sorted(seconds) and len(set(seconds)) == 5


def test_times_are_what_they_say() -> None:
    sharding = choose_sharding(CONFIGS["wan-14b"], ranks=7, frame_tokens=1560, frames=3, itemsize=2)
    link, gpu = LINKS["pcie5"], ACCELERATORS["a100"]
    e = estimate(sharding, 10**15, weights=1, cache=1, link=link, accelerator=gpu)
    padded = (4680 + sharding.layout().padding(3)) / 4680
    assert e.compute == pytest.approx(10**15 / (0.5 * 312e12) * padded / 7)
    messages = 40 * sharding.layer_messages + 6
    assert e.communication == pytest.approx(sharding.forward_bytes / (0.8 * 64e9) + messages * 8e-6)
    assert e.efficiency == pytest.approx(10**15 / (0.5 * 312e12) / 7 / e.seconds)


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", "14b", "--gpu", "rtx5090", "--link", "pcie5"]) == 0
    text = capsys.readouterr().out
    assert "Times are estimates, no measurement" in text
    assert "does not fit" in text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--gpus", "0"), "--gpus: got 0, expected a whole number from 1 to 1024"),
        (("--link", "x"), "--link: got x, expected nvlink4"),
        (("--size", "17x32"), "--size: got 17x32, expected multiples of 16x16"),
        (("--model", "x"), "--model: config: got 'x', expected one of"),
        (("--window", "2"), "--window: got 2, expected at least 3, the frames of a block"),
        (("--kv", "int4"), "--kv: got int4, expected bf16, nvfp4 or fp8"),
        (("--model", "tiny", "--kv", "fp8"), "head_dim: got 32, expected a multiple of 128"),
        (("--size", "16x16", "--gpus", "4"), "--gpus: vidk.parallel: ranks: got 4, expected at"),
    ],
)
def test_errors(words: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    assert text in capsys.readouterr().err
