"""The processes of one run: joined under torchrun, agreed at the start, told when one is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

import torch.distributed as dist

_FAILED = "vidk/failed"


class RanksError(RuntimeError):
    """What stops a run on several ranks, in one sentence that is for the user."""


@dataclass(frozen=True)
class Place:
    """Which process of how many this is, by the environment that torchrun makes."""

    rank: int
    ranks: int
    local_rank: int
    local_ranks: int


def place_of(environment: Mapping[str, str]) -> Place | None:
    """Read the place of this process; None if it is the only one.

    Raises
    ------
    RanksError
        If the variables that torchrun sets are incomplete or contradict each other.
    """
    if environment.get("WORLD_SIZE", "1") == "1":
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    absent = [name for name in names if not environment.get(name)]
    if absent:
        raise RanksError(
            f"ranks: got WORLD_SIZE={environment['WORLD_SIZE']} without {', '.join(absent)}, "
            "expected what torchrun sets (torchrun --nproc-per-node P -m vidk generate ...)"
        )
    try:
        numbers = [int(environment[name]) for name in names[:4]]
    except ValueError:
        got = " ".join(f"{name}={environment[name]}" for name in names[:4])
        raise RanksError(f"ranks: got {got}, expected whole numbers") from None
    place = Place(numbers[0], numbers[1], numbers[2], numbers[3])
    if not (0 <= place.rank < place.ranks and 0 <= place.local_rank < place.local_ranks):
        raise RanksError(
            f"ranks: got rank {place.rank} of {place.ranks}, local rank {place.local_rank} of "
            f"{place.local_ranks}, expected ranks from 0 to the number of ranks"
        )
    return place


class World:
    """The ranks of a run, joined."""

    def __init__(self, place: Place, timeout: float) -> None:
        self.place, self.timeout = place, timeout

    def agree(self, facts: Mapping[str, Any], error: BaseException | None = None) -> None:
        """Compare facts with all other ranks; every rank calls this, also one that has failed.

        Parameters
        ----------
        facts : what must be the same on every rank, by the names that the user knows.
        error : why this rank cannot go on.

        Raises
        ------
        RanksError
            If ranks differ, or another has failed.
        """
        mine = (None if error is None else str(error), {k: str(v) for k, v in facts.items()})
        everyone: list[Any] = [None] * self.place.ranks
        with self.watched():
            dist.all_gather_object(everyone, mine)
        if error is not None:
            raise error
        for rank, (failure, _) in enumerate(everyone):
            if failure is not None:
                raise RanksError(f"rank {rank} cannot start: {failure}")
        reference = everyone[0][1]
        for rank, (_, others) in enumerate(everyone):
            for name in sorted(reference.keys() | others.keys()):
                here, there = reference.get(name, "nothing"), others.get(name, "nothing")
                if here != there:
                    raise RanksError(
                        f"{name}: got {here} on rank 0 and {there} on rank {rank}, expected the "
                        "same on every rank"
                    )

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Tell other ranks of an error in here, and tell of theirs what a lost connection hides."""
        try:
            yield
        except RanksError:
            raise
        except Exception as error:
            others = self._failures()
            if not _is_lost_connection(error):
                self._tell(error)
                raise
            who = "; ".join(f"rank {rank}: {text}" for rank, text in others.items())
            reason = who or "it has ended or gives no answer; its own output may say why"
            raise RanksError(
                f"rank {self.place.rank} of {self.place.ranks} has lost another rank ({reason})"
            ) from error

    def _tell(self, error: Exception) -> None:
        try:
            _store().set(f"{_FAILED}/{self.place.rank}", str(error).splitlines()[0])
        except (RuntimeError, IndexError):
            return

    def _failures(self) -> dict[int, str]:
        try:
            store = _store()
            keys = {rank: f"{_FAILED}/{rank}" for rank in range(self.place.ranks)}
            return {r: store.get(key).decode() for r, key in keys.items() if store.check([key])}
        except RuntimeError:
            return {}


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def _is_lost_connection(error: BaseException) -> bool:
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    signs = ("gloo", "nccl", "connection", "timed out", "timeout", "aborted", "broken pipe")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


@contextmanager
def joined(place: Place, *, gpu: bool, timeout: float) -> Iterator[World]:
    """Join the other ranks; leave them at the end, if all went well.

    Parameters
    ----------
    place : of this process.
    gpu : tensors are exchanged through NCCL rather than gloo.
    timeout : seconds that a rank waits for another, here and in every exchange.

    Raises
    ------
    RanksError
        If not all ranks come in time.
    """
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    except RuntimeError as error:
        raise RanksError(
            f"ranks: got no answer from all {place.ranks} ranks within {timeout:g} s "
            f"({str(error).splitlines()[0]}), expected as many processes as WORLD_SIZE says"
        ) from error
    world = World(place, timeout)
    with world.watched(), _told_by_signal(place):
        yield world
    # Not after an error: a rank that has failed must not wait for the others.
    dist.destroy_process_group()


@contextmanager
def _told_by_signal(place: Place) -> Iterator[None]:
    """Turn SIGTERM, by which torchrun ends the ranks that are left, into a sentence."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise RanksError(
            f"rank {place.rank} of {place.ranks} was told to end, as another rank has failed"
        )

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def from_environment() -> Place | None:
    """Return `place_of` this process."""
    return place_of(os.environ)
