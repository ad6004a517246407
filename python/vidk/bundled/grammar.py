"""The closed language of the bundled model: four slots, one word each, and their embeddings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidk.text import PromptEmbeds, TextError, clean_text

COLOURS = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.10, 0.70, 0.20),
    "blue": (0.15, 0.30, 0.95),
    "yellow": (0.98, 0.85, 0.10),
}
BACKGROUNDS = {
    "black": (0.04, 0.04, 0.05),
    "white": (0.96, 0.96, 0.96),
    "gray": (0.50, 0.50, 0.52),
}
SHAPES = ("circle", "square", "triangle")
# Step of one unit along (x, y); y points down.
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}

# The first word of a slot stands in where a prompt leaves it out.
SLOTS = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "direction": tuple(DIRECTIONS),
    "background": tuple(BACKGROUNDS),
}
# Words with which a slot of the embedding has room for; a new word keeps the old ones' rows.
_ROOM = 12
_SYNONYMS = {
    "grey": "gray",
    "upwards": "up",
    "downwards": "down",
    "rightwards": "right",
    "leftwards": "left",
}
_FILLERS = frozenset(
    (
        *("a", "an", "the", "on", "in", "front", "of", "over", "against", "and", "to", "towards"),
        *("is", "that", "it", "with", "moving", "moves", "move", "going", "goes", "flying"),
        *("flies", "sliding", "slides", "background"),
    )
)
_SCALE = 4.0


@dataclass(frozen=True)
class Scene:
    """What a prompt asks for, one word a slot."""

    colour: str = SLOTS["colour"][0]
    shape: str = SLOTS["shape"][0]
    direction: str = SLOTS["direction"][0]
    background: str = SLOTS["background"][0]

    @classmethod
    def of(cls, prompt: str) -> Scene:
        """Read a prompt; raise TextError for a word that the model does not know."""
        found: dict[str, str] = {}
        slot_of = {word: slot for slot, words in SLOTS.items() for word in words}
        for said in re.findall(r"[^\s,.;:!?]+", clean_text(prompt).casefold()):
            word = _SYNONYMS.get(said, said)
            if word in _FILLERS:
                continue
            if word not in slot_of:
                raise TextError(
                    f"prompt: got the word {said!r}, expected only those that the bundled model "
                    f"knows: {vocabulary()}"
                )
            slot = slot_of[word]
            if found.get(slot, word) != word:
                raise TextError(
                    f"prompt: got two words for the {slot}, {found[slot]!r} and {said!r}, expected "
                    "one: the bundled model shows one shape"
                )
            found[slot] = word
        return cls(**found)

    @classmethod
    def from_indices(cls, indices: Sequence[int]) -> Scene:
        """Return the scene with these word numbers, one a slot."""
        return cls(*(words[i] for words, i in zip(SLOTS.values(), indices, strict=True)))

    @property
    def indices(self) -> tuple[int, ...]:
        """Word numbers, one a slot."""
        return tuple(words.index(getattr(self, slot)) for slot, words in SLOTS.items())

    @property
    def prompt(self) -> str:
        """The sentence for this scene."""
        return (
            f"a {self.colour} {self.shape} moving {self.direction} on a {self.background} "
            "background"
        )


def vocabulary() -> str:
    """Return the words of every slot, for the user's eyes."""
    return "; ".join(f"{slot}: {', '.join(words)}" for slot, words in SLOTS.items())


def embed_words(words: Tensor, text_len: int, text_dim: int) -> Tensor:
    """Return embeddings `[..., text_len, text_dim]` of word numbers `[..., slots]`.

    Row i belongs to slot i, since cross-attention sees no order, and holds a single one, scaled;
    rows after the slots are zero. What words mean is learned in the model's text layers.
    """
    place = torch.arange(words.size(-1)) * _ROOM
    rows = torch.nn.functional.one_hot(words + place, text_dim).float() * _SCALE
    return torch.nn.functional.pad(rows, (0, 0, 0, text_len - rows.size(-2)))


class WordEncoder:
    """The text encoder of the bundled model, in the place of umT5; it has no weights.

    Parameters
    ----------
    text_len, text_dim : of the model.
    """

    def __init__(self, text_len: int, text_dim: int) -> None:
        self.text_len, self.text_dim = text_len, text_dim

    def encode(self, prompts: str | Sequence[str]) -> PromptEmbeds:
        """Return the embeddings `[B, text_len, text_dim]` of one prompt or several.

        Raises TextError for a word outside of the vocabulary, which the message lists.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not texts:
            raise TextError("prompts: got none, expected at least 1")
        words = torch.tensor([Scene.of(text).indices for text in texts])
        embeds = embed_words(words, self.text_len, self.text_dim)
        return PromptEmbeds.from_tensor(embeds, self.text_len, [len(SLOTS)] * len(texts))
