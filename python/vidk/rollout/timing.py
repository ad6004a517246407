"""Timing of forwards that never makes the host wait for the device."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Times one stretch of work. `seconds` waits for the device only when it is read."""

    def __init__(self, device: torch.device) -> None:
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        if device.type == "cuda":
            self._events = (
                torch.cuda.Event(enable_timing=True),
                torch.cuda.Event(enable_timing=True),
            )
            self._events[0].record()
        self._begin = time.perf_counter()
        self._end = self._begin

    def stop(self) -> None:
        """End the stretch."""
        if self._events:
            self._events[1].record()
        self._end = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Length of the stretch."""
        if self._events:
            self._events[1].synchronize()
            return self._events[0].elapsed_time(self._events[1]) / 1e3
        return self._end - self._begin
