"""`vidk generate`, on a tiny model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from tests.cli.helpers import MODEL, TINY, generate
from vidk.cli import inputs, job, main
from vidk.media import read_latents, read_video, write_latents
from vidk.models.flops import forward_flops
from vidk.models.save import save_checkpoint
from vidk.models.seeded import seeded_model
from vidk.rollout import Session
from vidk.text import seeded_embeds
from vidk.vae import PreviewDecoder, VAEError

pytestmark = pytest.mark.usefixtures("quick")


def generate_report(*words: object) -> dict:
    assert generate(*words, "--json", "report.json") == 0
    return json.loads(Path("report.json").read_text())


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_a_video(capsys, name):
    assert generate("--out", name, "--frames", 22, "--fps", 8) == 0
    frames = read_video(name)
    assert frames.shape == (22, 32, 48, 3)
    assert frames.float().std() > 20
    assert (frames[0] != frames[-1]).any()
    out, err = capsys.readouterr()
    rows = {line[:9].strip(): line[9:] for line in out.splitlines()}
    assert rows["model"] == "tiny, 149 k parameters, random weights, seed 0, float32"
    assert rows["video"].startswith("22 frames of 32x48 at 8 fps: 9 latent frames, blocks of 3 (3")
    assert rows["decoder"] == "preview (fixed linear map to RGB, not the VAE)"
    assert rows["graphs"] == "none, run eagerly (--eager)"
    assert "of float32" in rows["matmul"]
    assert rows["wrote"].startswith(f"{name} (")
    assert err.endswith("3 blocks, 15 forwards, eagerly on cpu\n")


def test_a_sheet_and_latents():
    assert generate("--out", "a.png", "--frames", 9) == 0
    assert read_video("a.png").shape[0] == 1
    assert generate("--out", "a.safetensors", "--frames", 10, "--seed", -4) == 0
    latents, note = read_latents("a.safetensors")
    assert latents.shape == (1, 6, 16, 4, 6)
    assert latents.isfinite().all() and latents.std() > 0.3
    assert note["config"] == "tiny" and note["seed"] == -4


def test_the_latents_are_those_of_a_session():
    generate("--out", "a.safetensors", "--frames", 21, "--seed", 3, "--window", 5, "--sink", 1)
    prompt = seeded_embeds(inputs.DEFAULT_PROMPT, TINY.text_len, TINY.text_dim)
    session = Session(
        seeded_model(TINY), prompt.embeds, prompt.context_lens, (4, 6), frames=5, sink=1, seed=3
    )
    expected = torch.cat([b.latents for b in session.generate(6)], dim=1)
    assert torch.equal(read_latents("a.safetensors")[0], expected)


@pytest.mark.parametrize("suffix", ["mp4", "gif", "png", "safetensors"])
def test_same_command_same_bytes(suffix):
    names = [f"{i}.{suffix}" for i in range(3)]
    for name, seed in zip(names, (5, 5, 6), strict=True):
        assert generate("--out", name, "--frames", 9, "--seed", seed) == 0
    first, again, other = (Path(name).read_bytes() for name in names)
    assert first == again != other


@pytest.mark.parametrize(
    "words",
    [
        ("--prompt", "a dog"),
        ("--dtype", "bfloat16"),
        ("--steps", "2"),
        ("--steps", "1000,500"),
        ("--shift", "2"),
        ("--block", "1"),
        ("--window", "4", "--sink", "1"),
        ("--independent-first-frame",),
    ],
)
def test_options_change_the_result(words):
    generate("--out", "a.safetensors", "--frames", 33)
    generate("--out", "b.safetensors", "--frames", 33, *words)
    a, b = (read_latents(f"{name}.safetensors")[0].float() for name in "ab")
    frames = min(a.size(1), b.size(1))
    assert b.isfinite().all()
    assert not torch.allclose(a[:, :frames], b[:, :frames], atol=1e-3)


def test_report(monkeypatch):
    found = generate_report("--out", "a.mp4", "--frames", 33, "--window", 4, "--sink", 1)
    assert found["video"]["blocks"] == [3, 3, 3]
    assert (found["video"]["window"], found["video"]["sink"]) == (4, 1)
    times = found["times"]
    assert [b["kv_frames"] for b in times["blocks"]] == [3, 4, 4]
    assert [b["pixel_frames"] for b in times["blocks"]] == [9, 12, 12]
    assert [len(b["forwards"]) for b in times["blocks"]] == [5, 5, 5]
    assert times["steady_blocks"] == 2 and times["warm_forwards"] == 12
    assert times["forward_flops"] == forward_flops(
        TINY, frames=3, frame_tokens=6, kv_frames=4, text_keys=8
    )
    first, *later = times["blocks"]
    total = sum(b["denoise"] + b["decode"] + b["write"] for b in later)
    assert times["frames_per_second"] == pytest.approx(24 / total)
    assert times["first_block"] == first["denoise"] + first["decode"] + first["write"]
    assert all(sum(b["forwards"]) <= b["denoise"] for b in times["blocks"])
    assert found["compile"]["compiled"] is False
    assert found["output"]["bytes"] == os.path.getsize("a.mp4")
    assert found["memory"]["peak"] > 50e6
    assert found["memory"]["cache"] == 2 * 2 * 4 * 6 * 64 * 4
    assert found["prompt"]["tokens"] == 7


def test_the_kernels_named_are_those_that_ran():
    seen = set()

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "vidk":
                seen.add(func.name().removeprefix("vidk::"))
            return func(*args, **(kwargs or {}))

    with Spy():
        found = generate_report("--out", "a.mp4", "--frames", 9)
    assert seen == found["kernels"].keys()
    assert all(found["kernels"].values())


def test_compiled(capsys):
    words = [w for w in MODEL if w != "--eager"]
    name = ["--out", "a.safetensors", "--json", "a.json", "--frames", "17"]
    assert main(["generate", *words, *name, "--compile"]) == 0
    assert "graphs   1 compiled, 0 breaks, 0 recompilations\n" in capsys.readouterr().out
    found = json.loads(Path("a.json").read_text())
    counts = {"graphs": 1, "breaks": 0, "recompiles": []}
    assert found["compile"] == {"compiled": True, "reason": None, **counts}
    # The forward that compiled is not among the warm ones.
    assert found["times"]["warm_forwards"] == 3 + 4
    assert found["times"]["steady_blocks"] == 1
    assert found["times"]["forward"] < found["times"]["blocks"][0]["forwards"][0] / 100
    assert generate(*name, "--out", "b.safetensors") == 0
    a, b = (read_latents(f"{name}.safetensors")[0] for name in "ab")
    assert torch.allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("mode", [None, "--compile"])
def test_a_compiler_that_fails(monkeypatch, capsys, mode):
    from torch._inductor.exc import CppCompileError

    real = job.Session

    def session(*args, compile, **kwargs):
        if compile:
            raise CppCompileError(["g++"], "no such header")
        return real(*args, compile=compile, **kwargs)

    monkeypatch.setattr(job, "Session", session)
    words = [w for w in MODEL if w != "--eager"] + ([mode] if mode else [])
    code = main(["generate", *words, "--frames", "9"])
    out, err = capsys.readouterr()
    assert code == (2 if mode else 0)
    assert os.path.exists("vidk.mp4") == (mode is None)
    failed = "C++ compile error"
    assert failed in err
    assert mode or f"graphs   none, run eagerly (torch.compile failed: {failed})" in out


@pytest.mark.parametrize("mode", [None, "--compile"])
def test_no_compiler(monkeypatch, capsys, mode):
    monkeypatch.setattr("vidk.cli.prepare.compile_obstacle", lambda device: "no compiler")
    words = [w for w in MODEL if w != "--eager"] + ([mode] if mode else [])
    code = main(["generate", *words, "--frames", "9"])
    out, err = capsys.readouterr()
    if mode:
        assert (code, err) == (2, "vidk generate: --compile: no compiler\n")
    else:
        assert code == 0 and "graphs   none, run eagerly (no compiler)\n" in out


def test_a_checkpoint(capsys):
    save_checkpoint(seeded_model(TINY), "m.safetensors")
    words = ["generate", "--eager", "--size", "32x48", "--frames", "9"]
    assert main([*words, "--model", "m.safetensors", "--out", "a.mp4"]) == 0
    out = capsys.readouterr().out
    assert "model    m.safetensors, 149 k parameters, m.safetensors, float32\n" in out
    assert "note     the prompt is only placeholder embeddings" in out
    embeds = seeded_embeds(inputs.DEFAULT_PROMPT, TINY.text_len, TINY.text_dim).embeds
    save_file({"prompt_embeds": embeds[0, :7].contiguous()}, "p.safetensors")
    told = ["--model", "m.safetensors", "--prompt-embeds", "p.safetensors", "--out", "b.mp4"]
    assert main([*words, *told]) == 0
    assert "note" not in capsys.readouterr().out
    assert generate("--frames", 9, "--out", "c.mp4") == 0
    a, b, c = (Path(f"{name}.mp4").read_bytes() for name in "abc")
    assert a == b == c


class Codec:
    """Stands in for the VAE: a latent is the mean colour of a cell, several times."""

    channels, scale, description = 16, 8, "a codec"

    def __init__(self):
        self.decode = PreviewDecoder().decode

    def encode(self, frames):
        if frames.size(1) % 4 != 1:
            raise VAEError("frames")
        cells = frames[:, ::4].float().unflatten(2, (-1, 8)).unflatten(4, (-1, 8)).mean((3, 5))
        latents = (cells / 64 - 2).permute(0, 1, 4, 2, 3)
        return latents.repeat(1, 1, 6, 1, 1)[:, :, :16]


def test_latents_are_continued():
    generate("--out", "a.safetensors", "--frames", 9, "--seed", 1)
    latents, _ = read_latents("a.safetensors")
    for name in ("b.safetensors", "b.mp4"):
        words = ["--first-frames", "a.safetensors", "--frames", 17, "--seed", 1, "--out", name]
        assert generate(*words) == 0
    both, _ = read_latents("b.safetensors")
    assert both.shape[1] == 6
    assert torch.equal(both[:, :3], latents)
    assert read_video("b.mp4").shape[0] == 17
    # The session runs the given frames through the cache, hence what follows is what would have.
    generate("--out", "c.safetensors", "--frames", 17, "--seed", 1)
    assert torch.allclose(read_latents("c.safetensors")[0], both, atol=1e-5)


def test_a_size_comes_with_latents():
    write_latents(torch.randn(1, 3, 16, 6, 4), "a.safetensors")
    words = ["--config", "tiny", "--random-weights", "--eager", "--frames", "13"]
    assert main(["generate", *words, "--first-frames", "a.safetensors"]) == 0
    assert read_video("vidk.mp4").shape == (13, 48, 32, 3)


def test_a_video_and_a_picture_are_continued(monkeypatch):
    monkeypatch.setattr(inputs, "WanVAEDecoder", lambda path, device: Codec())
    generate("--out", "a.gif", "--frames", 12)
    found = generate_report("--first-frames", "a.gif", "--vae", "here", "--frames", 21)
    assert found["video"]["given_latent_frames"] == 3  # the last 9 of 12 frames
    assert found["video"]["blocks"] == [3]
    assert read_video("vidk.mp4").shape[0] == 21
    generate("--out", "a.png", "--frames", 1)
    picture = ["--first-frames", "a.png", "--vae", "here", "--independent-first-frame"]
    found = generate_report(*picture, "--frames", 13)
    assert found["video"]["given_latent_frames"] == 1
    assert found["video"]["blocks"] == [3]


@pytest.mark.parametrize(
    ("words", "kind", "recipe", "key_row"),
    [
        ((), "plain", None, 512),
        (("--kv", "nvfp4"), "nvfp4", "default", (24 * 64 + 1024 + 256) / 24),
        (("--attention", "fp4", "--fp4-recipe", "accurate"), "nvfp4", "accurate", 170 + 2 / 3),
        (("--kv", "fp8", "--attention", "fp4"), "fp8", "mxfp8", 128 + 512 / 24),
        (("--kv", "bf16", "--dtype", "bfloat16"), "plain", None, 256),
    ],
)
def test_kinds_of_cache(words, kind, recipe, key_row, capsys):
    bundled = ("--config", "bundled", "--size", "64x96")
    found = generate_report(*bundled, "--out", "a.safetensors", "--frames", 17, *words)
    assert found["cache"] == {"kind": kind, "recipe": recipe}
    assert found["memory"]["key_row"] == pytest.approx(key_row)
    reader = "attention" if kind == "plain" else "fp4_attention"
    assert reader in found["kernels"] and all(found["kernels"].values())
    assert (
        f"cache    {kind}, keys quantised by the recipe {recipe}" in capsys.readouterr().out
    ) == (kind != "plain")
    latents, _ = read_latents("a.safetensors")
    generate(*bundled, "--out", "b.safetensors", "--frames", 17)
    plain, _ = read_latents("b.safetensors")
    error = (latents.float() - plain).norm() / plain.norm()
    assert error < 0.05 and (error > 1e-4) == bool(words)
