"""Writing a checkpoint: bit for bit, whole or not at all."""

import json
import os
import resource
from contextlib import contextmanager

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from vidk.models import CausalWan, save
from vidk.models.checkpoint import load_model, open_checkpoint
from vidk.models.config import WanConfig
from vidk.models.containers import CheckpointError
from vidk.models.names import rename
from vidk.models.save import save_checkpoint

FILE = "diffusion_pytorch_model.safetensors"
TARGETS = [("original", "a.safetensors"), ("diffusers", "a.safetensors"), ("original", "folder")]
TARGETS += [("diffusers", "Wan2.1-T2V-1.3B"), ("self_forcing", "a.pt")]
each_target = pytest.mark.parametrize(("layout", "name"), TARGETS)


def same(left, right):
    return left.keys() == right.keys() and all(
        torch.equal(left[n].view(-1).view(torch.uint8), right[n].view(-1).view(torch.uint8))
        for n in right
    )


def read(path):
    with open_checkpoint(path) as c:
        return c.read_all()


def tree(folder):
    """Content of every file under a folder, hidden ones included."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@contextmanager
def full_disk(limit):
    """Let no file grow past `limit` bytes: writes fail as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@each_target
def test_comes_back_bit_for_bit(tmp_path, small, state, layout, name):
    state["head.modulation"] = state["head.modulation"].to(torch.float8_e4m3fn)
    state["head.head.bias"][0] = float("nan")
    state["text_embedding.0.weight"] = state["text_embedding.0.weight"].bfloat16()
    state["text_embedding.2.weight"] = state["text_embedding.2.weight"].t()  # strided
    save_checkpoint(state, tmp_path / name, layout, config=small)
    with open_checkpoint(tmp_path / name) as c:
        # Even the sizes that neither shapes nor a diffusers config.json tell.
        assert c.config == small
        assert c.layout == ("diffusers" if layout == "diffusers" else "original")
        assert same(c.read_all(), {n: v.contiguous() for n, v in state.items()})
    assert sorted(os.listdir(tmp_path)) == [name]


def test_original_to_diffusers_and_back_is_the_same_file(tmp_path, small, state):
    save_checkpoint(state, tmp_path / "a.safetensors", config=small)
    for source, target, layout in (
        ("a.safetensors", "b", "diffusers"),
        ("b", "c.pt", "self_forcing"),
        ("c.pt", "d.safetensors", "original"),
    ):
        with open_checkpoint(tmp_path / source) as c:
            save_checkpoint(c, tmp_path / target, layout)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "d.safetensors").read_bytes()


def test_golden_weights_go_through_the_original_layout(tmp_path, golden):
    path = next(golden.glob("weights*.safetensors"))
    config = WanConfig.from_diffusers(json.loads((golden / "meta.json").read_text())["config"])
    with open_checkpoint(path, config=config) as c:
        save_checkpoint(c, tmp_path / "original.safetensors")
    assert json.loads((golden / "key_map.json").read_text())["shapes"].keys() == set(
        load_file(tmp_path / "original.safetensors")
    )
    with open_checkpoint(tmp_path / "original.safetensors") as c:
        save_checkpoint(c, tmp_path / "diffusers", "diffusers")
    assert same(load_file(tmp_path / "diffusers" / FILE), load_file(path))
    written = json.loads((tmp_path / "diffusers" / "config.json").read_text())
    assert json.loads((golden / "meta.json").read_text())["config"].items() <= written.items()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@each_target
def test_cast_on_the_way(tmp_path, small, state, layout, name, dtype):
    save_file(state, tmp_path / "in.safetensors")
    with open_checkpoint(tmp_path / "in.safetensors", config=small) as c:
        save_checkpoint(c, tmp_path / name, layout, dtype=dtype)
    assert same(read(tmp_path / name), {n: v.to(dtype) for n, v in state.items()})


