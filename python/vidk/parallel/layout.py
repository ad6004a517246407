"""Which tokens of a block each rank holds, with the numbering that `rope_3d` shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["contiguous", "slices"]
KINDS: tuple[Kind, ...] = ("contiguous", "slices")


@dataclass(frozen=True)
class Layout:
    """The tokens of one rank.

    Hidden states are `[B, G, m, C]`: groups of m tokens that share a modulation. All ranks hold as
    many tokens; what the ranks do not divide is filled up with padding, which nobody reads.

    Parameters
    ----------
    kind : `slices`, a run of `ceil(n / P)` tokens of every frame, or `contiguous`, a run of
        `ceil(F * n / P)` tokens of the block, whose borders may cut frames and rows.
    ranks, rank : P, and which of them this is.
    frame_tokens : n, tokens of one latent frame.
    """

    kind: Kind
    ranks: int
    rank: int
    frame_tokens: int

    @property
    def slice_tokens(self) -> int | None:
        """Tokens of each frame on a rank; None for contiguous shards. An argument of the ops."""
        return ceil_div(self.frame_tokens, self.ranks) if self.kind == "slices" else None

    @property
    def group_tokens(self) -> int:
        """Tokens of one group, m: a frame's slice, or one token."""
        return 1 if self.slice_tokens is None else self.slice_tokens

    def shard_tokens(self, frames: int) -> int:
        """Return the tokens of a rank for a block of frames, padding included."""
        if self.slice_tokens is not None:
            return frames * self.slice_tokens
        return ceil_div(frames * self.frame_tokens, self.ranks)

    def padding(self, frames: int) -> int:
        """Return the padding tokens of all ranks."""
        return self.ranks * self.shard_tokens(frames) - frames * self.frame_tokens

    def token_offset(self, frames: int) -> int:
        """Return the offset of the rank's first token, as `rope_3d` counts it."""
        run = self.shard_tokens(frames) if self.slice_tokens is None else self.slice_tokens
        return self.rank * run

    def split(self, x: Tensor) -> Tensor:
        """Return the rank's tokens `[B, G, m, C]` of a block `[B, F, n, C]`."""
        frames = x.size(1)
        if self.slice_tokens is None:
            run, tokens, dim = self.shard_tokens(frames), x.flatten(1, 2), 1
        else:
            run, tokens, dim = self.slice_tokens, x, 2
        more = self.ranks * run - tokens.size(dim)
        mine = F.pad(tokens, (0, 0, 0, more)).narrow(dim, self.rank * run, run)
        return mine.unsqueeze(2) if self.slice_tokens is None else mine

    def join(self, x: Tensor, frames: int) -> Tensor:
        """Return the block `[B, F, n, C]` of all ranks' tokens `[P, B, G, m, C]`."""
        if self.slice_tokens is None:
            tokens = x.transpose(0, 1).flatten(1, 3).narrow(1, 0, frames * self.frame_tokens)
            return tokens.unflatten(1, (frames, self.frame_tokens))
        return x.permute(1, 2, 0, 3, 4).flatten(2, 3).narrow(2, 0, self.frame_tokens)

    def frame_of_group(self, frames: int, device: torch.device) -> Tensor | None:
        """Return the frame of each group `[G]`; None where groups are the frames.

        Padding counts as of the last frame.
        """
        if self.slice_tokens is not None:
            return None
        token = torch.arange(self.shard_tokens(frames), device=device) + self.token_offset(frames)
        begin = torch.arange(1, frames, device=device) * self.frame_tokens
        # No division: Inductor (torch 2.13, CPU) splits the loop over a divided arange at the first
        # multiple and leaves the rest of the result unwritten.
        return (token[:, None] >= begin).sum(1)


def ceil_div(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)
