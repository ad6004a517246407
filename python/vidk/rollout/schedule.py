"""The warped few-step schedule of Self-Forcing, x0 conversion and re-noising."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

ENTRIES = 1000
SAMPLERS = ("renoise", "euler")


def shifted_sigmas(shift: float) -> Tensor:
    """Return the `[1000]` float32 noise levels of flow matching, from 1 down, bent by `shift`.

    Source: Self-Forcing `FlowMatchScheduler`, `sigma = shift s / (1 + (shift - 1) s)`.
    """
    s = torch.linspace(1.0, 0.0, ENTRIES + 1)[:-1]
    return shift * s / (1 + (shift - 1) * s)


class Schedule:
    """The denoising steps of a block.

    Parameters
    ----------
    steps : a number of evenly spaced steps, or the list of places in the unwarped schedule, 1000
        (pure noise) downwards, such as `[1000, 750, 500, 250]`.
    shift : how far the schedule is bent towards high noise.
    sampler : how a step goes on from its x0: "renoise" with fresh noise (the rule of few-step
        models such as Self-Forcing) or "euler" with the noise that is left (the ordinary
        differential equation, for models that are not distilled).

    Attributes
    ----------
    timesteps, sigmas : `[steps]` lists, what the model is told and the noise level it stands for.
    """

    def __init__(
        self, steps: int | Sequence[float] = 4, *, shift: float = 5.0, sampler: str = "renoise"
    ) -> None:
        if isinstance(steps, int):
            if steps < 1:
                raise ValueError(f"vidk.Schedule: steps: got {steps}, expected at least 1")
            steps = [ENTRIES * (1 - i / steps) for i in range(steps)]
        places = [float(s) for s in steps]
        decreasing = all(a > b for a, b in pairwise(places))
        if not places or not decreasing or places[0] > ENTRIES or places[-1] <= 0:
            raise ValueError(
                f"vidk.Schedule: steps: got {places}, expected decreasing numbers in (0, {ENTRIES}]"
            )
        if not shift > 0:
            raise ValueError(f"vidk.Schedule: shift: got {shift}, expected a positive number")
        if sampler not in SAMPLERS:
            raise ValueError(
                f"vidk.Schedule: sampler: got {sampler!r}, expected {' or '.join(SAMPLERS)}"
            )
        self.sampler = sampler
        self._sigmas = shifted_sigmas(shift)
        self._table = self._sigmas * ENTRIES
        index = [min(round(ENTRIES - place), ENTRIES - 1) for place in places]
        self.timesteps: list[float] = self._table[index].tolist()
        self.sigmas: list[float] = self._sigmas[index].tolist()

    def sigma_of(self, timestep: float) -> float:
        """Return the noise level of the schedule's entry nearest to a timestep."""
        return float(self._sigmas[(self._table - timestep).abs().argmin()])


def x0_from_flow(flow: Tensor, xt: Tensor, sigma: float) -> Tensor:
    """Return `xt - sigma * flow`, computed in float64 and rounded to the dtype of xt."""
    return (xt.double() - sigma * flow.double()).to(xt.dtype)


def add_noise(x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Return `(1 - sigma) x0 + sigma noise`, computed in float32, in the dtype of the noise."""
    level = torch.full((), sigma, dtype=torch.float32, device=x0.device)
    return ((1 - level) * x0.float() + level * noise.float()).type_as(noise)


def euler_step(x0: Tensor, xt: Tensor, sigma: float, lower: float) -> Tensor:
    """Return `x0 + lower / sigma (xt - x0)`, computed in float32, in the dtype of xt.

    The step of the flow `(xt - x0) / sigma` from noise level `sigma` to `lower`.
    """
    clean = x0.float()
    return (clean + (lower / sigma) * (xt.float() - clean)).type_as(xt)
