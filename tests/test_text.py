"""Prompt embeddings: padding, files, the placeholder, the umT5 recipe and its cache."""

import pickle
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from vidk.text import (
    PromptEmbeds,
    TextError,
    UMT5Encoder,
    clean_text,
    load_prompt_embeds,
    seeded_embeds,
)


def rows(length=5, dim=8, seed=0):
    return torch.randn(length, dim, generator=torch.Generator().manual_seed(seed))


def test_padding_and_deduced_lengths():
    embeds = torch.stack([rows(seed=1), rows(seed=2), torch.zeros(5, 8)])
    embeds[0, 3:] = 0
    embeds[1, 2] = 0  # a zero row before the end is real
    prompt = PromptEmbeds.from_tensor(embeds, 9)
    assert prompt.embeds.shape == (3, 9, 8)
    assert prompt.context_lens.tolist() == [3, 5, 0]
    assert prompt.context_lens.dtype == torch.int32
    assert torch.equal(prompt.embeds[:, :5], embeds)
    assert not prompt.embeds[:, 5:].any()
    assert PromptEmbeds.from_tensor(rows(), 5).embeds.shape == (1, 5, 8)


def test_given_lengths_cut_the_rows():
    embeds = rows()[None].repeat(3, 1, 1)
    embeds[0, 4] = float("nan")
    prompt = PromptEmbeds.from_tensor(embeds, 6, torch.tensor([2, 5, 0]))
    assert torch.equal(prompt.embeds[0, :2], embeds[0, :2])
    assert not prompt.embeds[0, 2:].any()
    assert torch.equal(prompt.embeds[1, :5], embeds[1])
    assert not prompt.embeds[2].any()
    assert prompt.context_lens.tolist() == [2, 5, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_types(dtype):
    prompt = PromptEmbeds.from_tensor(rows().to(dtype), 6)
    assert prompt.embeds.dtype == dtype
    assert PromptEmbeds.from_tensor(rows().double(), 6).embeds.dtype == torch.float32
    moved = prompt.to("cpu", torch.float16)
    assert moved.embeds.dtype == torch.float16
    assert moved.context_lens.dtype == torch.int32


@pytest.mark.parametrize(
    ("embeds", "lens", "message"),
    [
        (rows(), None, r"got 5 rows, expected at most 4 \(text_len\)"),
        (rows()[0], None, r"got shape \[8\], expected \[L, D\] or \[B, L, D\]"),
        (rows(4, 0), None, r"got shape \[4, 0\]"),
        (rows().long(), None, r"got dtype torch.int64"),
        (rows(4), [5], r"context_lens: got \[5\], expected 1 integers in 0..4"),
        (rows(4), [-1], r"context_lens: got \[-1\]"),
        (rows(4), [1, 2], r"context_lens: got \[1, 2\], expected 1"),
        (rows(4), [1.5], r"context_lens: got \[1.5\]"),
    ],
)
def test_tensors_that_do_not_fit(embeds, lens, message):
    with pytest.raises(TextError, match=message):
        PromptEmbeds.from_tensor(embeds, 4, lens)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".PT"])
@pytest.mark.parametrize("batched", [False, True])
def test_files(tmp_path, suffix, batched):
    path = tmp_path / f"prompt{suffix}"
    tensor = rows()[None] if batched else rows()
    for name in ("prompt_embeds", "other"):
        save = save_file if suffix == ".safetensors" else torch.save
        save({name: tensor}, path)
        prompt = load_prompt_embeds(path, 7, 8)
        assert torch.equal(prompt.embeds[0, :5], rows())
        assert prompt.context_lens.tolist() == [5]
    if suffix != ".safetensors":
        torch.save(tensor, path)
        assert torch.equal(load_prompt_embeds(path, 7, 8).embeds, prompt.embeds)


def test_the_named_tensor_wins(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"prompt_embeds": rows(), "negative_prompt_embeds": rows(seed=1)}, path)
    assert torch.equal(load_prompt_embeds(path, 5, 8).embeds[0], rows())


class Boom:
    def __reduce__(self):
        return (print, ("executed",))


