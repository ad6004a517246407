"""Ranks on this machine, for as long as one function runs."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from multiprocessing import parent_process
from typing import Any

import torch
import torch.multiprocessing as mp
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.multiprocessing.spawn import ProcessExitedException, start_processes

from vidk.parallel.launch import Place, RanksError, joined

# Seconds: that a rank waits for another, and that ranks have to end by themselves.
_TIMEOUT, _GRACE = 600.0, 2.0
_FAILED = "vidk/first failure"


def on_ranks(ranks: int, work: Callable[..., None], *args: Any, timeout: float = _TIMEOUT) -> None:
    """Call `work(*args)` in new processes that are joined through gloo.

    Parameters
    ----------
    ranks : how many; they share the threads of this process.
    work : a function of a module. Tensors in `args` are shared, so that it can write its result.
    timeout : seconds that a rank waits for another.

    Raises
    ------
    RanksError
        If a rank fails, with its sentence. No process is left then.
    """
    # Here, as with torchrun, and not of rank 0: it must outlive whichever rank fails.
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    # Forks of a process that imports torch once, and that has no threads yet.
    mp.get_context("forkserver").set_forkserver_preload(["vidk.evaluate.rollouts"])
    threads = max(1, torch.get_num_threads() // ranks)
    own = (ranks, store.port, threads, timeout, work, args)
    started = start_processes(_one, own, nprocs=ranks, join=False, start_method="forkserver")
    try:
        while not started.join(grace_period=_GRACE):
            continue
    except ProcessExitedException as error:
        if error.signal_name or not store.check([_FAILED]):
            how = error.signal_name or f"exit code {error.exit_code}"
            raise RanksError(
                f"ranks: rank {error.error_index} of {ranks} ended with {how}, expected its part "
                "of the video (its own output may say why)"
            ) from error
        raise RanksError(store.get(_FAILED).decode()) from error
    finally:
        for process in started.processes:
            process.kill()


def _one(
    rank: int,
    ranks: int,
    port: int,
    threads: int,
    timeout: float,
    work: Callable[..., None],
    args: tuple[Any, ...],
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(ranks),
        MASTER_ADDR="localhost",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
        TORCHELASTIC_RESTART_COUNT="0",
    )
    if sys.platform == "linux":
        # The machine's own name need not lead back to it.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        with joined(Place(rank, ranks, rank, ranks), gpu=False, timeout=timeout):
            work(*args)
    except Exception as error:
        sentence = (str(error).strip() or type(error).__name__).splitlines()[0]
        if not isinstance(error, RanksError):
            sentence = f"ranks: rank {rank} of {ranks}: {sentence}"
        # The first is the cause: others fail when they have lost that rank.
        TCPStore("localhost", port).compare_set(_FAILED, "", sentence)
        sys.exit(1)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
