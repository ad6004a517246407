"""The document of a run, and the check that comes before the clock."""

import dataclasses
import json

import pytest
import torch

from tests.bench.helpers import REPEAT, tiny_plan
from vidk import reference
from vidk.bench import baselines
from vidk.bench.baselines import BASELINES, Baseline, Contender, Mismatch, check_same
from vidk.bench.cases import SHAPES, Call
from vidk.bench.report import SCHEMA_VERSION, table, write_json
from vidk.bench.run import run
from vidk.ops.registry import OPS

STATS = ("fraction_of_limit", "ratio_to_copy", "speedup_over_public", "speedup_over_compiled")


def check_stat(stat, n=REPEAT):
    assert set(stat) == {"median", "p10", "p90", "n"}
    assert 0 < stat["p10"] <= stat["median"] <= stat["p90"]
    assert stat["n"] == n


def test_every_op_has_baselines():
    assert set(BASELINES) == set(OPS)


def test_shapes_are_those_of_the_models():
    for name, heads in (("1.3b-480p", 12), ("14b-480p", 40)):
        block = SHAPES[name].block
        assert (block.tokens, block.heads, block.head_dim) == (4680, heads, 128)


def test_document(tiny_document):
    document = json.loads(json.dumps(tiny_document))
    assert document["schema"] == SCHEMA_VERSION
    env = document["environment"]
    assert env["vidk"]["version"] and env["cpu"] and env["threads"] >= 1
    assert len(env["load_average"]) == 3
    assert {"warm_up", "rounds", "cache_frames", "flush"} <= set(document["policy"])
    check_stat(document["machine"]["copy_bytes_per_s"], n=7)
    check_stat(document["machine"]["matmul_flops_per_s"]["float32"], n=7)


@pytest.mark.parametrize("name", OPS)
def test_case(tiny_document, name):
    (case,) = (c for c in tiny_document["cases"] if c["op"] == name)
    assert case["status"] == "measured"
    assert (case["shape"], case["dtype"], case["device"]) == ("tiny", "float32", "cpu")
    cost = OPS[name].cost(SHAPES["tiny"].block, torch.float32)
    assert (case["bytes"], case["flops"]) == (cost.bytes, cost.flops)
    fresh = {"fresh_copy"} if case["bound"] == "copy" else set()
    assert set(case["seconds"]) == {"op", "copy", "limit", "public", "compiled"} | fresh
    assert (case["ratio_to_fresh_copy"] is not None) == bool(fresh)
    for stat in (*case["seconds"].values(), *(case[s] for s in STATS), case["bytes_per_s"]):
        check_stat(stat)
    errors = case["check"]["worst_token_error"]
    assert set(errors) == {"public", "compiled"}
    assert all(0 <= e <= case["check"]["tolerance"] for e in errors.values())


def test_table(tiny_document):
    text = table(tiny_document)
    for name, op in OPS.items():
        assert sum(line.startswith(name + " ") for line in text.splitlines()) == 1
        assert f"floor of {name}: {op.floor}" in text
    assert "vidk, compiled" in text
    assert max(map(len, text.splitlines())) <= 130


def test_written_file_is_the_document(tiny_document, tmp_path):
    path = tmp_path / "run.json"
    write_json(tiny_document, path)
    assert json.loads(path.read_text()) == json.loads(json.dumps(tiny_document))
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_generated_code_passes_the_check():
    document = run(tiny_plan(ops=("rope_3d",), dtype=torch.bfloat16))
    (case,) = document["cases"]
    assert case["compile_failure"] is None
    assert set(case["check"]["worst_token_error"]) == {"public", "compiled"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OPS)
def test_forms_agree_in_every_dtype(name, dtype):
    call = Call.sample(OPS[name], SHAPES["tiny"].block, dtype, "cpu")
    mutated = tuple(call.args[m] for m in OPS[name].mutates)
    expected = Contender(lambda: OPS[name].function(**call.args), (), mutated).results()
    fresh = Call.sample(OPS[name], SHAPES["tiny"].block, dtype, "cpu")
    for form in (BASELINES[name].public, BASELINES[name].plain):
        check_same(name, "tested", form(fresh).results(), expected)


def shifted_rope(call):
    """The public form, one frame late."""
    freqs = baselines.public_freqs(call.shape.head_dim, call.device)
    start = int(call.args["frame_pos"][0]) + 1
    return Contender(reference.rope_3d_public, (call.args["x"], freqs, start, call.grid))


def test_wrong_public_form_stops_the_run(monkeypatch, light):
    right = BASELINES["rope_3d"]
    monkeypatch.setitem(BASELINES, "rope_3d", Baseline(shifted_rope, right.plain))
    with pytest.raises(Mismatch, match=r"rope_3d: the public form differs .* nothing was timed"):
        run(tiny_plan(ops=("rope_3d",)))


def test_wrong_plain_form_stops_the_run(monkeypatch, light):
    right = BASELINES["rope_3d"]
    monkeypatch.setitem(BASELINES, "rope_3d", Baseline(right.public, shifted_rope))
    with pytest.raises(Mismatch, match="rope_3d: the compiled form differs"):
        run(tiny_plan(ops=("rope_3d",)))


@pytest.mark.parametrize("damage", [0.5, float("nan")])
def test_one_wrong_value_in_a_cache_is_found(damage):
    cache = torch.randn(1, 4680, 12, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    wrong = cache.clone()
    wrong[0, 4000] *= damage
    assert check_same("op", "public", [cache], [cache]) == 0
    with pytest.raises(Mismatch):
        check_same("op", "public", [wrong], [cache])
    with pytest.raises(Mismatch, match="gave"):
        check_same("op", "public", [cache[:, :-1]], [cache])
    with pytest.raises(Mismatch, match="0 tensors"):
        check_same("op", "public", [], [cache])


def test_op_without_a_kernel_is_reported(monkeypatch, light):
    def no_kernel(*args, **kwargs):
        raise ImportError("vidk::rope_3d: this build has no CUDA kernel for it")

    broken = dataclasses.replace(OPS["rope_3d"], function=no_kernel)
    monkeypatch.setitem(OPS, "rope_3d", broken)
    document = run(tiny_plan(ops=("rope_3d", "kv_cache_write")))
    assert [c["status"] for c in document["cases"]] == ["no kernel", "measured"]
    assert "rope_3d tiny: no kernel: vidk::rope_3d: this build has no CUDA" in table(document)


def test_form_that_cannot_be_compiled_is_reported(monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **kw: compile_(f, backend=broken, **kw))
    document = run(tiny_plan(ops=("rope_3d",)))
    (case,) = document["cases"]
    assert case["status"] == "measured" and case["speedup_over_compiled"] is None
    assert "no compiler here" in case["compile_failure"]
    check_stat(case["speedup_over_public"])
    assert "not compiled" in table(document)


def test_long_cases_lose_heads(light):
    document = run(tiny_plan(ops=("attention", "rope_3d"), limit_s=1e-9))
    heads = {c["op"]: c["sizes"]["heads"] for c in document["cases"]}
    assert heads == {"attention": 1, "rope_3d": 2}
    assert "attention tiny: measured on 1 of 2 heads" in table(document)