def test_hostile_files(tmp_path, capfd):
    path = tmp_path / "a.pt"
    torch.save({"prompt_embeds": Boom()}, path)
    with pytest.raises(TextError, match=r"a\.pt: cannot be read as \.pt"):
        load_prompt_embeds(path, 5, 8)
    path.write_bytes(pickle.dumps(Boom()))
    with pytest.raises(TextError, match=r"a\.pt: cannot be read as \.pt"):
        load_prompt_embeds(path, 5, 8)
    assert "executed" not in capfd.readouterr().out

    torch.save(rows(), path)
    whole = path.read_bytes()
    for damaged in (b"", b"junk", whole[:50], whole[:-30]):
        path.write_bytes(damaged)
        with pytest.raises(TextError, match=r"a\.pt: cannot be read as \.pt"):
            load_prompt_embeds(path, 5, 8)

    path = tmp_path / "a.safetensors"
    save_file({"x": rows()}, path)
    whole = path.read_bytes()
    for damaged in (b"", b"junk", whole[:50], whole[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(TextError, match=r"cannot be read as \.safetensors"):
            load_prompt_embeds(path, 5, 8)


def test_files_that_do_not_fit(tmp_path):
    path = tmp_path / "a.safetensors"

    def refused(content, message):
        save_file(content, path)
        with pytest.raises(TextError, match=message):
            load_prompt_embeds(path, 5, 8)

    refused({"a": rows(), "b": rows()}, "got the entries a, b, expected one tensor, or one named")
    refused({"a": rows(5, 9)}, r"got shape \[5, 9\], expected \[L, 8\] or \[1, L, 8\]")
    refused({"a": rows()[None].repeat(2, 1, 1)}, r"got shape \[2, 5, 8\]")
    refused({"a": rows(6)}, r"a\.safetensors: embeds: got 6 rows, expected at most 5")
    refused({"a": torch.ones(5, 8, dtype=torch.int32)}, "dtype torch.int32")
    refused({"a": torch.full((5, 8), float("nan"))}, "got NaN or infinity")
    with pytest.raises(TextError, match="there is no such file"):
        load_prompt_embeds(tmp_path / "none.pt", 5, 8)
    with pytest.raises(TextError, match=r"got suffix '\.npy', expected \.safetensors or \.pt"):
        load_prompt_embeds(tmp_path / "a.npy", 5, 8)
    torch.save([rows()], tmp_path / "list.pt")
    with pytest.raises(TextError, match="got list, expected one tensor"):
        load_prompt_embeds(tmp_path / "list.pt", 5, 8)


def test_seeded_embeds_are_stable_and_depend_on_every_word():
    prompt = seeded_embeds("A red  fox,\n running", 6, 32)
    assert prompt.embeds.shape == (1, 6, 32)
    assert prompt.embeds.dtype == torch.float32
    assert prompt.context_lens.tolist() == [4]
    again = seeded_embeds("a RED fox, running", 6, 32)
    assert torch.equal(again.embeds, prompt.embeds)
    other = seeded_embeds("A blue fox, running", 6, 32)
    same = (other.embeds == prompt.embeds).all(-1)[0]
    assert same.tolist() == [True, False, True, True, True, True]
    # Literal values: the same in every process, on every Python.
    fox = seeded_embeds("fox", 2, 16).embeds[0, 0, :4]
    torch.testing.assert_close(fox, torch.tensor([0.518135, -0.164672, -0.617160, 0.383422]))
    assert 0.7 < seeded_embeds("fox", 1, 4096).embeds.std() < 1.3


def test_seeded_embeds_of_no_words_and_too_many():
    assert seeded_embeds("  ", 4, 8).context_lens.tolist() == [0]
    assert not seeded_embeds("", 4, 8).embeds.any()
    long = seeded_embeds("one two three four five", 3, 8)
    assert long.context_lens.tolist() == [3]
    assert torch.equal(long.embeds, seeded_embeds("one two three", 3, 8).embeds)
    assert seeded_embeds("\ud800 emoji \N{FOX FACE}", 4, 8).context_lens.tolist() == [3]


def test_clean_text():
    assert clean_text("  a &amp;amp; b\t\n c&lt;d ") == "a & b c<d"


class FakeUMT5:
    """A tokenizer (one id per word, then 1) and an encoder that counts its calls."""

    def __init__(self, dim=8):
        self.dim = dim
        self.calls = []
        self.options = None

    def tokenizer(self, texts, **options):
        self.options = options
        length = options["max_length"]
        words = [text.split()[: length - 1] for text in texts]
        ids = [[*(len(word) + 1 for word in row), 1] for row in words]
        pad = [row + [0] * (length - len(row)) for row in ids]
        mask = [[1] * len(row) + [0] * (length - len(row)) for row in ids]
        return {"input_ids": torch.tensor(pad), "attention_mask": torch.tensor(mask)}

    def model(self, input_ids, attention_mask):
        assert not torch.is_grad_enabled()
        self.calls.append(input_ids.shape[0])
        place = torch.arange(1, input_ids.shape[1] + 1)[None, :, None]
        # Not zero at the padding, as with the real encoder: only the recipe makes it so.
        hidden = (input_ids[..., None] + 100 * place).float().expand(-1, -1, self.dim)
        return SimpleNamespace(last_hidden_state=hidden)

    def encoder(self, encoder_id="fake", **options):
        options.setdefault("dtype", torch.float32)
        options.setdefault("max_length", 6)
        return UMT5Encoder.from_models(self.tokenizer, self.model, encoder_id, **options)


def test_the_recipe_trims_and_zero_pads():
    fake = FakeUMT5()
    prompt = fake.encoder().encode(["a  fox", "one two three four five six seven", ""])
    assert prompt.embeds[..., 0].tolist() == [
        [102, 204, 301, 0, 0, 0],
        [104, 204, 306, 405, 505, 601],
        [101, 0, 0, 0, 0, 0],
    ]
    assert prompt.context_lens.tolist() == [3, 6, 1]
    assert fake.calls == [3]
    wanted = {"padding": "max_length", "truncation": True, "add_special_tokens": True}
    assert wanted.items() <= fake.options.items()
    single = fake.encoder(dtype=torch.bfloat16).encode("a fox")
    assert single.embeds.dtype == torch.bfloat16
    with pytest.raises(TextError, match="prompts: got none"):
        fake.encoder().encode([])


def test_a_hit_needs_no_encoder(tmp_path, monkeypatch):
    fake = FakeUMT5()
    first = fake.encoder(cache=tmp_path / "new" / "cache").encode(["a fox", "a dog", "a fox"])
    assert fake.calls == [2]  # equal prompts are encoded once
    again = fake.encoder(cache=tmp_path / "new" / "cache").encode(["a fox", "a dog", "a  fox "])
    assert fake.calls == [2]
    assert torch.equal(first.embeds, again.embeds)
    assert torch.equal(first.context_lens, again.context_lens)
    mixed = fake.encoder(cache=tmp_path / "new" / "cache").encode(["a cat", "a dog"])
    assert fake.calls == [2, 1]
    assert torch.equal(mixed.embeds[1], first.embeds[1])

    # Not even the package is needed, nor the folder of the encoder.
    monkeypatch.setitem(sys.modules, "transformers", None)
    bare = UMT5Encoder("fake", 6, torch.float32, cache=tmp_path / "new" / "cache")
    assert torch.equal(bare.encode("a fox").embeds, first.embeds[:1])
    with pytest.raises(TextError, match=r"transformers is missing \(pip install vidk\[wan\]\)"):
        bare.encode("a bird")


def test_the_key_covers_text_encoder_length_and_type(tmp_path):
    fake = FakeUMT5()
    fake.encoder(cache=tmp_path).encode("a fox")
    fake.encoder(cache=tmp_path).encode("A fox")
    fake.encoder("other", cache=tmp_path).encode("a fox")
    fake.encoder(cache=tmp_path, max_length=7).encode("a fox")
    fake.encoder(cache=tmp_path, dtype=torch.float16).encode("a fox")
    assert fake.calls == [1] * 5
    assert len(list(tmp_path.iterdir())) == 5


def test_a_cache_file_is_a_prompt_embeds_file(tmp_path):
    prompt = FakeUMT5().encoder(cache=tmp_path).encode("a fox")
    (path,) = tmp_path.iterdir()
    assert load_file(path)["prompt_embeds"].shape == (3, 8)
    loaded = load_prompt_embeds(path, 6, 8)
    assert torch.equal(loaded.embeds, prompt.embeds)
    assert torch.equal(loaded.context_lens, prompt.context_lens)


def test_a_damaged_cache_file_is_recomputed_with_a_warning(tmp_path):
    fake = FakeUMT5()
    expected = fake.encoder(cache=tmp_path).encode("a fox")
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    swapped = tmp_path / "swapped"
    save_file({"prompt_embeds": rows()}, swapped, metadata={"key": "of another prompt"})
    damage = [b"", whole[:30], whole[:-1], b"\xff" * 80, swapped.read_bytes()]
    swapped.unlink()
    for index, content in enumerate(damage):
        path.write_bytes(content)
        with pytest.warns(UserWarning, match=f"{path.name}: ignored, and written anew"):
            got = fake.encoder(cache=tmp_path).encode("a fox")
        assert torch.equal(got.embeds, expected.embeds)
        assert len(fake.calls) == index + 2
        assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    fake = FakeUMT5()
    with pytest.warns(UserWarning, match="embeddings were not cached"):
        prompt = fake.encoder(cache=tmp_path / "file" / "cache").encode("a fox")
    assert prompt.context_lens.tolist() == [3]


def test_concurrent_writers_leave_one_valid_file(tmp_path):
    fake = FakeUMT5(dim=4096)
    work = [
        threading.Thread(target=lambda: fake.encoder(cache=tmp_path).encode("a fox"))
        for _ in range(6)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    (path,) = tmp_path.iterdir()
    assert load_file(path)["prompt_embeds"].shape == (3, 4096)


def test_an_encoder_that_cannot_be_loaded(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(TextError, match="cannot be loaded"):
        UMT5Encoder(tmp_path).encode("a fox")