def test_safetensors_as_the_library_writes_them(tmp_path, small, state):
    state = {n: v.bfloat16() if "norm" in n else v for n, v in state.items()}
    save_checkpoint(state, tmp_path / "ours.safetensors", config=small)
    with safe_open(tmp_path / "ours.safetensors", "pt") as f:
        metadata = f.metadata()
        assert list(f.offset_keys()) == sorted(state, key=lambda n: (-state[n].itemsize, n))
    assert metadata["format"] == "pt"
    save_file(state, tmp_path / "theirs.safetensors")
    ours, theirs = (load_file(tmp_path / f"{n}.safetensors") for n in ("ours", "theirs"))
    assert same(ours, theirs)
    tail = sum(v.nbytes for v in state.values())
    data = [(tmp_path / f"{n}.safetensors").read_bytes()[-tail:] for n in ("ours", "theirs")]
    assert data[0] == data[1]


def test_self_forcing_file_serves_both_switches(tmp_path, small, state):
    save_checkpoint(state, tmp_path / "a.pt", "self_forcing", config=small)
    data = torch.load(tmp_path / "a.pt", weights_only=True)
    for part in ("generator", "generator_ema"):
        assert same(data[part], {f"model.{n}": v for n, v in state.items()})
    # Stored once.
    assert (tmp_path / "a.pt").stat().st_size < 1.5 * sum(v.nbytes for v in state.values()) + 20_000


def test_model_wrapped_model_and_state_dict(tmp_path, small, state):
    model = CausalWan(small)
    model.load_state_dict(state)
    wrapper = nn.Module()
    wrapper.model = model
    sources = (model, wrapper.state_dict(), state)
    for i, source in enumerate(sources):
        config = None if source is model else small
        save_checkpoint(source, tmp_path / f"{i}.safetensors", config=config)
    contents = [(tmp_path / f"{i}.safetensors").read_bytes() for i in range(3)]
    assert contents[0] == contents[1] == contents[2]
    assert same(dict(load_model(tmp_path / "0.safetensors").state_dict()), state)


def test_state_that_is_no_model(tmp_path, small, state):
    def refused(change, words, **how):
        changed = {n: v for n, v in {**state, **change}.items() if v is not None}
        with pytest.raises(CheckpointError) as error:
            save_checkpoint(changed, tmp_path / "a.safetensors", **{"config": small, **how})
        assert words in str(error.value)
        assert os.listdir(tmp_path) == []

    refused({"head.modulation": None}, "state: got 1 missing tensors")
    refused({"more": torch.ones(1)}, "state: got 1 unexpected tensors")
    refused({"head.modulation": torch.ones(3)}, "state: got 1 wrongly shaped tensors")
    refused({"head.modulation": 3}, "state: head.modulation: got no float values")
    refused({"head.modulation": torch.ones(1, 2, 16, device="meta")}, "got no float values")
    refused({"head.modulation": torch.ones(1, 2, 16).long()}, "got no float values")
    refused({"model.head.modulation": torch.ones(1)}, "got a duplicated entry")
    refused({}, "dim 16: got no number of heads", config=None)
    refused({}, "layout: got 'comfy'", layout="comfy")
    refused({}, "dtype: got torch.int8", dtype=torch.int8)


@pytest.mark.parametrize(
    ("layout", "name", "words"),
    [
        ("original", "a.pt", "expected a path that ends in .safetensors, or a folder"),
        ("diffusers", "a.bin", "expected a path that ends in .safetensors, or a folder"),
        ("original", "a.safetensor", "expected a path that ends in .safetensors, or a folder"),
        ("self_forcing", "a.safetensors", "expected a path that ends in .pt"),
        ("self_forcing", "folder", "expected a path that ends in .pt"),
        ("original", "absent/a.safetensors", "expected one that exists"),
    ],
)
def test_path_that_cannot_be_written(tmp_path, small, state, layout, name, words):
    with pytest.raises(CheckpointError) as error:
        save_checkpoint(state, tmp_path / name, layout, config=small)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


@each_target
def test_existing_output_needs_force(tmp_path, small, state, layout, name):
    zeros = {n: torch.zeros_like(v) for n, v in state.items()}
    save_checkpoint(zeros, tmp_path / name, layout, config=small)
    before = tree(tmp_path)
    with pytest.raises(CheckpointError, match="got a path that exists"):
        save_checkpoint(state, tmp_path / name, layout, config=small)
    assert tree(tmp_path) == before
    save_checkpoint(state, tmp_path / name, layout, config=small, overwrite=True)
    assert same(read(tmp_path / name), state) and os.listdir(tmp_path) == [name]


