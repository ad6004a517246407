"""What `vidk eval` finds out, as one document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vidk.bundled.noise import BLOCK
from vidk.evaluate.measure import Seen, direction, look, size_fits
from vidk.evaluate.rollouts import Case, decoded, rollouts, true_clips
from vidk.evaluate.setup import Setup
from vidk.evaluate.stats import mean, psnr, share, ssim
from vidk.models.wan import CausalWan
from vidk.vae import Decoder

# Blocks of the true clip that are given before "gain over repeating" is measured.
GIVEN = 2


def judge(case: Case, seen: Sequence[Seen]) -> dict[str, bool]:
    """Say what is right in the frames of one block; every frame must be."""
    scene = case.scene
    found = {
        "background": all(s.background == scene.background for s in seen),
        "present": all(s.present for s in seen),
        "colour": all(s.colour == scene.colour for s in seen),
        "shape": all(s.shape == scene.shape for s in seen),
        "size": all(size_fits(s, scene.shape) for s in seen),
        "direction": direction(list(seen)) == scene.direction,
    }
    return {**found, "all": all(found.values())}


def judged_blocks(chosen: Sequence[Case], frames: Tensor) -> dict[str, dict[str, Any]]:
    """Return, for each block (from 1) of `[N, F, H, W, 3]`, the share that is right."""
    seen = [[look(frame) for frame in clip] for clip in frames]
    report = {}
    for block in range(frames.size(1) // BLOCK):
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        judged = [judge(case, clip[part]) for case, clip in zip(chosen, seen, strict=True)]
        report[str(block + 1)] = {key: share([j[key] for j in judged]) for key in judged[0]}
    return report


def validated(decoder: Decoder, chosen: Sequence[Case]) -> dict[str, Any]:
    """Measure true clips through the codec: what the measurement itself gets right."""
    truth = true_clips(chosen, BLOCK)
    through = decoded(decoder, decoder.encode(truth))
    return {
        "right": judged_blocks(chosen, through)["1"],
        "psnr": mean([psnr(a, b) for a, b in zip(truth, through, strict=True)]),
    }


def gains(
    model: CausalWan, decoder: Decoder, chosen: Sequence[Case], setup: Setup
) -> dict[str, Any]:
    """Continue true clips, and return the PSNR of the next blocks less that of the last frame.

    A model that has not learned motion repeats what it sees, which a plain PSNR does not show.
    """
    ahead = 2
    truth = true_clips(chosen, BLOCK * (GIVEN + ahead))
    given = decoder.encode(truth[:, : BLOCK * GIVEN])
    future = decoded(decoder, rollouts(model, chosen, setup, ahead, given))
    report = {}
    for block in range(ahead):
        at = BLOCK * (GIVEN + block)
        target = truth[:, at : at + BLOCK]
        last = truth[:, BLOCK * GIVEN - 1 : BLOCK * GIVEN].expand_as(target)
        own = [
            psnr(a, b)
            for a, b in zip(target, future[:, block * BLOCK : (block + 1) * BLOCK], strict=True)
        ]
        still = [psnr(a, b) for a, b in zip(target, last, strict=True)]
        report[str(GIVEN + block + 1)] = {
            "psnr": mean(own),
            "gain": mean([a - b for a, b in zip(own, still, strict=True)]),
        }
    return report


def drift(frames: Tensor) -> dict[str, Any]:
    """Return the standard deviation of the background's pixels in the first and the last block.

    0 is flat, as the truth is; it grows where a rollout falls apart.
    """

    def roughness(part: Tensor) -> float:
        flat = part.float().flatten(1, 2)
        distance = (flat - flat.median(1, keepdim=True).values).norm(dim=2)
        # Half of the pixels, those nearest to the background's colour, are none of the shape.
        return float(distance.sort(dim=1).values[:, : distance.size(1) // 2].square().mean().sqrt())

    first, last = (
        [roughness(clip[p]) for clip in frames] for p in (slice(BLOCK), slice(-BLOCK, None))
    )
    return {"first_block": mean(first), "last_block": mean(last)}


def compared(a: Tensor, b: Tensor) -> dict[str, Any]:
    """Return PSNR and SSIM of two sets of clips `[N, F, H, W, 3]`, over all and per block."""
    similar = [ssim(x, y) for x, y in zip(a, b, strict=True)]

    def over(frames: slice) -> dict[str, Any]:
        return {
            "psnr": mean([psnr(x[frames], y[frames]) for x, y in zip(a, b, strict=True)]),
            "ssim": mean([sum(s[frames]) / len(s[frames]) for s in similar]),
        }

    return {
        "identical": bool(torch.equal(a, b)),
        **over(slice(None)),
        "first_block": over(slice(BLOCK)),
        "last_block": over(slice(-BLOCK, None)),
    }
