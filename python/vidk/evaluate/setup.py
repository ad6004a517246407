"""A configuration of the bundled model, as `vidk eval --setup` and `--versus` put it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from vidk.bundled.noise import BLOCK
from vidk.cache_kinds import make_kind
from vidk.models.config import CONFIGS
from vidk.rollout import Schedule

DTYPES = ("float32", "bfloat16", "float16")
MOST_RANKS = 8


@dataclass(frozen=True)
class Setup:
    """One way to run the model; two of them can be compared. Frames are latent frames."""

    dtype: str = "float32"
    compile: bool = False
    window: int = 12
    sink: int = 3
    steps: int = 8
    shift: float = 3.0
    sampler: str = "euler"
    kv: str = "plain"
    recipe: str = "default"
    ranks: int = 1

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"got dtype {self.dtype!r}, expected one of {', '.join(DTYPES)}")
        if self.sink < 0:
            raise ValueError(f"got a sink of {self.sink}, expected at least 0")
        if self.window < self.sink + BLOCK:
            raise ValueError(
                f"got a window of {self.window}, expected at least {self.sink + BLOCK}, the sink "
                f"of {self.sink} and a block of {BLOCK}"
            )
        if not 1 <= self.ranks <= MOST_RANKS:
            raise ValueError(f"got {self.ranks} ranks, expected 1 to {MOST_RANKS}")
        if self.recipe != "default" and self.kv != "nvfp4":
            raise ValueError(
                f"got recipe {self.recipe} with kv {self.kv}, expected kv nvfp4, whose keys it is "
                "for"
            )
        make_kind(self.kv, self.recipe, CONFIGS["bundled"].head_dim)
        Schedule(self.steps, shift=self.shift, sampler=self.sampler)

    @classmethod
    def parse(cls, base: Setup, text: str) -> Setup:
        """Return `base` with the changes of `key=value,key=value`; raise ValueError."""
        changes: dict[str, Any] = {}
        readers: dict[str, Callable[[str], Any]] = {
            "str": str,
            "int": int,
            "float": float,
            "bool": _yes_no,
        }
        for part in filter(None, text.split(",")):
            key, _, value = part.partition("=")
            try:
                changes[key] = readers[cls.__annotations__[key]](value)
            except (KeyError, ValueError):
                known = ", ".join(cls.__annotations__)
                raise ValueError(
                    f"got {part!r}, expected key=value with one of the keys {known}"
                ) from None
        return replace(base, **changes)


def _yes_no(text: str) -> bool:
    return {"yes": True, "no": False}[text]
