"""How ranks share a model: which layout, which exchange, and the bytes that it moves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from vidk.parallel.layout import KINDS, Kind, Layout

Pattern = Literal["heads", "hybrid", "gather"]
PATTERNS: tuple[Pattern, ...] = ("heads", "hybrid", "gather")


class Sizes(Protocol):
    """What is asked of a `WanConfig`, which lies above this part of vidk."""

    @property
    def num_heads(self) -> int: ...
    @property
    def dim(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def out_channels(self) -> int: ...
    @property
    def patch_size(self) -> tuple[int, int, int]: ...


@dataclass(frozen=True)
class Sharding:
    """How P ranks share the tokens, the heads and the cache of a model.

    Parameters
    ----------
    ranks : P.
    head_ranks : U, a divisor of P and of the heads. `U = P`: every rank owns some heads and the
        cache of these. `U = 1`: every rank owns all heads, its queries stay, and k and v are
        gathered. In between both: rank `r * U + u` owns head group u for the queries of ranks
        `r * U` and on.
    kind : which tokens a rank holds outside attention, see `Layout`.
    heads, channels, layers : of the model.
    flow_values : numbers that the head gives for a token.
    frames, frame_tokens, batch : of a block.
    itemsize : bytes of an element.
    """

    ranks: int
    head_ranks: int
    kind: Kind
    heads: int
    channels: int
    layers: int
    flow_values: int
    frames: int
    frame_tokens: int
    batch: int
    itemsize: int

    @property
    def token_ranks(self) -> int:
        """R = P / U: ranks that own the same heads, for different queries."""
        return self.ranks // self.head_ranks

    @property
    def pattern(self) -> Pattern:
        """The exchange, by name."""
        if self.token_ranks == 1:
            return "heads"
        return "gather" if self.head_ranks == 1 else "hybrid"

    def layout(self, rank: int = 0) -> Layout:
        """Return the layout of a rank."""
        return Layout(self.kind, self.ranks, rank, self.frame_tokens)

    @property
    def shard_bytes(self) -> int:
        """Bytes of one of q, k, v and the attention's output on a rank, padding included."""
        tokens = self.batch * self.layout().shard_tokens(self.frames)
        return tokens * self.channels * self.itemsize

    @property
    def query_bytes(self) -> int:
        """Bytes that a rank sends to others for q and for the output, each, in a layer."""
        return self.shard_bytes - self.shard_bytes // self.head_ranks

    @property
    def kv_bytes(self) -> int:
        """Bytes that a rank sends to others for k and for v, each, in a layer."""
        return self.query_bytes + (self.token_ranks - 1) * self.shard_bytes

    @property
    def layer_bytes(self) -> int:
        """Bytes that a rank sends to others in a layer."""
        return 2 * self.query_bytes + 2 * self.kv_bytes

    @property
    def layer_messages(self) -> int:
        """Messages that a rank sends in a layer."""
        return 4 * (self.head_ranks - 1) + 2 * (self.token_ranks - 1)

    @property
    def flow_bytes(self) -> int:
        """Bytes that a rank sends to others for the flow at the end of a forward."""
        tokens = self.batch * self.layout().shard_tokens(self.frames)
        return (self.ranks - 1) * tokens * self.flow_values * self.itemsize

    @property
    def clean_bytes(self) -> int:
        """Bytes that a rank sends in the clean re-run: no queries in the last layer, no flow."""
        return self.layers * self.layer_bytes - 2 * self.query_bytes

    @property
    def forward_bytes(self) -> int:
        """Bytes that a rank sends in one denoising forward."""
        return self.layers * self.layer_bytes + self.flow_bytes

    def __str__(self) -> str:
        """Return what was chosen, and why, in one line."""
        layout = self.layout()
        each = f"{layout.shard_tokens(self.frames)} of {self.frames * self.frame_tokens} tokens"
        how = (
            f"slices of {layout.slice_tokens} tokens a frame"
            if self.kind == "slices"
            else "contiguous tokens"
        )
        own = f"{self.heads // self.head_ranks} of {self.heads} heads"
        needed = self.heads % self.ranks != 0
        why = f", since {self.ranks} does not divide {self.heads}" if needed else ""
        pattern = {
            "heads": own,
            "hybrid": f"{own} for 1 of {self.token_ranks} parts of the queries{why}",
            "gather": "all heads for its own queries, k and v gathered",
        }[self.pattern]
        return (
            f"{self.ranks} ranks ({self.pattern}): each has {each} ({how}) and {pattern}; it sends "
            f"{self.layer_bytes / 1e6:.3g} MB a layer, {self.forward_bytes / 1e6:.3g} MB a forward"
        )


def choose_sharding(
    config: Sizes,
    *,
    ranks: int,
    frame_tokens: int,
    frames: int,
    itemsize: int,
    batch: int = 1,
    first_frames: int | None = None,
    pattern: Pattern | None = None,
    kind: Kind | None = None,
) -> Sharding:
    """Choose how ranks share a model: the fewest bytes, then the least padding.

    Parameters
    ----------
    config : sizes of the model, a `WanConfig`.
    ranks : P.
    frame_tokens, frames, batch : of a block.
    itemsize : bytes of an element.
    first_frames : frames of the smallest block, if it is smaller.
    pattern, kind : what must be chosen; default: the best.

    Raises
    ------
    ValueError
        If the ranks cannot share the model so.
    """
    heads = config.num_heads
    least = frame_tokens * min(frames, frames if first_frames is None else first_frames)
    if ranks < 1:
        raise ValueError(f"vidk.parallel: ranks: got {ranks}, expected at least 1")
    if ranks > least:
        raise ValueError(
            f"vidk.parallel: ranks: got {ranks}, expected at most {least}, the tokens of the "
            "smallest block"
        )
    if kind is not None and kind not in KINDS:
        raise ValueError(f"vidk.parallel: layout: got {kind}, expected {' or '.join(KINDS)}")
    head_ranks = _head_ranks(heads, ranks, pattern)
    _, ph, pw = config.patch_size

    def sharding(kind: Kind) -> Sharding:
        return Sharding(
            ranks,
            head_ranks,
            kind,
            heads,
            config.dim,
            config.num_layers,
            config.out_channels * ph * pw,
            frames,
            frame_tokens,
            batch,
            itemsize,
        )

    if kind is not None:
        return sharding(kind)
    # Slices where they are no worse: a frame's modulation needs no index there.
    kinds: tuple[Kind, ...] = ("slices", "contiguous")
    return min(map(sharding, kinds), key=lambda s: s.shard_bytes)


def _head_ranks(heads: int, ranks: int, pattern: Pattern | None) -> int:
    most = math.gcd(heads, ranks)
    if pattern == "gather" or pattern is None:
        return 1 if pattern else most
    if pattern == "heads":
        if most != ranks:
            fit = [n for n in range(1, heads + 1) if heads % n == 0]
            raise ValueError(
                f"vidk.parallel: exchange: got heads for {ranks} ranks, expected a number that "
                f"divides the {heads} heads, one of {fit} (or hybrid, or gather)"
            )
        return ranks
    if pattern == "hybrid":
        fit = [n for n in range(2, ranks) if ranks % n == 0 and heads % n == 0]
        if not fit:
            raise ValueError(
                f"vidk.parallel: exchange: got hybrid for {ranks} ranks, expected a number with a "
                f"smaller divisor of at least 2 that divides the {heads} heads (or gather)"
            )
        return max(fit)
    raise ValueError(
        f"vidk.parallel: exchange: got {pattern}, expected one of {', '.join(PATTERNS)}"
    )
