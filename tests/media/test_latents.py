"""Latents in .safetensors."""

import pytest
import torch
from safetensors.torch import save_file

from vidk.media import MediaError, read_latents, write_latents


def latents(frames=3, dtype=torch.float32):
    return torch.randn(2, frames, 16, 4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip(tmp_path, dtype):
    whole = latents(6, dtype)
    note = {"seed": 3, "prompt": "a höt 'cat'", "steps": [1000, 750], "fps": 16.0}
    write_latents(
        whole.transpose(3, 4).contiguous().transpose(3, 4), tmp_path / "a.safetensors", note
    )
    back, metadata = read_latents(tmp_path / "a.safetensors")
    assert torch.equal(back, whole)
    assert back.dtype == dtype
    assert metadata == note


def test_blocks_and_order_of_metadata_do_not_change_the_bytes(tmp_path):
    whole = latents(7)
    write_latents(whole, tmp_path / "a.safetensors", {"a": 1, "b": 2, "c": 3})
    write_latents(iter(whole.split(3, dim=1)), tmp_path / "b.safetensors", {"c": 3, "b": 2, "a": 1})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(1, 2, 16, 4), r"got \[1, 2, 16, 4\] float32, expected a non-empty float"),
        (torch.zeros(1, 0, 16, 4, 4), "expected a non-empty float"),
        (torch.zeros(1, 1, 16, 4, 4, dtype=torch.int64), "int64, expected"),
        ([torch.zeros(1, 1, 16, 4, 4), torch.zeros(1, 1, 16, 4, 6)], "expected only F to differ"),
        ([], "got no latents"),
        (["x"], "got str, expected a tensor"),
    ],
)
def test_bad_latents_leave_an_existing_file_alone(tmp_path, value, message):
    out = tmp_path / "a.safetensors"
    out.write_bytes(b"precious")
    with pytest.raises(MediaError, match=message):
        write_latents(value, out)
    assert out.read_bytes() == b"precious"
    assert len(list(tmp_path.iterdir())) == 1


def test_bad_metadata_and_suffix(tmp_path):
    with pytest.raises(MediaError, match="metadata: cannot be written as JSON"):
        write_latents(latents(), tmp_path / "a.safetensors", {"x": object()})
    with pytest.raises(MediaError, match=r"got suffix '\.mp4', expected one of \.safetensors"):
        write_latents(latents(), tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_reading_other_files(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"anything": latents()}, path)
    assert read_latents(path)[1] == {}
    save_file({"a": latents(), "b": latents()}, path)
    with pytest.raises(MediaError, match="got tensors a, b, expected one named latents"):
        read_latents(path)
    save_file({"latents": torch.zeros(3)}, path)
    with pytest.raises(MediaError, match=r"got \[3\] float32"):
        read_latents(path)
    save_file({"latents": latents()}, path, metadata={"vidk": "{"})
    with pytest.raises(MediaError, match="metadata is not JSON"):
        read_latents(path)
    save_file({"latents": latents()}, path, metadata={"vidk": "[1]"})
    with pytest.raises(MediaError, match="metadata is a list"):
        read_latents(path)


def test_reading_damaged_files(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(MediaError, match=r"a\.safetensors: cannot be read"):
        read_latents(path)
    write_latents(latents(), path)
    data = path.read_bytes()
    for damaged in (b"", data[:7], data[:60], data[:-1], b"\xff" * 64):
        path.write_bytes(damaged)
        with pytest.raises(MediaError, match=r"a\.safetensors: cannot be read"):
            read_latents(path)
