"""Kernels move no byte too many: what bench/simulate.py counts at full size is held to floors."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest
import torch

from vidk.bench.cases import SHAPES
from vidk.ops.registry import OPS

from . import has_nvcc, ops
from .build import ROOT
from .launch import ARCHS

pytestmark = pytest.mark.skipif(not has_nvcc(), reason="no nvcc to compile the kernels")


def load() -> Any:
    spec = importlib.util.spec_from_file_location("simulate", ROOT / "bench" / "simulate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


simulate = load()
ATTENTIONS = ("attention", "fp4_attention")
NO_FLOAT32 = (*ATTENTIONS, "fp4_kv")
every_gpu = pytest.mark.parametrize("gpu", simulate.GPUS, ids=lambda gpu: gpu.arch)
every_case = pytest.mark.parametrize(
    "case", list(simulate.cases()), ids=lambda case: f"{case.op}-{case.model}"
)


@every_gpu
@every_case
def test_full_size(case: Any, gpu: Any) -> None:
    row = simulate.simulate(case, gpu)
    assert row.local == 0
    assert row.conflicts == 1
    # The four scales of a row are 4 bytes of every 16 of their tile.
    assert row.efficiency >= (0.88 if case.op == "fp4_attention" else 0.95)
    if OPS[case.op].family not in ATTENTIONS:
        # Signals take some ten sectors a thread block.
        assert row.traffic <= (1.06 if case.op == "all_gather_rope" else 1.05)
        assert row.unique <= 1.01 * case.cost.bytes


@every_gpu
@pytest.mark.parametrize("model", ["1.3b-480p", "14b-480p"])
def test_attention(model: str, gpu: Any) -> None:
    """Every tile of queries reads keys and values once; hardly a product is wasted."""
    (case,) = (c for c in simulate.cases() if (c.op, c.model) == ("attention", model))
    row = simulate.simulate(case, gpu)
    tiles = 2 if gpu.arch == "sm_90a" else 4  # of the 256 queries
    assert row.traffic <= 1.02 * tiles
    assert case.cost.flops <= row.flops <= 1.02 * case.cost.flops


@every_gpu
def test_fp4_attention(gpu: Any) -> None:
    """The same; the last tile of a frame, of 24 keys, may be computed in steps of up to 128."""
    (case,) = (c for c in simulate.cases() if (c.op, c.model) == ("fp4_attention", "1.3b-480p"))
    row = simulate.simulate(case, gpu)
    tiles = 1 if gpu.arch == "sm_100a" else 2  # of the 256 queries; that kernel takes two at once
    assert row.traffic <= 1.15 * tiles
    assert case.cost.flops <= row.flops <= 13 * 128 / 1560 * 1.03 * case.cost.flops


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", [name for name in OPS if OPS[name].family not in NO_FLOAT32])
def test_float32(name: str, arch: str) -> None:
    shape = SHAPES["1.3b-480p"].block
    args, kwargs = OPS[name].sample(shape, torch.float32, "cpu", torch.Generator().manual_seed(0))
    on = ops.Sim(arch, {"checks": False})
    getattr(ops, name)(on, *args, **kwargs)
    (report,) = on.reports
    load, store = report["global_load"], report["global_store"]
    cost = OPS[name].cost(shape, torch.float32)
    assert 32 * (load["sectors"] + store["sectors"]) <= 1.05 * cost.bytes
    signals = store["bytes"] - cost.written  # a word in a sector, one for each block and a few more
    assert store["sectors"] == cost.written // 32 + signals // 4
    blocks = shape.tokens if name == "all_gather_rope" else 0
    assert 0 <= signals <= 4 * blocks
    assert report["local_bytes"] == 0


def test_page_is_current() -> None:
    stale = "docs/simulated.md is stale: run python bench/simulate.py --write"
    assert simulate.PAGE.read_text() == simulate.page(), stale
