"""The closed language of the bundled model."""

from __future__ import annotations

import itertools

import pytest
import torch

from vidk.bundled.grammar import SLOTS, Scene, WordEncoder
from vidk.text import TextError


def test_every_scene_is_read_from_its_own_prompt():
    for words in itertools.product(*SLOTS.values()):
        scene = Scene(*words)
        assert Scene.of(scene.prompt) == scene
        assert Scene.from_indices(scene.indices) == scene


@pytest.mark.parametrize(
    ("prompt", "scene"),
    [
        ("a red circle moving right", Scene("red", "circle", "right", "black")),
        ("The BLUE triangle goes upwards, on grey!", Scene("blue", "triangle", "up", "gray")),
        ("on a white background a square", Scene("red", "square", "right", "white")),
        ("", Scene()),
    ],
)
def test_prompts(prompt, scene):
    assert Scene.of(prompt) == scene


def test_unknown_words_get_the_vocabulary():
    with pytest.raises(TextError) as caught:
        Scene.of("a red dog moving right")
    message = str(caught.value)
    assert message.startswith("prompt: got the word 'dog', expected only those that the bundled")
    assert all(word in message for words in SLOTS.values() for word in words)
    assert "\n" not in message


def test_two_words_for_a_slot():
    with pytest.raises(TextError, match=r"two words for the colour, 'red' and 'blue', expected"):
        Scene.of("a red blue circle")
    assert Scene.of("a red red circle").colour == "red"


def test_embeddings():
    encoder = WordEncoder(8, 64)
    found = encoder.encode(["a red circle moving right", "a red circle moving left"])
    assert found.embeds.shape == (2, 8, 64)
    assert found.context_lens.tolist() == [4, 4]
    assert (found.embeds[:, 4:] == 0).all()
    # The prompts differ in one word, hence in one row.
    assert (found.embeds[0] != found.embeds[1]).any(1).tolist() == [False] * 2 + [True] + [
        False
    ] * 5
    every = [Scene(*words).prompt for words in itertools.product(*SLOTS.values())]
    rows = encoder.encode(every).embeds.flatten(1)
    assert len(torch.unique(rows, dim=0)) == len(every)


def test_no_prompt():
    with pytest.raises(TextError, match="prompts: got none, expected at least 1"):
        WordEncoder(8, 64).encode([])
