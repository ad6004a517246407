"""Fixtures of the command line's tests."""

from __future__ import annotations

import pytest
import torch

from vidk.cli import job


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Work in a folder of its own, with a matmul rate that takes no time to measure."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "matmul_rate", lambda dtype, device: 1e11)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
