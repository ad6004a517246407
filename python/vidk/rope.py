"""Frequency tables of 3-D RoPE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

THETA = 10000.0


def band_pairs(head_dim: int) -> tuple[int, int]:
    """Return the pairs of the time band and of each space band: (22, 21) at head dim 128.

    Source: Wan 2.1 `rope_params`; each space band has a third of the pairs, rounded down.
    """
    pairs = head_dim // 2
    return pairs - 2 * (pairs // 3), pairs // 3


def freq_table(positions: Tensor, pairs: int) -> Tensor:
    """Return (cos, sin) of `position * theta^(-j / pairs)`.

    Parameters
    ----------
    positions : `[P]`, any real dtype; fractional and negative positions are legal.
    pairs : pairs of the band.

    Returns
    -------
    `[P, pairs, 2]` float32 on the device of `positions`: computed in float64, rounded once. Float32
    angles would lose the large positions, bf16 tables a fifth of all outputs.
    """
    exponents = torch.arange(pairs, dtype=torch.float64, device=positions.device) / max(pairs, 1)
    angles = positions.double()[:, None] * THETA**-exponents
    return torch.stack([angles.cos(), angles.sin()], dim=-1).float()


class RopeTable(nn.Module):
    """The time and space tables of one session, with a time table that never ends.

    `time` is a ring over positions: position p lies in row `p % rows`, and `rows_of` rewrites rows
    in place when a video comes past them. The tensor keeps its address and its shape, so a compiled
    graph stays valid for a stream of any length.

    Parameters
    ----------
    head_dim : channels of one head, even.
    height, width : tokens in a column and in a row of one latent frame.
    rows : rows of the ring; at least the frames of one block.
    """

    time: Tensor
    space: Tensor

    def __init__(
        self,
        head_dim: int,
        height: int,
        width: int,
        *,
        rows: int = 1024,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if head_dim < 2 or head_dim % 2:
            raise ValueError(f"vidk.RopeTable: head_dim: got {head_dim}, expected an even number")
        self.time_pairs, space_pairs = band_pairs(head_dim)
        self._held: list[float] = [float(p) for p in range(rows)]
        time = freq_table(torch.arange(rows), self.time_pairs)
        space = freq_table(torch.arange(max(height, width)), space_pairs)
        self.register_buffer("time", time.to(device), persistent=False)
        self.register_buffer("space", space.to(device), persistent=False)

    def rows_of(self, positions: Sequence[float]) -> list[int]:
        """Return the table row of each position, filling rows that hold another position.

        A position takes row `floor(p) % rows`, or the next one that no other frame of the block
        has taken. What it displaces comes back when it is asked for.
        """
        size = len(self._held)
        if len(positions) > size:
            raise ValueError(
                f"vidk.RopeTable: positions: got {len(positions)} frames, expected at most the "
                f"{size} rows of the table"
            )
        rows: list[int] = []
        taken: set[int] = set()
        for position in map(float, positions):
            row = int(position // 1) % size
            while row in taken and self._held[row] != position:
                row = (row + 1) % size
            if self._held[row] != position:
                self._held[row] = position
                value = freq_table(torch.tensor([position], dtype=torch.float64), self.time_pairs)
                self.time[row].copy_(value[0], non_blocking=True)
            taken.add(row)
            rows.append(row)
        return rows

    # Dtype casts of a model or session must not touch the float32 tables.
    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        time, space = self.time, self.space
        super()._apply(fn, recurse)
        if self.time.dtype != torch.float32:
            self.time, self.space = time.to(self.time.device), space.to(self.space.device)
        return self
