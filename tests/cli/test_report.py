"""Sizes, devices, counts and rates of a run, without the run."""

from __future__ import annotations

import argparse
import re
import statistics

import pytest
import torch

from tests.cli.helpers import TINY
from vidk.cli import inputs, kv, plan, report
from vidk.cli.stream import BlockTimes
from vidk.cli.values import OptionError
from vidk.models import CONFIGS
from vidk.models.flops import forward_flops


def test_graphs_are_counted():
    torch._dynamo.reset()
    count = report.GraphCount()
    assert count.result() == {"graphs": 0, "breaks": 0, "recompiles": []}

    @torch.compile(backend="eager", dynamic=False)
    def f(x):
        y = x + 1
        torch._dynamo.graph_break()
        return y * 2

    f(torch.zeros(2))
    assert count.result() == {"graphs": 2, "breaks": 1, "recompiles": []}
    f(torch.zeros(3))
    found = count.result()
    assert found["graphs"] == 4
    assert any("expected 2, actual 3" in reason for reason in found["recompiles"])
    assert report._graphs({"compiled": True, **found}).startswith(
        f"4 compiled, {found['breaks']} breaks, {len(found['recompiles'])} recompilations; 0/0: "
    )
    assert report.GraphCount().result() == {"graphs": 0, "breaks": 0, "recompiles": []}


def test_forwards_that_compiled_are_apart():
    def block(latents, *forwards):
        return BlockTimes(latents, 4 * latents, 3, forwards, sum(forwards), 1.0, 1.0)

    blocks = [block(1, 9.0, 1.0, 2.0), block(3, 8.0, 3.0, 2.0), block(3, 4.0, 5.0, 2.0)]
    sizes = {"frame_tokens": 6, "text_keys": 8}
    cold = report.summarize(TINY, blocks, compiled=True, **sizes)
    assert (cold["warm_forwards"], cold["forward"], cold["clean_forward"]) == (4, 3.5, 2.0)
    assert cold["steady_blocks"] == 1 and cold["steady_block"]["total"] == 13.0
    assert cold["frames_per_second"] == 12 / 13
    assert cold["first_block"] == 14.0
    eager = report.summarize(TINY, blocks, compiled=False, **sizes)
    assert (eager["warm_forwards"], eager["forward"]) == (6, 4.5)
    assert eager["steady_blocks"] == 2
    flops = [forward_flops(TINY, frames=n, kv_frames=3, **sizes) for n in (1, 1, 3, 3, 3, 3)]
    rates = [f / t for f, t in zip(flops, (9, 1, 8, 3, 4, 5), strict=True)]
    assert eager["flops_per_second"] == pytest.approx(statistics.median(rates))
    one = report.summarize(TINY, blocks[:1], compiled=False, **sizes)
    assert one["frames_per_second"] is None and one["steady_block"]["total"] is None


@pytest.mark.parametrize(
    ("frames", "block", "single", "given", "blocks"),
    [
        (1, 3, False, 0, (3,)),
        (9, 3, False, 0, (3,)),
        (10, 3, False, 0, (3, 3)),
        (81, 3, False, 0, (3,) * 7),
        (81, 1, False, 0, (1,) * 21),
        (1, 3, True, 0, (1,)),
        (2, 3, True, 0, (1, 3)),
        (13, 3, True, 0, (1, 3)),
        (14, 3, True, 0, (1, 3, 3)),
        (10, 3, False, 3, (3,)),
        (14, 3, True, 1, (3, 3)),
    ],
)
def test_plan(frames, block, single, given, blocks):
    made = plan.make_plan(
        size=(32, 48),
        frames=frames,
        scale=8,
        block=block,
        window=None,
        sink=0,
        single_first=single,
        given=given,
    )
    assert made.blocks == blocks
    assert plan.pixel_frames(given + sum(blocks)) >= frames
    assert made.slots == max(block, min(21, given + sum(blocks)))
    assert made.latent == (4, 6)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    kernels = {"attention": "vidk CUDA"}
    monkeypatch.setattr(inputs, "kernel", lambda op, device: kernels.get(op))
    device, note = inputs.pick_device(None)
    assert device.type == "cpu"
    assert note == (
        "the GPU is not used, since this build has no CUDA kernel for qk_norm_rope_kv_write, "
        "cross_attention"
    )
    with pytest.raises(OptionError, match="--device: got cuda, expected cpu, since this build"):
        inputs.pick_device("cuda")
    with pytest.raises(OptionError, match="--device: got cuda:2, expected one of the 2 GPUs here"):
        inputs.pick_device("cuda:2")
    kernels.update(dict.fromkeys(inputs.MODEL_OPS, "vidk CUDA"))
    assert inputs.pick_device(None) == (torch.device("cuda"), None)
    assert inputs.pick_device("cuda:1") == (torch.device("cuda:1"), None)


def test_numbers_for_reading():
    assert report._count(7.04e9) == "7.04 G"
    assert report._count(2) == "2 "
    assert report._rate(90.6e9) == "90.6 GFLOP/s"
    assert report._seconds(0.0304) == "30.4 ms"
    assert report._seconds(128.9) == "129 s"


def test_quantised_keys_on_a_gpu():
    args = argparse.Namespace(kv="nvfp4", attention="auto", fp4_recipe=None)
    device, config = torch.device("cuda"), CONFIGS["bundled"]
    text = "--kv: got nvfp4 on cuda for heads of 128 in float32, expected heads of 128 in bfloat16"
    with pytest.raises(OptionError, match=re.escape(text)):
        kv.choose_kind(args, config, torch.float32, device)
    assert kv.choose_kind(args, config, torch.bfloat16, device).name == "nvfp4"
    assert kv.choose_kind(args, config, torch.float32, torch.device("cpu")).recipe == "default"
