"""The few-step schedule."""

from __future__ import annotations

import pytest
import torch

from vidk.rollout import Schedule
from vidk.rollout.noise import SeededNoise
from vidk.rollout.schedule import add_noise, euler_step, x0_from_flow


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        (5.0, [1000.0, 937.5, 833.3333333333334, 625.0]),
        (8.0, [1000.0, 960.0, 888.8888888888888, 727.2727272727273]),
    ],
)
def test_warped_steps(shift: float, expected: list[float]) -> None:
    for steps in (4, [1000, 750, 500, 250]):
        schedule = Schedule(steps, shift=shift)
        assert schedule.timesteps == pytest.approx(expected, abs=1e-4)
        assert schedule.sigmas == pytest.approx([t / 1000 for t in expected], abs=1e-6)


def test_noise_and_x0_are_inverse() -> None:
    x0, eps = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    xt = add_noise(x0, eps, 0.625)
    assert torch.allclose(x0_from_flow(eps - x0, xt, 0.625), x0, atol=1e-6)
    assert x0_from_flow(eps.bfloat16(), xt.bfloat16(), 0.5).dtype == torch.bfloat16


def test_seeded_noise_is_a_function_of_its_arguments() -> None:
    a, b = SeededNoise(1), SeededNoise(1)
    shape = (1, 3, 16, 4, 6)
    assert torch.equal(a(6, 2, shape), b(6, 2, shape))
    others = [SeededNoise(2)(6, 2, shape), a(3, 2, shape), a(6, 1, shape)]
    assert not any(torch.equal(a(6, 2, shape), other) for other in others)
    big = a(0, 0, (100, 100, 100))
    assert abs(big.mean()) < 0.01
    assert abs(big.std() - 1) < 0.01


@pytest.mark.parametrize("steps", [0, [], [0], [500, 500], [250, 500], [1001, 500]])
def test_wrong_steps(steps: int | list[float]) -> None:
    with pytest.raises(ValueError, match=r"vidk.Schedule: steps: got"):
        Schedule(steps)


def test_wrong_shift() -> None:
    with pytest.raises(ValueError, match=r"shift: got 0, expected a positive number"):
        Schedule(shift=0)


def test_euler_step_keeps_the_noise_that_is_left() -> None:
    x0, eps = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    lower = euler_step(x0, add_noise(x0, eps, 0.9), 0.9, 0.5)
    assert torch.allclose(lower, add_noise(x0, eps, 0.5), atol=1e-5)
    assert euler_step(x0.bfloat16(), eps.bfloat16(), 0.9, 0.5).dtype == torch.bfloat16


def test_wrong_sampler() -> None:
    with pytest.raises(ValueError, match="sampler: got 'heun', expected renoise or euler"):
        Schedule(sampler="heun")
