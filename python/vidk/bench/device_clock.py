"""Time of a kernel on the GPU alone: calls in one CUDA graph, each on memory of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from vidk.bench.timer import Stat, Thunk, summarize

# A graph holds this many times the L2 cache, so that every call finds its data in memory only.
CACHES_PER_GRAPH = 4
MAX_CALLS = 64
ROUNDS = 30

GraphClock = Callable[[Sequence[Thunk]], Stat]


def calls_in_graph(bytes_per_call: int, l2_bytes: int) -> int:
    """Return how many calls, each on its own memory, evict each other from the L2 cache."""
    wanted = -(-CACHES_PER_GRAPH * l2_bytes // max(bytes_per_call, 1))
    return max(2, min(MAX_CALLS, wanted))


def graph_seconds(calls: Sequence[Thunk]) -> Stat:
    """Return the seconds per call of calls that are replayed one behind the other.

    No host is in the way: what is timed are the kernels and the device's own step from one to the
    next. Outputs live until the capture ends, so that each call writes to memory of its own.
    """
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]
    samples = []
    for _ in range(ROUNDS + 2):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        samples.append(start.elapsed_time(stop) / 1e3 / len(calls))
    del kept
    return summarize(samples[2:])
