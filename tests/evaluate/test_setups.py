"""Setups that differ in the cache or in the number of ranks, on real rollouts."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace

import pytest
import torch

from vidk.bundled import bundled_codec, bundled_model
from vidk.evaluate import Setup, cases, compared, decoded, rollouts
from vidk.evaluate.ranks import on_ranks
from vidk.parallel.launch import RanksError

BLOCKS = 2
BASE = Setup(steps=4)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """On a busy machine two would wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model():
    return bundled_model()


@pytest.fixture(scope="module")
def plain(model):
    return rollouts(model, cases(2), BASE, BLOCKS)


def frames(latents):
    return decoded(bundled_codec(), latents)


@pytest.mark.parametrize(("kind", "bar"), [("nvfp4", 0.98), ("fp8", 0.99)])
def test_quantised_keys_change_little(model, plain, kind, bar):
    other = rollouts(model, cases(2), replace(BASE, kv=kind), BLOCKS)
    found = compared(frames(plain), frames(other))
    assert not found["identical"]
    assert bar < found["ssim"]["mean"] < 0.9999


def test_the_recipe_arrives(model):
    default, accurate = (
        rollouts(model, cases(1), Setup(kv="nvfp4", recipe=recipe, steps=2), 1)
        for recipe in ("default", "accurate")
    )
    assert not torch.equal(default, accurate)


def test_ranks_make_the_same_video(model, plain, monkeypatch):
    started = []

    def counting(ranks, *args):
        started.append(ranks)
        on_ranks(ranks, *args)

    monkeypatch.setattr(sys.modules[rollouts.__module__], "on_ranks", counting)
    two = rollouts(model, cases(2), replace(BASE, ranks=2), BLOCKS)
    assert started == [2] and not multiprocessing.active_children()
    assert (plain - two).abs().max() < 1e-3
    assert compared(frames(plain), frames(two))["psnr"]["mean"] > 60
    assert (frames(plain) != frames(two)).float().mean() < 1e-3
    # The ranks have shared its weights, not the module.
    assert model.exchange is None


def fails_on_rank_1(how: str) -> None:
    if os.environ["RANK"] == "0":
        # Far longer than the test may take.
        time.sleep(300)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError("the disk is full\nand more")


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("says why", "ranks: rank 1 of 2: the disk is full$"),
        ("killed", "ranks: rank 1 of 2 ended with SIGKILL, expected its part of the video"),
    ],
)
def test_a_rank_that_fails_ends_all(how, sentence):
    begin = time.monotonic()
    with pytest.raises(RanksError, match=sentence):
        on_ranks(2, fails_on_rank_1, how)
    assert time.monotonic() - begin < 60
    assert not multiprocessing.active_children()
