"""`vidk bench fp4-accuracy`: the bars of the recipes, the captured rows, the files."""

import argparse
import json
import math

import pytest
import torch
from PIL import Image

from tests.tiny import tiny_model, tiny_prompt
from vidk.bench import fp4_accuracy
from vidk.bench.fp4_accuracy import COSINES, Study, errors, measure
from vidk.bench.fp4_data import STRUCTURED, Grid, captured, synthetic
from vidk.bench.fp4_recipes import STUDY, attend
from vidk.cli import bench
from vidk.text import PromptEmbeds

SMALL = Grid(4, 16, 16)


def test_cosines_on_normal_rows():
    found = measure(synthetic("randn", SMALL), COSINES)
    low = {name: r["cos"] for name, r in found.items() if r["cos"] < COSINES[name]}
    assert not low


@pytest.mark.parametrize("kind", STRUCTURED)
def test_recipes_on_structured_rows(kind):
    found = measure(synthetic(kind, SMALL), ("plain", "default", "sage3", "accurate"))
    error = {name: r["crel"] for name, r in found.items()}
    assert error["plain"] >= (1.2 if kind == "biasqk" else 1.02) * error["default"]
    assert error["accurate"] <= 0.75 * error["sage3"]


def test_sets_are_what_they_say():
    sets = {name: synthetic(name, SMALL) for name in STRUCTURED}
    for s in sets.values():
        logits = s.q @ s.k.transpose(1, 2) / math.sqrt(128)
        assert torch.allclose(logits.std(-1).mean(-1), torch.tensor([1.0, 2.0, 3.0, 4.5]))
        assert not torch.equal(s.q, synthetic(s.name, SMALL, seed=1).q)
        assert torch.equal(s.q, synthetic(s.name, SMALL).q)
    share = {
        name: (s.q @ s.k.transpose(1, 2) / math.sqrt(128)).softmax(-1)[..., :256].sum(-1).mean()
        for name, s in sets.items()
    }
    assert share["sink"] > 1.5 * share["plain"]


def test_errors_of_known_rows():
    exact = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]])
    out = exact + torch.tensor([[[0.3, 0.0], [0.0, 0.0]]])
    found = errors(out, exact, torch.zeros(1, 4, 2))
    assert found["crel"] == pytest.approx(0.3 / math.sqrt(10))
    assert found["worst_row"] == pytest.approx(0.3 / math.sqrt(5))
    # A mean that all values have changes no figure but the cosine.
    shifted = errors(out + 9, exact + 9, torch.full((1, 4, 2), 9.0))
    assert shifted["crel"] == pytest.approx(found["crel"], rel=1e-5)
    assert shifted["cos"] > found["cos"]


def test_captured_rows_are_those_of_the_model():
    model = tiny_model(dim=128, num_heads=1, num_layers=3)
    s = captured(model, PromptEmbeds(*tiny_prompt(model)), (4, 6), blocks=2)
    assert s.frame_tokens == 6
    assert s.q.shape == (3, 18, 128) and s.k.shape == s.v.shape == (3, 36, 128)
    # Normed rows: mean squares are those of the norms' weights, which are about 1.
    assert s.q.square().mean((1, 2)).sqrt() == pytest.approx([1.0] * 3, abs=0.1)
    assert torch.equal(s.order[2], model.blocks[2].self_attn.channel_order()[0])
    assert errors(attend(s, STUDY["default"]), attend(s, None), s.v)["crel"] < 0.2


@pytest.fixture
def command(monkeypatch):
    tiny = Study(Grid(2, 8, 8), (4, 6), 2, (4, 6), 2)
    monkeypatch.setattr(fp4_accuracy.Study, "of", lambda quick: tiny)
    monkeypatch.setattr(
        fp4_accuracy, "seeded_model", lambda config: tiny_model(dim=128, num_heads=1)
    )
    parser = argparse.ArgumentParser(prog="vidk")
    bench.add_parser(parser.add_subparsers())

    def call(*words):
        args = parser.parse_args(["bench", *map(str, words)])
        return args.run(args)

    return call


def test_command(command, tmp_path, capsys):
    out, plot = tmp_path / "a.json", tmp_path / "a.png"
    assert command("fp4-accuracy", "--quick", "--json", out, "--plot", plot) == 0
    text = capsys.readouterr().out
    document = json.loads(out.read_text())
    assert set(document["sets"]) == {"randn", *STRUCTURED, "captured"}
    for found in document["sets"].values():
        assert found["recipes"].keys() == STUDY.keys()
    figure = document["sets"]["biasqk"]["recipes"]["accurate"]["crel"]
    assert f"{figure:.4f}" in text
    assert [len(e) for e in document["rollout"]["errors"].values()] == [2] * 5
    assert all(bar["name"] in text for bar in document["bars"])
    broken = [bar for bar in document["bars"] if not bar["kept"]]
    assert text.count("NOT KEPT") == len(broken)
    image = Image.open(plot)
    assert image.size[0] == 1000 and len(image.convert("RGB").getcolors(1 << 20)) > 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fp4-accuracy", "rope_3d"), "vidk bench: op: got fp4-accuracy and others, expected it"),
        (("--plot", "a.png"), "vidk bench: --plot: got it without fp4-accuracy, which it is for"),
        (("fp4-accuracy", "--plot", "a.pdf"), "a.pdf: got suffix '.pdf', expected one of .png"),
        (("fp4-accuracy", "--json", "/absent/x.json"), "vidk bench: --json: got /absent/x.json"),
    ],
)
def test_wrong_input(command, words, message):
    with pytest.raises(ValueError) as error:
        command(*words)
    assert str(error.value).startswith(message)
