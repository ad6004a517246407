"""`vidk bench`: arguments, files, exit codes."""

import argparse
import json

import pytest
import torch

from vidk.cli import bench


@pytest.fixture
def command():
    parser = argparse.ArgumentParser(prog="vidk")
    bench.add_parser(parser.add_subparsers())

    def call(*words):
        args = parser.parse_args(["bench", *map(str, words)])
        return args.run(args)

    return call


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("roped",), "vidk bench: op: got 'roped', expected one of rope_3d, "),
        (("--shape", "5b"), "vidk bench: --shape: got '5b', expected one of 1.3b-480p, "),
        (("--repeat", "0"), "vidk bench: --repeat: got 0, expected at least 1"),
        (("--threads", "-2"), "vidk bench: --threads: got -2, expected at least 1"),
        (("--end-to-end", "--layers", "0"), "vidk bench: --layers: got 0, "),
        (("--device", "tpu"), "vidk bench: --device: got 'tpu', expected cpu or cuda"),
        (("--json", "/absent/folder/x.json"), "vidk bench: --json: got /absent/folder/x.json"),
        (("--compare", "a", "b", "--percent", "nan"), "vidk bench: --percent: got nan, "),
        (("--compare", "/absent/a", "/absent/b"), "vidk bench: --compare: /absent/a cannot"),
    ],
)
def test_wrong_input_is_one_sentence(command, words, message):
    with pytest.raises(ValueError) as error:
        command(*words)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_absent_gpu_is_one_sentence(command):
    with pytest.raises(ValueError, match="--device: got 'cuda', expected cpu, since this PyTorch"):
        command("--device", "cuda")


@pytest.mark.parametrize("words", [("--dtype", "int8"), ("--repeat", "many"), ("--compare", "a")])
def test_unparsable_arguments_exit_with_2(command, words, capsys):
    with pytest.raises(SystemExit) as stop:
        command(*words)
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_run_and_compare(command, light, tmp_path, capsys):
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    words = ("kv_cache_write", "kv_cache_write", "--shape", "tiny", "--repeat", 3, "--quick")
    assert command(*words, "--dtype", "float32", "--json", before) == 0
    assert "kv_cache_write" in capsys.readouterr().out
    document = json.loads(before.read_text())
    assert [c["op"] for c in document["cases"]] == ["kv_cache_write"]
    assert document["policy"]["repeat"] == 3 and document["end_to_end"] is None
    assert command("--compare", before, before) == 0
    document["cases"][0]["seconds"]["op"]["median"] += 1.0
    after.write_text(json.dumps(document))
    assert command("--compare", before, after) == 1
    assert command("--compare", after, before) == 0
    assert command("--compare", before, after, "--absolute-ms", 2000) == 0


def test_end_to_end_leaves_the_ops_out(command, light, tmp_path, capsys):
    out = tmp_path / "out.json"
    words = ("--end-to-end", "--shape", "tiny", "--layers", 1, "--repeat", 1, "--json", out)
    assert command(*words, "--dtype", "float32") == 0
    document = json.loads(out.read_text())
    assert document["cases"] == [] and document["end_to_end"]["layers"] == 1
    assert "vidk, compiled" in capsys.readouterr().out
