"""Opening a checkpoint of every container, and loading it into the model."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from vidk.models import CausalWan
from vidk.models.checkpoint import assign, load_model, open_checkpoint
from vidk.models.config import CONFIGS, WanConfig
from vidk.models.containers import CheckpointError
from vidk.models.names import rename

FILE = "diffusion_pytorch_model.safetensors"
INDEX = FILE + ".index.json"


def in_layout(state, layout, prefix=""):
    return {prefix + rename(name, "original", layout): value for name, value in state.items()}


def write_folder(folder, state, config=None, shards=1):
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(state, folder / FILE)
        return folder
    where = {}
    for i in range(shards):
        names = list(state)[i::shards]
        shard = f"diffusion_pytorch_model-{i + 1:05}-of-{shards:05}.safetensors"
        save_file({name: state[name] for name in names}, folder / shard)
        where |= dict.fromkeys(names, shard)
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    return folder


def refused(path, **how):
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(path, **how)
    first = str(error.value).splitlines()[0]
    assert first.startswith(str(path)) and (": got " in first or "cannot be read" in first)
    return str(error.value)


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


@pytest.mark.parametrize("kind", ["file", "index", "folder", "sharded folder", "pipeline"])
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_safetensors_containers(tmp_path, small, state, layout, kind):
    config = small.to_diffusers() if layout == "diffusers" else small.to_original()
    home = tmp_path / "transformer" if kind == "pipeline" else tmp_path
    shards = 3 if kind in ("index", "sharded folder") else 1
    write_folder(home, in_layout(state, layout), config, shards)
    path = tmp_path / {"file": FILE, "index": INDEX}.get(kind, "")
    with open_checkpoint(path) as c:
        expected = small if layout == "original" else WanConfig(**{**vars(small), "text_len": 512})
        assert (c.config, c.layout, c.part) == (expected, layout, None)
        assert same(c.read_all(), state) and list(c.read_all()) == list(c.entries)
        assert f"{path} ({layout} names, 42 tensors" in c.describe()


def test_pickle_of_self_forcing(tmp_path, small, state):
    wrapped = {}
    for name, value in state.items():
        parts = name.split(".")
        parts.insert(len(parts) // 2, "_fsdp_wrapped_module._checkpoint_wrapped_module")
        wrapped["model._orig_mod." + ".".join(parts)] = value
    zeros = {name: torch.zeros_like(value) for name, value in wrapped.items()}
    path = tmp_path / "self_forcing.pt"
    torch.save({"generator": zeros, "critic": zeros, "generator_ema": wrapped}, path)
    with open_checkpoint(path, config=small) as c:
        assert c.part == "generator_ema" and "generator_ema" in c.describe()
        assert same(c.read_all(), state)
    with open_checkpoint(path, config=small, key="generator") as c:
        assert c.part == "generator" and not c.read_all()["head.modulation"].any()
    assert "expected a part of the file (generator, critic, gen" in refused(path, key="ema")


def test_names_of_fastvideo_are_read(tmp_path, small, state):
    save_file(in_layout(state, "fastvideo"), tmp_path / "a.safetensors")
    with open_checkpoint(tmp_path / "a.safetensors", config=small) as c:
        assert c.layout == "fastvideo" and same(c.read_all(), state)


def test_golden_weights(golden):
    path = next(golden.glob("weights*.safetensors"))
    config = WanConfig.from_diffusers(json.loads((golden / "meta.json").read_text())["config"])
    names = json.loads((golden / "key_map.json").read_text())["original_to_diffusers"]
    raw = load_file(path)
    model = load_model(path, config=config)
    assert same(dict(model.state_dict()), {ours: raw[theirs] for ours, theirs in names.items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_load_model_casts_like_torch(tmp_path, small, state, source, dtype):
    stored = {name: value.to(source) for name, value in state.items()}
    save_file(stored, tmp_path / "a.safetensors")
    torch.save(stored, tmp_path / "a.pt")
    expected = {name: value.to(dtype) for name, value in stored.items()}
    for file in ("a.safetensors", "a.pt"):
        model = load_model(tmp_path / file, dtype=dtype, config=small)
        assert isinstance(model, CausalWan) and model.config == small and not model.training
        assert same(dict(model.state_dict()), expected)


def test_model_does_not_depend_on_the_file(tmp_path, small, state):
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pt")
    for file in (tmp_path / "a.safetensors", tmp_path / "a.pt"):
        model = load_model(file, config=small)
        with file.open("r+b") as f:
            f.write(b"\xff" * file.stat().st_size)
        assert same(dict(model.state_dict()), state)


def test_dtype_that_the_model_runs_in(tmp_path, small, state):
    path = tmp_path / "a.safetensors"
    save_file({name: value.bfloat16() for name, value in state.items()}, path)
    assert load_model(path, config=small).head.modulation.dtype == torch.bfloat16
    save_file({**state, "head.modulation": state["head.modulation"].bfloat16()}, path)
    with pytest.raises(CheckpointError, match="dtype: got bfloat16/float32, expected"):
        load_model(path, config=small)
    save_file({name: value.to(torch.float8_e5m2) for name, value in state.items()}, path)
    with pytest.raises(CheckpointError, match="dtype: got float8_e5m2, expected"):
        load_model(path, config=small)
    with pytest.raises(CheckpointError, match="dtype: got float64, expected"):
        load_model(path, config=small, dtype=torch.float64)


def test_nothing_may_stay_without_values():
    with torch.device("meta"):
        model = torch.nn.Linear(2, 2)
        model.register_buffer("table", torch.zeros(3), persistent=False)
    with pytest.raises(CheckpointError, match="got no values for table"):
        assign(model, {"weight": torch.ones(2, 2), "bias": torch.ones(2)})


def test_missing_unexpected_and_wrongly_shaped(tmp_path, small, state):
    del state["head.head.bias"]
    state |= {"extra": torch.ones(2), "head.modulation": torch.ones(1, 2, 17)}
    save_file(in_layout({n: v for n, v in state.items() if n != "extra"}, "diffusers")
              | {"extra": state["extra"]}, tmp_path / "a.safetensors")  # fmt: skip
    text = refused(tmp_path / "a.safetensors", config=small)
    assert "got 1 missing, 1 unexpected, 1 wrongly shaped tensors" in text.splitlines()[0]
    assert text.splitlines()[1:] == [
        "missing (1):",
        "  proj_out.bias",
        "unexpected (1):",
        "  extra [2]",
        "wrongly shaped (1):",
        "  scale_shift_table: got [1, 2, 17], expected [1, 2, 16]",
    ]


def test_two_entries_for_one_parameter(tmp_path, small, state):
    double = {**state, "model.head.modulation": state["head.modulation"]}
    torch.save(double, tmp_path / "a.pt")
    text = refused(tmp_path / "a.pt", config=small)
    assert "model.head.modulation: got a duplicated entry for head.modulation" in text


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_image_to_video_is_refused(tmp_path, state, layout):
    image = {
        "original": "blocks.0.cross_attn.k_img.weight",
        "diffusers": "blocks.0.attn2.add_k_proj.weight",
    }[layout]
    save_file({**in_layout(state, layout), image: torch.ones(2)}, tmp_path / "a.safetensors")
    assert f"{image}: got an image-to-video checkpoint" in refused(tmp_path / "a.safetensors")


def test_config_is_found_where_it_stands(tmp_path, small, state):
    path = tmp_path / "a.safetensors"
    save_file(state, path)
    assert "dim 16: got no number of heads" in refused(path)
    (tmp_path / "config.json").write_text(json.dumps(small.to_original()))
    assert "dim 16: got no number of heads" in refused(path)  # not known to belong to this file
    path.rename(tmp_path / FILE)
    with open_checkpoint(tmp_path / FILE) as c:
        assert c.config == small


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "config.json: config: dim: got no such key"),
        ({"num_layers": 10**9}, "got 42 tensors, expected more for the 1000000000 blocks"),
        ({"num_layers": 2}, "got 27 missing tensors"),
        ({"ffn_dim": 2**60}, "got 3 wrongly shaped tensors"),
        ({"num_heads": 3}, "config.json: config: num_heads: got 3, expected a divisor"),
        ({"model_type": "i2v"}, "config.json: config: got an image-to-video model"),
    ],
)
def test_config_that_does_not_fit(tmp_path, small, state, config, words):
    write_folder(tmp_path, state, {**small.to_original(), **config} if config else {})
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(tmp_path)
    assert words in str(error.value).splitlines()[0]


def test_folders_that_hold_no_one_checkpoint(tmp_path, state):
    assert "got a folder without safetensors" in refused(tmp_path)
    (tmp_path / "vae.pth").write_bytes(b"")
    assert "expected a checkpoint (name the file: vae.pth)" in refused(tmp_path)
    for expert in ("transformer", "transformer_2"):
        (tmp_path / expert).mkdir()
    assert "got the models transformer, transformer_2, expected one" in refused(tmp_path)
    write_folder(tmp_path, state, shards=2)
    (tmp_path / INDEX).unlink()
    assert "got 2 shards without an index" in refused(tmp_path)
    for name in ("a", "b"):
        save_file(state, tmp_path / f"{name}.safetensors")
    assert "got a.safetensors, b.safetensors, expected one file" in refused(tmp_path)


def test_paths_that_are_no_checkpoint(tmp_path, state):
    assert "got no such file" in refused(tmp_path / "a.safetensors")
    assert "got no such file" in refused(tmp_path / "a\0.safetensors")
    refused(tmp_path / ("a" * 300 + ".safetensors"))
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert "expected one of .safetensors" in refused(tmp_path / "a.gguf")
    os.mkfifo(tmp_path / "b.safetensors")
    assert "got something that is not a file" in refused(tmp_path / "b.safetensors")
    save_file({}, tmp_path / "c.safetensors")
    assert "got no tensors" in refused(tmp_path / "c.safetensors")
    save_file(state, tmp_path / "d.safetensors")
    assert "only a .pt file has parts" in refused(tmp_path / "d.safetensors", key="generator")


def test_an_error_leaves_no_file_open(tmp_path, state):
    save_file(state, tmp_path / "a.safetensors")
    before = len(os.listdir("/proc/self/fd"))
    refused(tmp_path / "a.safetensors")
    assert len(os.listdir("/proc/self/fd")) == before


def test_loading_needs_memory_for_one_copy_only(tmp_path):
    config = WanConfig(dim=768, ffn_dim=3072, num_heads=6, num_layers=2, text_dim=64)
    with torch.device("meta"):
        model = CausalWan(config)
    save_file({n: torch.ones(p.shape) for n, p in model.named_parameters()}, tmp_path / FILE)
    script = """
        import sys, torch
        from vidk.models.checkpoint import load_model
        def status(key):
            with open("/proc/self/status") as f:
                return next(int(line.split()[1]) for line in f if line.startswith(key)) * 1024
        torch.ones(10).bfloat16()
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")  # forgets the peak of the import
        before = status("VmRSS")
        model = load_model(sys.argv[1], dtype=torch.bfloat16)
        print(status("VmHWM") - before, sum(p.nbytes for p in model.parameters()))
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), tmp_path / FILE],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    peak, final = map(int, out.stdout.split())
    assert final > 40e6
    # The file alone is 2 * final: mapping it whole, or a float32 copy, would not fit.
    assert peak <= 1.15 * final + 64 * 2**20 < 3 * final


def test_sizes_that_no_shape_tells_come_from_the_config(tmp_path):
    config = CONFIGS["bundled"]
    with torch.device("meta"):
        model = CausalWan(config)
    state = {name: torch.ones(p.shape) for name, p in model.named_parameters()}
    path = write_folder(tmp_path / "m", state, config.to_original())
    assert load_model(path).config == config
    shutil.rmtree(path)
    write_folder(path, state)
    assert load_model(path).config == replace(config, text_len=512, prediction="flow")
