"""The GPU benchmarks' own arithmetic, with a clock that needs no GPU."""

import json

import pytest
import torch

from vidk.bench import gpu_model, gpu_ops
from vidk.bench.device_clock import calls_in_graph
from vidk.bench.timer import Clock, Stat
from vidk.models import CONFIGS


def fake_clock(calls):
    """Run each call once; say that it took a microsecond for each of its calls."""
    for call in calls:
        call()
    return Stat(1e-6, 1e-6, 1e-6, len(calls))


@pytest.mark.parametrize(
    ("bytes_", "calls"), [(10**9, 2), (96 << 20, 3), (60 << 20, 4), (1, 64), (0, 64)]
)
def test_calls_fill_the_cache_several_times(bytes_, calls):
    assert calls_in_graph(bytes_, 60 << 20) == calls


def test_ops_document(monkeypatch):
    monkeypatch.setattr(gpu_ops, "BACKENDS", ("MATH", "CUDNN_ATTENTION"))
    document = gpu_ops.run("cpu", 1 << 12, fake_clock, tiny=True)
    document = json.loads(json.dumps(document))
    assert [c["op"] for c in document["memory"]] == list(gpu_ops.MEMORY_BOUND)
    for case in document["memory"]:
        assert case["fraction_of_same_copy"] == 1.0
        assert case["bytes_per_s"] == pytest.approx(1e6 * case["bytes"])
        share = case["bytes"] / 2**20
        assert case["fraction_of_copy_bandwidth"] == pytest.approx(share)
    (case,) = document["attention"]
    assert case["flops"] == 4 * 9 * 20 * 2 * 128
    assert case["best"] == "MATH" and case["speedup_over_best"] == 1.0
    assert "CUDNN_ATTENTION" in case["refused"]
    (case,) = document["fp4_attention"]
    assert set(case["seconds"]) == {"attention", "fp4_attention"}
    assert case["speed_of_attention"] == 1.0
    text = gpu_ops.table(document)
    assert "1.00x MATH" in text and "CUDNN_ATTENTION refused" in text


@pytest.mark.parametrize(
    ("spans", "share"),
    [
        ([(0, 10)], 1.0),
        ([(0, 10), (10, 20)], 1.0),
        ([(15, 20), (0, 5)], 0.5),
        ([(0, 10), (2, 5), (8, 12), (18, 20)], 0.7),  # kernels may overlap
    ],
)
def test_busy_share(spans, share):
    assert gpu_model.busy_share(spans) == pytest.approx(share)


@torch.no_grad()
def test_model_document(light):
    spans = [(0.0, 9.0), (10.0, 20.0)]

    def seen(call):
        call()
        return spans

    tiny = {"small": CONFIGS["tiny"], "large": CONFIGS["tiny"], "size": (8, 12)}
    document = gpu_model.run("cpu", Clock("cpu"), seen, dtype=torch.float32, **tiny)
    document = json.loads(json.dumps(document))
    assert {b["kv_frames"] for b in document["blocks"].values()} == {3, 18}
    for block in document["blocks"].values():
        assert block["busy_share"] == {"eager": 0.95, "compiled": 0.95}
        assert block["compiled_over_eager"] > 0
    assert document["public"]["speedup_over_public"] > 0
    assert "95.0%" in gpu_model.table(document)


@torch.no_grad()
def test_forms_of_a_step_agree():
    """What is timed as the same is the same: public sequence and vidk, on one full window."""
    model = gpu_model.Model(CONFIGS["tiny"], (8, 12), torch.float32, "cpu")
    model.fill(6)
    public = gpu_model.PublicForm(model.model, model.context, model.cache, 21)
    model.cache.place(21, 3)
    ours, theirs = model.forward(model.model), public(model.latents, model.timesteps)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_is_one_sentence(monkeypatch):
    monkeypatch.setattr("sys.argv", ["gpu_ops"])
    for module in (gpu_ops, gpu_model):
        with pytest.raises(SystemExit, match="got no CUDA device, expected one"):
            module.main()
