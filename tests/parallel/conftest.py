"""One world of eight processes for all the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .ranks import Ranks, running


@pytest.fixture(scope="session")
def world() -> Iterator[Ranks]:
    """Eight ranks."""
    with running() as ranks:
        yield ranks
