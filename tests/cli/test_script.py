"""Prompt scripts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.cli.helpers import generate
from vidk.cli.script import read_script
from vidk.media import read_latents

pytestmark = pytest.mark.usefixtures("quick")


def test_a_script():
    Path("s.txt").write_text("# two prompts\n\n0: a dog\n 2.5 : a cat: black \n")
    assert read_script("s.txt") == [(0.0, "a dog"), (2.5, "a cat: black")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "s.txt: got no prompt, expected lines `seconds: prompt`"),
        ("a dog", "s.txt: line 1: got 'a dog', expected `seconds: prompt`, such as"),
        ("0:", "s.txt: line 1: got '0:', expected"),
        ("nan: a dog", "s.txt: line 1: got 'nan: a dog', expected"),
        ("1: a dog", "s.txt: line 1: got 1 s, expected 0 s for the first prompt"),
        ("0: a dog\n0: a cat", "s.txt: line 2: got 0 s, expected more than 0 s"),
    ],
)
def test_wrong_scripts(capsys, text, message):
    Path("s.txt").write_text(text)
    assert generate("--prompt-script", "s.txt") == 2
    assert capsys.readouterr().err.startswith(f"vidk generate: --prompt-script: {message}")


def test_a_missing_script(capsys):
    assert generate("--prompt-script", "s.txt") == 2
    assert "--prompt-script: s.txt: No such file" in capsys.readouterr().err


def latents(*words: object) -> torch.Tensor:
    assert generate("--out", "a.safetensors", "--frames", 33, *words) == 0
    return read_latents("a.safetensors")[0]


def test_the_prompt_changes_with_the_block_that_begins_at_its_time_or_later():
    # Blocks begin at pixel frames 0, 9 and 21: at 16 fps 0, 0.56 and 1.31 s.
    dog, cat = latents("--prompt", "a dog"), latents("--prompt", "a cat")
    for seconds, same in ((0.5, 3), (0.56, 3), (0.57, 6), (1.3, 6), (2.0, 9)):
        Path("s.txt").write_text(f"0: a dog\n{seconds}: a cat\n")
        mixed = latents("--prompt-script", "s.txt")
        assert torch.equal(mixed[:, :same], dog[:, :same])
        if same < 9:
            assert (mixed[:, same : same + 3] - dog[:, same : same + 3]).abs().max() > 1e-3
            # What was shown under the old prompt stays in the cache.
            assert (mixed[:, same:] - cat[:, same:]).abs().max() > 1e-3
