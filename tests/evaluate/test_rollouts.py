"""Cases, setups and reports of `vidk eval`."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from vidk.bundled import bundled_codec
from vidk.evaluate import Setup, cases, compared, drift, judged_blocks, validated
from vidk.evaluate.rollouts import true_clips


def test_cases():
    chosen = cases(150)
    assert len({case.seed for case in chosen}) == 150
    assert len({case.scene for case in chosen}) == 144
    assert cases(20) == chosen[:20]
    words = Counter(case.scene.shape for case in cases(144))
    assert set(words.values()) == {48}


def test_setups():
    base = Setup()
    assert Setup.parse(base, "") == base
    found = Setup.parse(base, "dtype=bfloat16,compile=yes,window=21,shift=2.5")
    assert (found.dtype, found.compile, found.window, found.shift) == ("bfloat16", True, 21, 2.5)
    found = Setup.parse(base, "kv=nvfp4,recipe=accurate,ranks=2")
    assert (found.kv, found.recipe, found.ranks) == ("nvfp4", "accurate", 2)
    wrong = ("window", "window=x", "colour=red", "compile=maybe", "dtype=int8", "sampler=none")
    for text in (*wrong, "kv=int4", "kv=fp8,recipe=accurate", "ranks=0", "ranks=9", "sink=-1"):
        with pytest.raises(ValueError, match=r"got .*, expected "):
            Setup.parse(base, text)


def test_the_measurement_is_right_on_true_clips_through_the_codec():
    found = validated(bundled_codec(), cases(48))
    for key, value in found["right"].items():
        assert value["share"] >= 0.97, key
    assert found["psnr"]["mean"] > 28


def test_drift_and_difference():
    chosen = cases(2)
    clips = true_clips(chosen, 6)
    assert drift(clips)["last_block"]["mean"] == 0
    noise = torch.randint(-20, 21, clips[:, 3:].shape, generator=torch.Generator().manual_seed(0))
    rough = clips.clone()
    rough[:, 3:] = (clips[:, 3:].int() + noise).clamp(0, 255).to(torch.uint8)
    assert drift(rough)["last_block"]["mean"] > 3
    same = compared(clips, clips)
    assert same["identical"] and same["ssim"]["mean"] == pytest.approx(1)
    other = compared(clips, rough)
    assert not other["identical"] and other["first_block"]["psnr"]["mean"] == 99
    assert other["last_block"]["psnr"]["mean"] < 40
    judged = judged_blocks(chosen, clips)
    assert judged.keys() == {"1", "2"} and judged["2"]["all"]["share"] == 1
