"""Reading safetensors files: bit for bit, and nothing that is not whole."""

import json
from contextlib import ExitStack

import pytest
import torch
from safetensors.torch import load_file, save_file

from vidk.models import containers
from vidk.models.containers import CheckpointError, read_index, read_json, read_safetensors

ALL = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ALL += [torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.fixture
def files():
    with ExitStack() as stack:
        yield stack


def pack(header, data=b"", length=None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape=(1,), offsets=(0, 4), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8)


@pytest.mark.parametrize("target", [None, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("source", ALL)
def test_same_bits_as_the_library(tmp_path, files, monkeypatch, source, target):
    monkeypatch.setattr(containers, "_PIECE", 64)
    gen = torch.Generator().manual_seed(1)
    shapes = {"none": (), "zero": (0, 3), "one": (1,), "edge": (64,), "more": (5, 13, 3)}
    tensors = {n: (torch.randn(s, generator=gen) * 40).to(source) for n, s in shapes.items()}
    tensors["special"] = torch.tensor([0.0, -0.0, float("nan"), 1e-8, 400.0]).to(source)
    save_file(tensors, tmp_path / "a.safetensors")
    expected = load_file(tmp_path / "a.safetensors")
    found = read_safetensors(tmp_path / "a.safetensors", files).entries
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        got = found[name].read(target)
        wanted = value.to(target or source)
        assert got.shape == wanted.shape and got.dtype == wanted.dtype
        assert torch.equal(bits(got), bits(wanted)), name
        assert found[name].nbytes == value.nbytes


HOLE = {"a": entry(), "b": entry(offsets=(8, 12))}
OVERLAP = {"a": entry(offsets=(0, 4)), "b": entry(shape=(2,), offsets=(0, 8))}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "got a header of 0 bytes in a file of 0"),
        (b"\x08\x00", "in a file of 2"),
        (pack({"a": entry()}, b"123"), "the file is truncated or corrupt"),
        (pack({"a": entry()}, b"12345"), "the file is truncated or corrupt"),
        (pack({"a": entry()}, b"1234", length=2**63), "truncated or no safetensors file"),
        (pack({"a": entry()}, b"1234", length=10_000), "truncated or no safetensors file"),
        (pack(b"not json"), "corrupt header, expected JSON"),
        (pack(b"\xff\xfe\x00"), "corrupt header, expected JSON"),
        (pack(b"[" * 5000), "corrupt header, expected JSON"),
        (pack(b"[1]"), "corrupt header, expected a JSON object"),
        (pack({"a": 3}), "corrupt header, expected dtype and offsets"),
        (pack({"a": {"dtype": "F32"}}), "corrupt header, expected dtype and offsets"),
        (pack({"a": entry(offsets=())}), "corrupt header, expected dtype and offsets"),
        (pack({"a": entry(dtype=["F32"])}, b"1234"), "a: got dtype ['F32'], expected one of"),
        (pack({"a": entry(dtype="I32")}, b"1234"), "a: got dtype I32, expected one of float64"),
        (pack({"a": entry(dtype="F33")}, b"1234"), "a: got dtype F33, expected one of float64"),
        (pack({"a": entry(shape=(2,))}, b"1234"), "cannot be read as safetensors"),
        (pack({"a": entry(shape=(-1,))}, b"1234"), "cannot be read as safetensors"),
        (pack({"a": entry(shape=(2**40, 2**40))}, b"1234"), "cannot be read as safetensors"),
        (pack({"a": entry(offsets=(-4, 4))}, b"1234"), "cannot be read as safetensors"),
        (pack(HOLE, b"x" * 12), "cannot be read as safetensors"),
        (pack(OVERLAP, b"x" * 8), "cannot be read as safetensors"),
        (pack({"__metadata__": {"n": 1}}), "cannot be read as safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "got a Git LFS pointer"),
    ],
)
def test_broken_file(tmp_path, files, content, words):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_safetensors(path, files)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and words in text and "\n" not in text


def test_name_that_stands_twice_in_a_header(tmp_path, files):
    one = json.dumps(entry())
    (tmp_path / "a.safetensors").write_bytes(pack(f'{{"a":{one},"a":{one}}}'.encode(), b"1234"))
    with pytest.raises(CheckpointError, match="a: got a duplicated entry"):
        read_safetensors(tmp_path / "a.safetensors", files)


def test_file_that_shrinks_while_it_is_read(tmp_path, files):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    found = read_safetensors(path, files).entries
    path.open("r+b").truncate(2000)
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(CheckpointError, match="got shorter while it was read"):
            found["a"].read(dtype)


@pytest.fixture
def sharded(tmp_path):
    save_file({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "1.safetensors")
    save_file({"c": torch.full((4,), 2.0)}, tmp_path / "2.safetensors")

    def write(change=(), metadata=None):
        where = {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"} | dict(change)
        path = tmp_path / "m.safetensors.index.json"
        where = {name: shard for name, shard in where.items() if shard is not None}
        path.write_text(json.dumps({"metadata": metadata, "weight_map": where}))
        return path

    return write


def test_index(sharded, files):
    found = read_index(sharded(), files).entries
    assert {name: e.shape for name, e in found.items()} == {"a": (2,), "b": (3,), "c": (4,)}
    assert torch.equal(found["c"].read(), torch.full((4,), 2.0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"d": "3.safetensors"}, "3.safetensors: got no such file"),
        ({"d": "1.safetensors"}, "d: got no such tensor in 1.safetensors"),
        ({"c": "1.safetensors", "a": "2.safetensors"}, "got no such tensor in"),
        ({"b": None}, "got no word of b, expected all tensors"),
        ({"c": "../2.safetensors"}, "'../2.safetensors', expected a file beside the index"),
        ({"c": "/2.safetensors"}, "'/2.safetensors', expected a file beside the index"),
        ({"c": 5}, "got no weight_map"),
    ],
)
def test_index_that_does_not_fit_its_shards(sharded, files, change, words):
    with pytest.raises(CheckpointError) as error:
        read_index(sharded(change), files)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_name_in_two_shards(tmp_path, sharded, files):
    save_file({"c": torch.ones(1), "a": torch.ones(2)}, tmp_path / "2.safetensors")
    with pytest.raises(CheckpointError, match=r"in 1\.safetensors and in 2\.safetensors"):
        read_index(sharded(), files)


def test_index_that_is_no_index(tmp_path, files):
    path = tmp_path / "m.safetensors.index.json"
    for text in ("", "{", "[]", "{}", '{"weight_map": []}'):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"m\.safetensors\.index\.json"):
            read_index(path, files)
    path.write_text('{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}')
    with pytest.raises(CheckpointError, match="a: got a duplicated entry"):
        read_json(path)
