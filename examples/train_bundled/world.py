"""Frames as latents, made on the fly: gathers from a table of every shape at every phase."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vidk.bundled.codec import patches
from vidk.bundled.grammar import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES
from vidk.bundled.scenes import GRID, PLACES, shape_mask

SLOTS = ("colour", "shape", "direction", "background")
SIZES = (len(COLOURS), len(SHAPES), len(DIRECTIONS), len(BACKGROUNDS))


def mask_table() -> Tensor:
    """Return `[shapes, 2, 2, GRID, GRID, CELL * CELL]`: masks at each (row, column) phase."""
    middle = PLACES // 2
    return torch.stack(
        [
            torch.stack(
                [
                    torch.stack(
                        [
                            patches(shape_mask(shape, middle + px, middle + py)[None, ..., None])[0]
                            for px in (0, 1)
                        ]
                    )
                    for py in (0, 1)
                ]
            )
            for shape in SHAPES
        ]
    )


@dataclass
class LatentWorld:
    """Latents of every possible frame.

    Attributes
    ----------
    table : `[shapes * 4, 3, C, GRID, GRID]`, what one unit of each colour difference adds.
    flat : `[backgrounds, C, 1, 1]`, latent of an empty cell.
    diff : `[colours, backgrounds, 3]`, colour of the shape less that of the background.
    """

    table: Tensor
    flat: Tensor
    diff: Tensor

    @classmethod
    def build(cls, weight: Tensor, mean: Tensor) -> LatentWorld:
        """Tabulate for an encoder `[C, CELL * CELL * 3]` and its mean `[CELL * CELL * 3]`."""
        masks = mask_table().flatten(0, 2)
        w = weight.unflatten(1, (-1, 3))
        table = torch.einsum("nyxp,cpk->nkcyx", masks, w)
        colours = torch.tensor(list(COLOURS.values()))
        grounds = torch.tensor(list(BACKGROUNDS.values()))
        flat = torch.einsum("bk,cpk->bc", grounds, w) - weight @ mean
        return cls(table, flat[..., None, None], colours[:, None] - grounds[None])

    def latents(self, words: Tensor, places: Tensor) -> Tensor:
        """Return `[N, C, GRID, GRID]` of frames with words `[N, 4]` and centres `[N, 2]` (x, y)."""
        places = places % PLACES
        index = words[:, 1] * 4 + (places[:, 1] % 2) * 2 + places[:, 0] % 2
        diff = self.diff[words[:, 0], words[:, 3]]
        base = torch.einsum("nkcyx,nk->ncyx", self.table[index], diff)
        cells = torch.arange(GRID)
        rows = (cells[None] - (places[:, 1:] - PLACES // 2).div(2, rounding_mode="floor")) % GRID
        cols = (cells[None] - (places[:, :1] - PLACES // 2).div(2, rounding_mode="floor")) % GRID
        n = torch.arange(len(words))[:, None, None]
        base = base.permute(0, 2, 3, 1)[n, rows[:, :, None], cols[:, None, :]]
        return base.permute(0, 3, 1, 2) + self.flat[words[:, 3]]


STEPS = torch.tensor(list(DIRECTIONS.values()))
# A shape begins this many half cells behind the middle, seen in the direction of its motion ...
BEHIND = 4
# ... and up to this many beside it, in which seeds differ.
BESIDE = 2


def random_words(n: int, generator: torch.Generator) -> Tensor:
    """Return `[n, 4]` words of the slots."""
    return torch.stack([torch.randint(k, (n,), generator=generator) for k in SIZES], dim=1)


def start_places(words: Tensor, generator: torch.Generator) -> Tensor:
    """Return the centres `[n, 2]` of first frames of `words` `[n, slots]`."""
    step = STEPS[words[:, 2]]
    beside = torch.randint(-BESIDE, BESIDE + 1, (len(words), 1), generator=generator)
    return PLACES // 2 - BEHIND * step + beside * step.flip(1)


def walk(words: Tensor, start: Tensor) -> Tensor:
    """Return the centres `[N, T, 2]` of shapes that follow `words` `[N, T, 4]` from `start`.

    The first frame is at `start`; each later frame steps in the direction of its own words.
    """
    steps = STEPS[words[..., 2]]
    steps[:, 0] = 0
    return start[:, None] + steps.cumsum(1)
