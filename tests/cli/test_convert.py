"""`vidk convert`."""

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vidk.cli import convert
from vidk.models.checkpoint import open_checkpoint
from vidk.models.containers import CheckpointError

GOLDEN = Path(__file__).parents[1] / "data" / "golden_diffusers" / "d128"
WEIGHTS = GOLDEN / "weights_bf16.safetensors"


def run(*words):
    parser = argparse.ArgumentParser(exit_on_error=False)
    convert.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["convert", *map(str, words)])
    assert args.run is convert.run
    return args.run(args)


@pytest.mark.parametrize(
    ("name", "layout"),
    {
        "a.pt": "original",
        "a.pth": "original",
        "a.safetensors": "original",
        "a": "diffusers",
    }.items(),
)
def test_layout_follows_the_name(tmp_path, capsys, name, layout):
    assert run(WEIGHTS, tmp_path / name) == 0
    with open_checkpoint(tmp_path / name) as c:
        assert c.layout == layout and len(c.entries) == 42
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"read  {WEIGHTS} (diffusers names, 42 tensors")
    part = ", generator_ema" if name.startswith("a.pt") else ""
    assert out[1].startswith(f"wrote {tmp_path / name} ({layout} names{part}, 42 tensors")


def test_there_and_back(tmp_path):
    run(WEIGHTS, tmp_path / "a.safetensors", "--to", "original")
    run(tmp_path / "a.safetensors", tmp_path / "b.pt")
    run(tmp_path / "b.pt", tmp_path / "c.safetensors", "--to", "diffusers", "--key", "generator")
    found, golden = load_file(tmp_path / "c.safetensors"), load_file(WEIGHTS)
    assert found.keys() == golden.keys()
    assert all(torch.equal(found[n], golden[n]) for n in golden)


def test_dtype_and_force(tmp_path):
    target = tmp_path / "a.safetensors"
    target.write_bytes(b"mine")
    with pytest.raises(CheckpointError, match="got a path that exists"):
        run(WEIGHTS, target)
    assert target.read_bytes() == b"mine"
    assert run(WEIGHTS, target, "--dtype", "float16", "--force") == 0
    assert {v.dtype for v in load_file(target).values()} == {torch.float16}


def test_sizes_that_the_file_does_not_tell(tmp_path):
    source = GOLDEN.parent / "d32" / "weights.safetensors"
    with pytest.raises(CheckpointError, match="dim 64: got no number of heads"):
        run(source, tmp_path / "a")
    assert run(source, tmp_path / "a", "--config", "tiny") == 0
    with open_checkpoint(tmp_path / "a") as c:
        assert c.config.num_heads == 2
    with pytest.raises(CheckpointError, match="wrongly shaped"):
        run(source, tmp_path / "b", "--config", "bundled")
    with pytest.raises(ValueError, match=r"expected one of wan-1\.3b"):
        run(source, tmp_path / "b", "--config", "huge")
    assert not (tmp_path / "b").exists()


def test_wrong_words(tmp_path):
    for words in (("--to", "comfy"), ("--dtype", "int8")):
        with pytest.raises((argparse.ArgumentError, SystemExit)):
            run(WEIGHTS, tmp_path / "a.safetensors", *words)
    with pytest.raises(CheckpointError, match="got layout diffusers, expected a path"):
        run(WEIGHTS, tmp_path / "a.pt", "--to", "diffusers")
    with pytest.raises(CheckpointError, match="got no such file"):
        run(tmp_path / "absent.safetensors", tmp_path / "a.safetensors")
