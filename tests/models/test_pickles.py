"""Reading `.pt` files without running what stands in them."""

import os
import pickle

import pytest
import torch
from torch import nn

from vidk.models.containers import CheckpointError
from vidk.models.pickles import read_pickle


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def saved(tmp_path, data, **how):
    path = tmp_path / "a.pt"
    torch.save(data, path, **how)
    return path


def refused(path, key=None):
    with pytest.raises(CheckpointError) as error:
        read_pickle(path, key)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    return text


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_state_dict(tmp_path, zipped):
    state = {"a": torch.arange(6.0).view(2, 3).t(), "b": nn.Parameter(torch.tensor(2.5))}
    found = read_pickle(saved(tmp_path, state, _use_new_zipfile_serialization=zipped), None)
    assert found.part is None and found.entries["a"].shape == (3, 2)
    assert torch.equal(found.entries["a"].read(), state["a"])
    assert torch.equal(found.entries["b"].read(torch.bfloat16), state["b"].detach().bfloat16())


def test_tensors_are_private_copies(tmp_path):
    path = saved(tmp_path, {"a": torch.ones(4)})
    entry = read_pickle(path, None).entries["a"]
    entry.read().zero_()
    assert torch.equal(entry.read(), torch.ones(4))


@pytest.mark.parametrize(
    ("parts", "key", "taken"),
    [
        (("critic", "generator", "generator_ema"), None, "generator_ema"),
        (("generator", "critic"), None, "generator"),
        (("critic", "generator", "generator_ema"), "generator", "generator"),
        (("critic", "generator"), "critic", "critic"),
        (("state_dict",), "state_dict", "state_dict"),
    ],
)
def test_part_that_is_taken(tmp_path, parts, key, taken):
    data = {name: {"w": torch.full((2,), float(i))} for i, name in enumerate(parts)}
    found = read_pickle(saved(tmp_path, {**data, "step": 7}), key)
    assert found.part == taken and found.entries.keys() == {"w"}
    assert torch.equal(found.entries["w"].read(), data[taken]["w"])


@pytest.mark.parametrize("empty", [None, {}])
def test_ema_that_has_not_started(tmp_path, empty):
    data = {"generator": {"w": torch.ones(1)}, "generator_ema": empty}
    assert read_pickle(saved(tmp_path, data), None).part == "generator"


def test_part_that_is_not_there(tmp_path):
    path = saved(tmp_path, {"model": {"w": torch.ones(1)}, "optimizer": {"w": torch.ones(1)}})
    assert "got the parts model, optimizer, expected generator_ema" in refused(path)
    assert "key: got 'generator', expected a part of the file (model, opt" in refused(
        path, "generator"
    )


@pytest.mark.parametrize("where", ["zip", "legacy", "pickle", "pickle5", "nested"])
def test_code_is_not_run(tmp_path, where):
    marker, path = tmp_path / "marker", tmp_path / "a.pt"
    evil = Evil(marker)
    if where == "nested":
        torch.save({"generator_ema": {"w": torch.ones(1), "x": evil}}, path)
    elif where in ("zip", "legacy"):
        torch.save({"w": evil}, path, _use_new_zipfile_serialization=where == "zip")
    else:
        path.write_bytes(pickle.dumps({"w": evil}, protocol=2 if where == "pickle" else 5))
    text = refused(path)
    assert "refused" in text and "nothing of it was run" in text
    assert where == "pickle5" or f"asks for {os.system.__module__}.system" in text
    assert not marker.exists()
    pickle.loads(pickle.dumps(evil))  # the trap itself works
    assert marker.exists()


def test_whole_module_is_refused(tmp_path):
    text = refused(saved(tmp_path, nn.Linear(2, 2)))
    assert "asks for torch.nn.modules.linear.Linear" in text


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "w: got a int, expected a tensor"),
        ([torch.ones(1)], "w: got a list, expected a tensor"),
        (None, "w: got a NoneType, expected a tensor"),
        (torch.ones(2, dtype=torch.int64), "w: got dtype int64, expected one of float64"),
        (torch.ones(2, dtype=torch.complex64), "w: got dtype complex64"),
        (torch.eye(3).to_sparse(), "w: got a sparse, quantized or expanded tensor"),
        (torch.ones(1).expand(1000, 1000), "w: got a sparse, quantized or expanded tensor"),
        (torch.ones(2, device="meta"), "w: got a sparse, quantized or expanded tensor"),
    ],
)
def test_wrongly_typed_entry(tmp_path, value, words):
    assert words in refused(saved(tmp_path, {"a": torch.ones(1), "w": value}))


def test_file_that_is_no_dict(tmp_path):
    assert "got a Tensor, expected a dict" in refused(saved(tmp_path, torch.ones(2)))
    assert "got a list, expected a dict" in refused(saved(tmp_path, [torch.ones(2)]))


def test_file_cut_off_anywhere(tmp_path):
    path = saved(tmp_path, {"a": torch.ones(3000)})
    content = path.read_bytes()
    for size in (4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        assert "got a truncated file" in refused(path)
    for text in (b"", content[:3], b"no pickle at all"):
        path.write_bytes(text)
        assert "got a corrupt or foreign file" in refused(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_random_damage_is_told_or_harmless(tmp_path, zipped):
    path = saved(tmp_path, {"a": torch.ones(40)}, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    gen = torch.Generator().manual_seed(3)
    for place in torch.randint(len(content), (200,), generator=gen).tolist():
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            for entry in read_pickle(path, None).entries.values():
                entry.read(torch.float32)
        except CheckpointError as error:
            assert str(error).startswith(str(path))
