"""`vidk generate`: wrong input, a full disk, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.cli.helpers import MODEL, generate
from vidk.cli import main, plan
from vidk.media import write_latents
from vidk.rollout import Session

pytestmark = pytest.mark.usefixtures("quick")

WRONG = [
    (("--size", "480"), "--size: got 480, expected HEIGHTxWIDTH in pixels, such as 480x832"),
    (("--size", ""), "--size: got '', expected HEIGHTxWIDTH in pixels, such as 480x832"),
    (("--size", "9x\n9"), "--size: got '9x\\n9', expected HEIGHTxWIDTH in pixels, such as 480x832"),
    (("--size", "0x16"), "--size: got 0x16, expected multiples of 16x16, such as 16x16"),
    (("--size", "40x100"), "--size: got 40x100, expected multiples of 16x16, such as 32x96"),
    (("--frames", "0"), "--frames: got 0, expected a whole number of at least 1"),
    (("--frames", "many"), "--frames: got many, expected a whole number of at least 1"),
    (("--fps", "nan"), "--fps: got nan, expected a number above 0"),
    (("--fps", "1e-9"), "--fps: got 1e-09, expected at least 0.001"),
    (("--shift", "-1"), "--shift: got -1, expected a number above 0"),
    (("--seed", "x"), "--seed: got x, expected a whole number"),
    (("--threads", "0"), "--threads: got 0, expected a whole number from 1 to 1024"),
    (("--dtype", "int8"), "--dtype: got int8, expected float32, bfloat16 or float16"),
    (
        ("--steps", "250,500"),
        "--steps: got 250,500, expected a number of steps, or decreasing places in (0, 1000], "
        "such as 1000,750,500,250",
    ),
    (
        ("--window", "3", "--sink", "1"),
        "--window: got 3, expected at least 4, the 1 of --sink and the 3 of --block",
    ),
    (
        ("--config", "huge"),
        "--config: got 'huge', expected one of wan-1.3b, wan-14b, wan-5b, tiny, bundled or a "
        "config.json",
    ),
    (("--model", "none.pt", "--eager"), "--random-weights: got --model too, expected one of them"),
    (("--out", "a.avi"), "--out: a.avi: got suffix '.avi', expected one of .mp4, .gif, .png, .sa"),
    (("--out", "no/a.mp4"), "--out: no/a.mp4: the folder "),
    (("--json", "a.txt"), "--json: a.txt: got suffix '.txt', expected one of .json"),
    (("--device", "tpu"), "--device: got tpu, expected cpu, cuda or cuda:N"),
    (("--device", "mps"), "--device: got mps, expected cpu, cuda or cuda:N"),
    (("--device", "cuda"), "--device: got cuda, expected one of the 0 GPUs here"),
    (("--prompt-embeds", "none.pt"), "--prompt-embeds: none.pt: there is no such file"),
    (
        ("--prompt-embeds", "a.pt", "--prompt", "a"),
        "--prompt: got --prompt-embeds too, expected one of them",
    ),
    (
        ("--vae", "no/such/folder"),
        "--vae: WanVAEDecoder: no/such/folder: is neither a folder nor an id like owner/name",
    ),
    (
        ("--first-frames", "a.png"),
        "--first-frames: got a.png without a VAE, expected --vae to encode it, or latents in",
    ),
    (("--first-frames", "none.safetensors"), "--first-frames: none.safetensors: cannot be read: "),
    (
        ("--first-frames", "four.safetensors"),
        "--first-frames: got 4 latent frames, expected whole blocks, such as 3 (--block",
    ),
    (
        ("--first-frames", "one.safetensors"),
        "--first-frames: got 1 frames, expected at least 9, a block (or --independent-first-frame)",
    ),
    (
        ("--first-frames", "three.safetensors", "--frames", "9"),
        "--frames: got 9, expected more than the 9 frames that --first-frames gives, since it",
    ),
    (
        ("--first-frames", "three.safetensors", "--size", "16x16"),
        "--first-frames: got latents [1, 3, 16, 4, 6], expected [1, F, 16, 2, 2] for a video of "
        "16x16",
    ),
    (("--kv", "int4"), "--kv: got int4, expected bf16, nvfp4 or fp8"),
    (("--attention", "flash"), "--attention: got flash, expected auto or fp4"),
    (("--fp4-recipe", "best"), "--fp4-recipe: got best, expected plain, default, accurate or acc"),
    (
        ("--kv", "nvfp4"),
        "--kv: vidk.KVCache: head_dim: got 32, expected a multiple of 64 for kind 'nvfp4' (a tile",
    ),
    (("--kv", "fp8"), "--kv: vidk.KVCache: head_dim: got 32, expected a multiple of 128 for kind"),
    (
        ("--kv", "bf16"),
        "--kv: got bf16 for a model in float32, expected --dtype bfloat16, or no --kv: an unqu",
    ),
    (
        ("--kv", "bf16", "--attention", "fp4"),
        "--attention: got fp4 with --kv bf16, expected --kv nvfp4 or fp8, whose keys it reads",
    ),
    (
        ("--kv", "fp8", "--fp4-recipe", "accurate"),
        "--fp4-recipe: got accurate without --kv nvfp4, whose keys it is for",
    ),
    (("--nonsense",), "--nonsense: got an unknown argument, expected one of vidk generate -h"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG)
def test_wrong_input(capsys, monkeypatch, words, sentence):
    for name, frames in (("one", 1), ("three", 3), ("four", 4)):
        write_latents(torch.zeros(1, frames, 16, 4, 6), f"{name}.safetensors")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = sorted(os.listdir())
    assert generate(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"vidk generate: {sentence}")
    assert err.count("\n") == 1 and err.endswith("\n")
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("--config", "wan-1.3b"),
            "--config: got wan-1.3b alone, expected --model or --random-weights",
        ),
        (("--model", "none.safetensors"), "none.safetensors: "),
        (("--model", "three.safetensors"), "three.safetensors: "),
    ],
)
def test_wrong_models(capsys, words, sentence):
    write_latents(torch.zeros(1, 3, 16, 4, 6), "three.safetensors")
    assert main(["generate", "--eager", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"vidk generate: {sentence}")
    assert "Traceback" not in err


def test_too_large_for_the_memory(capsys, monkeypatch):
    monkeypatch.setattr(plan, "free_memory", lambda device: 3_000_000_000)
    words = ["--config", "wan-1.3b", "--random-weights", "--eager", "--frames", "9"]
    assert main(["generate", *words]) == 2
    assert capsys.readouterr().err == (
        "vidk generate: out of memory (the weights need 2.84 GB and the cache 863 MB, 3.00 GB are "
        "free on cpu): take a smaller --size or --window, or --dtype bfloat16\n"
    )


def test_a_full_disk_leaves_the_old_file(capsys, monkeypatch):
    Path("vidk.mp4").write_bytes(b"old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vidk.media.mp4.Mp4Sink.write", full)
    assert generate("--frames", 9) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.endswith("vidk.mp4: cannot be written: No space left on device")
    assert os.listdir() == ["vidk.mp4"] and Path("vidk.mp4").read_bytes() == b"old"


@pytest.mark.parametrize("swallowed", [False, True])
def test_ctrl_c(capsys, monkeypatch, swallowed):
    real = Session._run
    calls = []

    def run(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 7:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                # As Python itself does where it cannot raise: in callbacks and finalizers.
                if not swallowed:
                    raise
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Session, "_run", run)
    before = signal.getsignal(signal.SIGINT)
    assert generate("--frames", 57) == 130
    assert capsys.readouterr().err.endswith("vidk generate: interrupted\n")
    assert os.listdir() == []
    assert len(calls) == 7
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_from_outside(tmp_path):
    command = [sys.executable, "-m", "vidk", "generate", *MODEL, "--frames", "400000"]
    running = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    end = time.monotonic() + 60
    while not list(tmp_path.glob(".*.tmp")) and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, "")
    assert err.endswith("vidk generate: interrupted\n") and "Traceback" not in err
    assert os.listdir(tmp_path) == []
