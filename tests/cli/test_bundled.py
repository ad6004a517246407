"""`vidk generate` and `vidk eval` on the bundled model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from vidk.bundled import Scene, bundled_codec
from vidk.bundled.scenes import render, start_place, walk
from vidk.cli import main
from vidk.cli.values import OptionError
from vidk.evaluate.measure import look
from vidk.media import read_latents, read_video, write_video
from vidk.rollout import Session

pytestmark = pytest.mark.usefixtures("quick")
FAST = ("--eager", "--threads", "1")


def generate(*words: object) -> int:
    return main(["generate", *FAST, *map(str, words)])


def test_a_prompt_becomes_a_video(capsys):
    words = ("--prompt", "a green square moving left on white", "--frames", 9, "--steps", 4)
    assert generate(*words, "--out", "a.gif", "--json", "a.json") == 0
    frames = read_video("a.gif")
    assert frames.shape == (9, 192, 192, 3)
    seen = look(frames[0])
    assert (seen.background, seen.colour) == ("white", "green")
    found = json.loads(Path("a.json").read_text())
    assert found["model"]["weights"] == "weights of the package"
    assert found["video"]["blocks"] == [3] * 3 and found["video"]["window"] == 9
    assert found["schedule"]["sampler"] == "euler"
    assert found["prompt"] == {
        "source": '"a green square moving left on white" by the bundled vocabulary',
        "tokens": 4,
    }
    assert [block["pixel_frames"] for block in found["times"]["blocks"]] == [3, 3, 3]
    assert "the bundled model's codec" in capsys.readouterr().out


def test_same_seed_same_bytes():
    names = [f"{i}.mp4" for i in range(3)]
    for name, seed in zip(names, (5, 5, 6), strict=True):
        assert generate("--out", name, "--frames", 6, "--steps", 2, "--seed", seed) == 0
    first, again, other = (Path(name).read_bytes() for name in names)
    assert first == again != other


def test_a_script_changes_the_prompt():
    Path("s.txt").write_text("0: a red circle\n0.1: a blue circle on white\n")
    words = ("--prompt-script", "s.txt", "--frames", 6, "--steps", 4, "--out", "a.gif")
    assert generate(*words) == 0
    before, after = (look(frame) for frame in read_video("a.gif")[[0, 5]])
    assert (before.background, after.background) == ("black", "white")


def test_a_clip_is_continued():
    scene = Scene("blue", "square", "down", "white")
    clip = render([scene] * 6, walk(scene, start_place(scene, 0), 6))
    write_video(clip, "given.gif")
    words = ("--first-frames", "given.gif", "--prompt", scene.prompt, "--steps", 4)
    assert generate(*words, "--frames", 9, "--out", "a.safetensors") == 0
    latents, _ = read_latents("a.safetensors")
    # Exactly what the codec makes of the file, then new frames.
    given = bundled_codec().encode(read_video("given.gif")[None])
    assert latents.shape == (1, 9, 16, 12, 12)
    assert torch.allclose(latents[:, :6], given, atol=1e-5)
    seen = look(bundled_codec().decode(latents[:, 6:7], True)[0, 0])
    assert (seen.background, seen.colour) == ("white", "blue")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--prompt", "a red dog"), "--prompt: got the word 'dog', expected only those that the"),
        (("--size", "96x96"), "--size: got 96x96, expected 192x192, which the bundled model was"),
        (("--block", "1"), "--block: got 1, expected 3, which the bundled model was trained for"),
        (("--independent-first-frame",), "--independent-first-frame: got it for the bundled model"),
    ],
)
def test_what_it_was_not_trained_for(capsys, words, sentence):
    assert generate(*words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"vidk generate: {sentence}") and err.count("\n") == 1


def test_random_weights_still_go(capsys):
    words = ("--random-weights", "--size", "32x48", "--frames", 9, "--prompt", "a dog")
    assert generate(*words) == 0
    out = capsys.readouterr().out
    assert "random weights, seed 0" in out and "preview (fixed linear map" in out
    assert read_video("vidk.mp4").shape == (9, 32, 48, 3)


def evaluate(*words: object) -> int:
    return main(["eval", "--threads", "1", *map(str, words)])


def test_eval(capsys):
    small = ("--pairs", 3, "--blocks", 2, "--setup", "steps=2")
    words = ("--versus", "window=6,sink=0", "--json", "a.json", "--sheet", "a.png")
    assert evaluate(*small, *words) == 0
    found = json.loads(Path("a.json").read_text())
    assert found["setup"]["steps"] == 2 and found["versus"]["setup"]["window"] == 6
    assert found["blocks"].keys() == {"1", "2"} and found["blocks"]["1"]["shape"]["n"] == 3
    # Two blocks fit into either window.
    assert found["versus"]["identical"] and found["versus"]["ssim"]["mean"] == pytest.approx(1)
    assert found["continuation"].keys() == {"3", "4"}
    assert Image.open("a.png").width > 500
    out = capsys.readouterr().out
    assert "true clips" in out and "block 2" in out and "more than repeating its last frame" in out


def test_eval_versus_quantised_keys(capsys):
    words = ("--pairs", 2, "--blocks", 2, "--setup", "steps=2", "--versus", "kv=nvfp4")
    assert evaluate(*words, "--json", "a.json") == 0
    found = json.loads(Path("a.json").read_text())
    assert (found["setup"]["kv"], found["versus"]["setup"]["kv"]) == ("plain", "nvfp4")
    assert not found["versus"]["identical"] and found["versus"]["ssim"]["mean"] > 0.95
    assert found["versus"]["blocks"]["2"]["background"] == found["blocks"]["2"]["background"]
    assert "versus, 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--setup", "steps"), "--setup: got 'steps', expected key=value with one of the keys "),
        (("--versus", "window=2"), "--versus: got a window of 2, expected at least 6, the sink of"),
        (
            ("--versus", "kv=int4"),
            "--versus: vidk.KVCache: kind: got 'int4', expected one",
        ),
        (("--versus", "ranks=9"), "--versus: got 9 ranks, expected 1 to 8"),
        (("--sheet", "a.gif"), "--sheet: a.gif: got suffix '.gif', expected one of .png"),
        (("--pairs", "0"), "--pairs: got 0, expected a whole number of at least 1"),
    ],
)
def test_eval_errors(capsys, words, sentence):
    assert evaluate(*words) == 2
    assert capsys.readouterr().err.startswith(f"vidk eval: {sentence}")


def test_eval_refuses_what_generate_refuses(capsys, monkeypatch):
    """The check is that of `vidk generate`, with as many ranks, before anything is generated."""
    from vidk.cli import prepare

    def refuse(args, world=None):
        place = world and world.place
        if place and args.kv:
            raise OptionError(f"--kv: got {args.kv} for {place.ranks} ranks, expected none")
        return real(args, world)

    real = prepare.prepare
    monkeypatch.setattr(prepare, "prepare", refuse)
    monkeypatch.setattr(Session, "__init__", None)
    assert evaluate("--pairs", 1, "--setup", "ranks=3", "--versus", "kv=fp8") == 2
    sentence = "vidk eval: --versus: kv: got fp8 for 3 ranks, expected none\n"
    assert capsys.readouterr().err == sentence
