"""Intervals and distances of videos."""

from __future__ import annotations

import pytest
import torch

from vidk.evaluate.stats import mean, psnr, share, ssim


def test_share():
    found = share([True] * 95 + [False] * 5)
    # Wilson's interval, from a table.
    assert found["share"] == 0.95
    assert (found["low"], found["high"]) == (
        pytest.approx(0.888, abs=1e-3),
        pytest.approx(0.978, abs=1e-3),
    )
    assert share([True] * 10)["low"] == pytest.approx(0.722, abs=1e-3)
    assert share([True] * 10)["high"] == pytest.approx(1.0)


def test_mean():
    found = mean([1.0, 2.0, 3.0, 4.0])
    assert found["mean"] == 2.5
    assert found["high"] - 2.5 == pytest.approx(1.96 * 1.2910 / 2, abs=1e-3)


def test_psnr():
    a = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    assert psnr(a, a) == 99.0
    assert psnr(a, a + 255) == 0.0
    assert psnr(a, a + 1) == pytest.approx(48.13, abs=0.01)


def test_ssim():
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=generator)
    b = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=generator)
    assert ssim(a, a) == pytest.approx([1.0, 1.0])
    assert max(map(abs, ssim(a, b))) < 0.1
    near = (a.int() + torch.randint(-3, 4, a.shape, generator=generator)).clamp(0, 255)
    assert 0.98 < ssim(a, near.to(torch.uint8))[0] < 1
    # Constants differ in their mean only: (2 m n + c) / (m^2 + n^2 + c).
    x, y = (torch.full((1, 16, 20, 3), v, dtype=torch.uint8) for v in (100, 150))
    c = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + c) / (100**2 + 150**2 + c)
    assert ssim(x, y) == pytest.approx([expected], abs=1e-9)
