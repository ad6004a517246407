"""The bundled model: what comes with the package, and that it shows what it is asked for."""

from __future__ import annotations

import pytest
import torch

from vidk.bundled import bundled_codec, bundled_model, provenance
from vidk.bundled.load import FOLDER
from vidk.evaluate import Setup, cases, decoded, judged_blocks, rollouts
from vidk.models.config import CONFIGS

LIMIT = 10_000_000


@pytest.fixture(scope="module")
def model():
    return bundled_model()


def test_the_package_data_is_small_and_says_where_it_comes_from():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < LIMIT
    told = provenance()
    assert {"exported_by", "steps", "clips", "hours", "stages", "measured"} <= told.keys()
    assert all(
        {"revision", "seed", "stage", "machine", "seconds"} <= stage.keys()
        for stage in told["stages"][-1:]
    )


def test_heads_are_as_wide_as_those_of_wan(model):
    assert CONFIGS["bundled"].head_dim == 128
    count = sum(p.numel() for p in model.parameters())
    assert 3e6 < count < 8e6


def test_it_shows_what_it_is_asked_for(model):
    chosen = cases(12)
    frames = decoded(bundled_codec(), rollouts(model, chosen, Setup(), 2))
    found = judged_blocks(chosen, frames)
    for block in ("1", "2"):
        shares = {key: value["share"] for key, value in found[block].items()}
        # Chance is 1/3, 1, 1/4, 1/3, 1/4.
        for key, bar in (("background", 0.9), ("present", 0.9), ("colour", 0.9)):
            assert shares[key] >= bar, (block, key, shares)


def test_noise_and_prompt_decide(model):
    one, two = cases(2)
    first = rollouts(model, [one, two], Setup(steps=2), 1)
    again = rollouts(model, [two], Setup(steps=2), 1)
    # A batch computes in another order than a row alone.
    assert torch.allclose(first[1:], again, atol=1e-3)
    assert (first[0] - first[1]).abs().mean() > 0.1
