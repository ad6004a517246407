"""Skips this folder where there is no GPU. One that vidk's kernels do not load for is a failure."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from vidk import _native

# Ranks on streams of one GPU wait for each other, so no two may share a queue of the driver.
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")


def missing() -> str | None:
    """Return why nothing can run on a GPU here, or None."""
    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA"
    return None if torch.cuda.is_available() else "this PyTorch sees no CUDA device"


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    if reason := missing():
        pytest.skip(reason)
    assert _native.status["_cuda"] == "loaded", _native.status["_cuda"]


@pytest.fixture(autouse=True)
def settled(gpu: None) -> Iterator[None]:
    """Let an error that a kernel left behind fail the test whose kernel it was."""
    yield
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        # No CUDA call of this process works any more: whatever follows would fail for nothing.
        pytest.exit(f"the CUDA context is lost: {error}", returncode=1)
