"""The frame of the command line: commands, errors, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import vidk
from vidk.cli import main


def outcome(capsys, *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def test_no_command_prints_help(capsys):
    code, out, err = outcome(capsys)
    assert (code, err) == (0, "")
    assert all(f"\n    {name} " in out for name in ("generate", "bench", "env", "convert"))


@pytest.mark.parametrize("command", ["generate", "bench", "env", "convert"])
def test_every_command_has_help(capsys, command):
    code, out, err = outcome(capsys, command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: vidk {command} ")


def test_version(capsys):
    assert outcome(capsys, "--version") == (0, f"vidk {vidk.__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("nonsense",),
            "vidk: COMMAND: got nonsense, expected generate, eval, bench, env, convert or plan",
        ),
        (("--sed",), "vidk: --sed: got an unknown argument, expected one of vidk -h"),
        (
            ("env", "--jsn"),
            "vidk env: --jsn: got an unknown argument, expected one of vidk env -h",
        ),
        (("env", "--json=1"), "vidk env: --json: got '1', expected no value"),
        (("convert", "a"), "vidk convert: DST: got no value, expected one"),
        (
            ("convert", "a", "b", "--dtype", "int8"),
            "vidk convert: --dtype: got int8, expected float32, bfloat16 or float16",
        ),
        (("bench", "--repeat", "x"), "vidk bench: --repeat: got 'x', expected a whole number"),
        (
            ("bench", "--compare", "a"),
            "vidk bench: --compare: got too few values, expected 2 arguments",
        ),
        (("generate", "--out"), "vidk generate: --out: got no value, expected one"),
        (
            ("generate", "--eager", "--compile"),
            "vidk generate: --compile: got --eager too, expected one of them",
        ),
    ],
)
def test_wrong_words(capsys, words, sentence):
    assert outcome(capsys, *words) == (2, "", sentence + "\n")


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (ValueError("--x: got 1, expected 2"), 2, "--x: got 1, expected 2"),
        (ValueError("vidk env: --x: got 1"), 2, "--x: got 1"),
        (FileNotFoundError(2, "No such file or directory", "a.mp4"), 2, "a.mp4: No such file"),
        (RuntimeError("first\n  second"), 2, "first (VIDK_DEBUG=1 shows all of it)"),
        (ImportError("vidk::attention: no CPU kernel"), 2, "vidk::attention: no CPU kernel"),
        (MemoryError("9 GB"), 2, "out of memory (9 GB): take a smaller --size or --window"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 2, "out of memory (CUDA out of"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1"),
            2,
            "out of memory (DefaultCPUAllocator: can't allocate",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
@pytest.mark.parametrize("debug", ["", "0", "1"])
def test_errors_of_a_command(capsys, monkeypatch, error, code, sentence, debug):
    def fail(args):
        raise error

    monkeypatch.setattr("vidk.cli.env.run", fail)
    monkeypatch.setenv("VIDK_DEBUG", debug)
    found, out, err = outcome(capsys, "env")
    lines = err.splitlines()
    assert (found, out) == (code, "")
    assert lines[-1].startswith(f"vidk env: {sentence}")
    assert (lines[0] == "Traceback (most recent call last):") == (debug == "1")
    assert debug == "1" or len(lines) == 1


def test_a_fault_of_vidk_is_not_hidden(monkeypatch):
    monkeypatch.setattr("vidk.cli.env.run", lambda args: {}["fault"])
    with pytest.raises(KeyError):
        main(["env"])


def test_both_ways_to_start():
    module = [sys.executable, "-m", "vidk", "--version"]
    script = [sys.executable, "-c", "import sys, vidk.cli; sys.exit(vidk.cli.main())", "--version"]
    for command in (module, script):
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, f"vidk {vidk.__version__}\n")


def test_a_reader_that_leaves_early():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "vidk", "env"], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
