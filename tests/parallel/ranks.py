"""Eight gloo processes on this machine that tests send functions to."""

from __future__ import annotations

import faulthandler
import multiprocessing as mp
import multiprocessing.connection
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# Forks of a process that has imported torch once: starting eight anew would take a minute.
CONTEXT = mp.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "vidk.cli.job", "tests.tiny"])
WORLD = 8


def _serve(rank: int, ranks: int, port: int, timeout: float, pipe: Any) -> None:
    faulthandler.enable()  # a rank that dies says where
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        store=dist.TCPStore("localhost", port),
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=timeout),
    )
    while (job := pipe.recv()) is not None:
        function, args, kwargs = job
        try:
            pipe.send((True, function(*args, **kwargs)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
    dist.destroy_process_group()


class Ranks:
    """The processes; `run` calls a function of a module on all of them, at once."""

    def __init__(self, ranks: int, timeout: float) -> None:
        # Not of rank 0, which a test may kill.
        self._store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        self.pipes, self.processes = [], []
        for rank in range(ranks):
            ours, theirs = CONTEXT.Pipe()
            args = (rank, ranks, self._store.port, timeout, theirs)
            process = CONTEXT.Process(target=_serve, args=args, daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def start(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Call a function on all ranks; `result` takes what it returns."""
        for pipe in self.pipes:
            pipe.send((function, args, kwargs))

    def result(self, rank: int, timeout: float) -> tuple[bool, Any]:
        """Return whether a rank's function returned, and what; or how it ended."""
        ready = mp.connection.wait([self.pipes[rank], self.processes[rank].sentinel], timeout)
        if not ready:
            return False, f"rank {rank} gave no answer in {timeout} s"
        try:
            ok, value = self.pipes[rank].recv()
        except EOFError:
            self.processes[rank].join(5)
            return False, f"rank {rank} has died: exit code {self.processes[rank].exitcode}"
        return ok, value

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Call a function on all ranks and return what it returns, where that is not None."""
        self.start(function, *args, **kwargs)
        results = [self.result(rank, 120) for rank in range(len(self.pipes))]
        failed = [f"rank {r}: {value}" for r, (ok, value) in enumerate(results) if not ok]
        assert not failed, "\n".join(failed)
        return [value for _, value in results if value is not None]

    def close(self) -> None:
        """End the processes."""
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            try:
                pipe.send(None)
            except OSError:
                continue
            process.join(10)
        for process in self.processes:
            if process.is_alive():
                process.kill()


@contextmanager
def running(ranks: int = WORLD, timeout: float = 60) -> Iterator[Ranks]:
    """Yield a world of processes."""
    world = Ranks(ranks, timeout)
    try:
        yield world
    finally:
        world.close()
