"""A run of every op on the tiny shape, through Dynamo but without the slow code generation."""

import functools

import pytest
import torch

import vidk.bench.run as bench_run
from tests.bench.helpers import MACHINE, tiny_plan


@pytest.fixture
def light(monkeypatch):
    """`torch.compile` that traces only, and a machine that needs no measuring."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(bench_run, "measure", lambda *args: MACHINE)


@pytest.fixture(scope="session")
def tiny_document():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
        return bench_run.run(tiny_plan(end_to_end=True, layers=2))
