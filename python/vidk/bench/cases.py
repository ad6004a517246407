"""Cases: one op on the sizes of one model, with its inputs and the copies it is held against."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vidk.bench.timer import Thunk
from vidk.models.config import CONFIGS, WanConfig
from vidk.ops.registry import BlockShape, Cost, Op

BLOCK_FRAMES = 3
# Bounds the memory and the attention FLOPs of a run; a rollout's window is 6 to 21 frames.
CACHE_FRAMES = 6


@dataclass(frozen=True)
class ModelShape:
    """A model and its token grid; `config` is a key of `vidk.models.CONFIGS`."""

    config: str
    height: int
    width: int

    @property
    def model(self) -> WanConfig:
        """Sizes of the model."""
        return CONFIGS[self.config]

    @property
    def block(self) -> BlockShape:
        """Sizes of the model's op calls for one block of 3 frames and a full cache of 6."""
        return BlockShape(
            frames=BLOCK_FRAMES,
            height=self.height,
            width=self.width,
            heads=self.model.num_heads,
            head_dim=self.model.head_dim,
            cache_frames=CACHE_FRAMES,
            kv_frames=CACHE_FRAMES,
            text_len=self.model.text_len,
        )


SHAPES: dict[str, ModelShape] = {
    "1.3b-480p": ModelShape("wan-1.3b", 30, 52),
    "14b-480p": ModelShape("wan-14b", 30, 52),
    "tiny": ModelShape("tiny", 4, 6),
}
DEFAULT_SHAPES = ("1.3b-480p", "14b-480p")


@dataclass(frozen=True)
class Call:
    """One op with the arguments of one call, by name."""

    op: Op
    shape: BlockShape
    dtype: torch.dtype
    device: str
    args: dict[str, Any] = field(repr=False)

    @classmethod
    def sample(cls, op: Op, shape: BlockShape, dtype: torch.dtype, device: str) -> Call:
        """Draw the arguments; slots are put in order, as the public code can only write a run."""
        values, keywords = op.sample(shape, dtype, device, torch.Generator().manual_seed(0))
        schema = getattr(torch.ops.vidk, op.name).default._schema
        args = {a.name: v for a, v in zip(schema.arguments, values, strict=False)} | keywords
        if "frame_slot" in args:
            args["frame_slot"].copy_(args["frame_slot"].sort().values)
        return cls(op, shape, dtype, device, args)

    @property
    def cost(self) -> Cost:
        """The floor: bytes and FLOPs."""
        return self.op.cost(self.shape, self.dtype)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Frames, height and width of the block in tokens."""
        return self.shape.frames, self.shape.height, self.shape.width

    @property
    def row(self) -> int:
        """First cache row of the block."""
        return int(self.args["frame_slot"][0]) * self.shape.frame_tokens

    def caches(self) -> tuple[Tensor, Tensor]:
        """Return copies of the caches that the op mutates, for a contender of its own."""
        k, v = self.mutated()
        return k, v

    def mutated(self) -> tuple[Tensor, ...]:
        """Return copies of all that the op mutates."""
        return tuple(self.args[name].clone() for name in self.op.mutates)

    def copy(self, *, fresh: bool = False) -> Thunk:
        """Return a plain `copy_` of the block's tensors, strides and all, to contiguous ones.

        With `fresh` what the op would return goes to newly allocated memory, as the op's does:
        large outputs pay for their pages at every call.
        """
        sources = [
            value
            for name, value in self.args.items()
            if isinstance(value, Tensor) and value.dim() >= 4 and name not in self.op.mutates
        ]
        outputs = len(getattr(torch.ops.vidk, self.op.name).default._schema.returns)
        # Packing returns all that it is given, every other op no more than its first argument.
        returned = len(sources) if "ranks" in self.args else min(outputs, 1)
        cloned = sources[:returned] if fresh else []
        pairs = [
            (torch.zeros_like(x, memory_format=torch.contiguous_format), x)
            for x in sources[len(cloned) :]
        ]

        def call() -> None:
            for source in cloned:
                source.clone(memory_format=torch.contiguous_format)
            for target, source in pairs:
                target.copy_(source)

        return call
