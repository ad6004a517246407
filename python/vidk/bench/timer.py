"""Clocks, and interleaved rounds whose ratios survive a machine that drifts."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass

import numpy as np
import torch

Thunk = Callable[[], object]

# A sample shorter than this is measured over several calls: the clock itself costs about 1e-7 s.
MIN_SAMPLE_S = 2e-4
# Calls longer than this need no three rounds: they average over a busy machine by themselves.
LONG_CALL_S = 5.0
MIN_ROUNDS, MAX_ROUNDS = 3, 100


@dataclass(frozen=True)
class Stat:
    """Median and spread of `n` samples."""

    median: float
    p10: float
    p90: float
    n: int

    def to_json(self) -> dict[str, float]:
        """Return the four numbers as a JSON object."""
        return asdict(self)


def summarize(samples: Sequence[float]) -> Stat:
    """Return median, 10th and 90th percentile (linear interpolation) and the number of samples.

    NaN stands for a round that was sat out, and does not count.
    """
    played = [s for s in samples if not math.isnan(s)]
    p10, median, p90 = np.percentile(played, [10, 50, 90])
    return Stat(float(median), float(p10), float(p90), len(played))


def ratio(over: Sequence[float], under: Sequence[float], scale: float = 1.0) -> Stat:
    """Summarize `scale * over / under` round by round: what slows a whole round cancels."""
    return summarize([scale * a / b for a, b in zip(over, under, strict=True)])


class Clock:
    """Seconds per call of a function on one device.

    On CUDA the L2 cache is overwritten before each sample, by a kernel that also gives the host
    time to queue the launches, so that a sample holds device time as far as the host keeps up.
    """

    def __init__(self, device: str) -> None:
        self._flush: torch.Tensor | None = None
        if torch.device(device).type == "cuda":
            size = 4 * torch.cuda.get_device_properties(device).L2_cache_size
            self._flush = torch.empty(max(size, 2**28), dtype=torch.int8, device=device)

    def __call__(self, call: Thunk, inner: int = 1) -> float:
        """Return the mean seconds of `inner` calls in a row."""
        if self._flush is None:
            begin = time.perf_counter()
            for _ in range(inner):
                call()
            return (time.perf_counter() - begin) / inner
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        start.record()
        for _ in range(inner):
            call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3 / inner


def calls_per_sample(seconds: float) -> int:
    """Return how many calls of this length make a sample that the clock resolves."""
    return max(1, min(64, round(MIN_SAMPLE_S / max(seconds, 1e-9))))


def schedule(seconds: Mapping[str, float], budget_s: float) -> tuple[int, dict[str, int]]:
    """Return how many rounds to play, and for each form every how many of them it takes part.

    Each form gets an equal share of the budget, at least 3 rounds (1 if its calls take more than
    5 s) and at most 100. Slow forms sit rounds out, by powers of two, so that the rounds of a slow
    form are rounds of every faster one.
    """
    share = budget_s / len(seconds)

    def wanted(t: float) -> int:
        least = 1 if t > LONG_CALL_S else MIN_ROUNDS
        return max(least, min(MAX_ROUNDS, int(share / t)))

    turns = {name: wanted(t) for name, t in seconds.items()}
    rounds = max(turns.values())
    strides = {n: rounds if t == 1 else 2 ** int(math.log2(rounds / t)) for n, t in turns.items()}
    return rounds, strides


def interleave(
    contenders: Mapping[str, Thunk],
    clock: Clock,
    *,
    budget_s: float,
    repeat: int | None = None,
    inner: int = 1,
) -> dict[str, list[float]]:
    """Time all contenders in rounds, in a shuffled order, until the budget is spent.

    The shuffle is seeded; without it a contender would always meet the cache that its predecessor
    left. The first round, of all contenders, tells how many more there are (see `schedule`), unless
    `repeat` does.

    Returns
    -------
    Seconds per call of each contender, one per round; NaN for a round that it sat out.
    """
    order = list(contenders)
    shuffle = random.Random(0).shuffle
    samples: dict[str, list[float]] = {name: [] for name in order}

    def play(players: Set[str]) -> None:
        shuffle(order)
        for name in order:
            here = name in players
            samples[name].append(clock(contenders[name], inner) if here else math.nan)

    play(contenders.keys())
    if repeat is None:
        repeat, strides = schedule({n: inner * s[0] for n, s in samples.items()}, budget_s)
    else:
        strides = dict.fromkeys(order, 1)
    for i in range(1, repeat):
        play({name for name in order if i % strides[name] == 0})
    return samples