def test_force_replaces_nothing_but_a_checkpoint(tmp_path, small, state):
    folder, file = tmp_path / "home", tmp_path / "a.safetensors"
    folder.mkdir()
    (folder / "letters.txt").write_text("dear")
    file.mkdir()
    os.mkfifo(tmp_path / "b.safetensors")
    (tmp_path / "note").write_text("dear")
    before = tree(tmp_path)
    for path, words in (
        (folder, "got a folder with letters.txt, expected only a checkpoint"),
        (file, "expected a file to replace"),
        (tmp_path / "b.safetensors", "expected a file to replace"),
        (tmp_path / "note", "expected a folder to replace"),
    ):
        with pytest.raises(CheckpointError, match=words):
            save_checkpoint(state, path, config=small, overwrite=True)
    assert tree(tmp_path) == before


def test_a_link_stays_a_link(tmp_path, small, state):
    (tmp_path / "real.safetensors").write_bytes(b"old")
    (tmp_path / "a.safetensors").symlink_to("real.safetensors")
    save_checkpoint(state, tmp_path / "a.safetensors", config=small, overwrite=True)
    assert (tmp_path / "a.safetensors").is_symlink()
    assert same(read(tmp_path / "real.safetensors"), state)


def test_checkpoint_can_replace_itself(tmp_path, small, state):
    for layout, name in TARGETS:
        path = tmp_path / name
        save_checkpoint(state, path, layout, config=small, overwrite=True)
        with open_checkpoint(path) as c:
            save_checkpoint(c, path, layout, dtype=torch.bfloat16, overwrite=True)
        assert same(read(path), {n: v.bfloat16() for n, v in state.items()})


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("limit", [100, 20_000])
@each_target
def test_full_disk(tmp_path, small, state, layout, name, limit, existing):
    if existing:
        zeros = {n: torch.zeros_like(v) for n, v in state.items()}
        save_checkpoint(zeros, tmp_path / name, layout, config=small)
    before = tree(tmp_path)
    with full_disk(limit), pytest.raises(CheckpointError) as error:
        save_checkpoint(state, tmp_path / name, layout, config=small, overwrite=True)
    text = str(error.value)
    assert text.startswith(f"{tmp_path / name}: cannot be written (") and "\n" not in text
    assert tree(tmp_path) == before and os.listdir(tmp_path) == ([name] if existing else [])


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, CheckpointError])
@each_target
def test_interrupted_write(tmp_path, small, state, layout, name, error):
    zeros = {n: torch.zeros_like(v) for n, v in state.items()}
    save_checkpoint(zeros, tmp_path / name, layout, config=small)
    before = tree(tmp_path)
    save_file(state, tmp_path / "in.safetensors")
    with open_checkpoint(tmp_path / "in.safetensors", config=small) as c:

        def fail(out):
            raise error

        object.__setattr__(c.entries["head.head.weight"], "fill", fail)
        with pytest.raises(error):
            save_checkpoint(c, tmp_path / name, layout, overwrite=True)
    (tmp_path / "in.safetensors").unlink()
    assert tree(tmp_path) == before and os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("failing", [1, 2])
def test_folder_that_cannot_be_renamed(tmp_path, small, state, monkeypatch, failing):
    zeros = {n: torch.zeros_like(v) for n, v in state.items()}
    save_checkpoint(zeros, tmp_path / "m", config=small)
    before, calls = tree(tmp_path), []
    rename_path = save.Path.rename

    def flaky(self, target):
        calls.append(target)
        if len(calls) == failing:
            raise OSError(5, "Input/output error")
        return rename_path(self, target)

    monkeypatch.setattr(save.Path, "rename", flaky)
    with pytest.raises(CheckpointError, match="Input/output error; nothing was changed"):
        save_checkpoint(state, tmp_path / "m", config=small, overwrite=True)
    assert tree(tmp_path) == before and os.listdir(tmp_path) == ["m"]


def test_mode_follows_the_umask(tmp_path, small, state):
    old = os.umask(0o027)
    try:
        save_checkpoint(state, tmp_path / "a.safetensors", config=small)
    finally:
        os.umask(old)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640


def test_diffusers_names_in_the_file(tmp_path, small, state):
    save_checkpoint(state, tmp_path / "m", "diffusers", config=small)
    names = {rename(n, "original", "diffusers") for n in state}
    assert set(load_file(tmp_path / "m" / FILE)) == names
