"""Statistics of the timer, and how many rounds it plays in which order."""

import math
import time

import pytest

from vidk.bench.timer import (
    MAX_ROUNDS,
    Clock,
    calls_per_sample,
    interleave,
    ratio,
    schedule,
    summarize,
)


def test_summary_of_known_samples():
    stat = summarize([float(i) for i in range(11)])
    assert (stat.median, stat.p10, stat.p90, stat.n) == (5.0, 1.0, 9.0, 11)
    assert summarize([math.nan, 2.0, math.nan]).n == 1
    one = summarize([3.0])
    assert (one.median, one.p10, one.p90, one.n) == (3.0, 3.0, 3.0, 1)


def test_ratio_is_taken_round_by_round():
    drift = [1.0, 2.0, 4.0, 8.0, 16.0]
    stat = ratio([3 * d for d in drift], [2 * d for d in drift], scale=10)
    assert stat.median == stat.p10 == stat.p90 == 15.0
    assert stat.n == 5
    with pytest.raises(ValueError):
        ratio([1.0, 2.0], [1.0])


def test_clock_measures_one_call():
    seconds = Clock("cpu")(lambda: time.sleep(0.01), inner=2)
    assert 0.01 <= seconds < 0.02 + 0.5


@pytest.mark.parametrize(("seconds", "calls"), [(0.0, 64), (1e-5, 20), (1e-4, 2), (1.0, 1)])
def test_short_calls_are_measured_together(seconds, calls):
    assert calls_per_sample(seconds) == calls


class FakeClock(Clock):
    """Plays the calls, and says that each took a given time."""

    def __init__(self, seconds: float) -> None:
        super().__init__("cpu")
        self.seconds = seconds

    def __call__(self, call, inner=1):
        call()
        return self.seconds


def play(seconds: float, **options):
    played = []
    names = ("op", "copy", "public", "compiled")
    forms = {n: (lambda n=n: played.append(n)) for n in names}
    samples = interleave(forms, FakeClock(seconds), **options)
    assert set(samples) == set(names)
    (count,) = {len(s) for s in samples.values()}
    rounds = [tuple(played[i : i + 4]) for i in range(0, len(played), 4)]
    assert len(rounds) == count
    assert all(set(r) == set(names) for r in rounds)
    return rounds


def test_rounds_follow_the_budget():
    assert len(play(0.1, repeat=7, budget_s=0)) == 7
    assert len(play(0.1, budget_s=1e6)) == MAX_ROUNDS
    assert len(play(0.1, budget_s=4.0)) == 10
    assert len(play(0.1, budget_s=0)) == 3
    assert len(play(6.0, budget_s=0)) == 1
    assert len(play(6.0, budget_s=49)) == 2


def test_slow_forms_sit_rounds_out():
    seconds = {"op": 0.001, "copy": 0.003, "public": 1.0}
    rounds, strides = schedule(seconds, budget_s=0.33)
    assert rounds == 100
    assert strides == {"op": 1, "copy": 2, "public": 32}

    assert schedule({"op": 8.0, "limit": 0.3}, budget_s=2) == (3, {"op": 3, "limit": 1})

    played = []
    forms = {n: (lambda n=n: played.append(n)) for n in seconds}

    class Clocks(FakeClock):
        def __call__(self, call, inner=1):
            call()
            return seconds[played[-1]]

    samples = interleave(forms, Clocks(0), budget_s=0.33)
    assert {n: played.count(n) for n in seconds} == {"op": 100, "copy": 50, "public": 4}
    assert {len(s) for s in samples.values()} == {100}
    assert ratio(samples["public"], samples["op"]).n == 4
    assert ratio(samples["op"], samples["copy"]).n == 50
    assert summarize(samples["op"]).n == 100


def test_no_form_always_follows_the_same_other():
    rounds = play(0.1, repeat=30, budget_s=0)
    followers = {r[i - 1] for r in rounds for i in range(1, 4) if r[i] == "op"}
    assert followers == {"copy", "public", "compiled"}
