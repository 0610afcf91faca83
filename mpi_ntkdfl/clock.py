"""Wall-clock time by phase, exclusive: time spent in an inner phase does not count for the outer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

PHASES = (
    "exchange",
    "train",
    "jacobian",
    "kernel",
    "evolve",
    "update",
    "select",
    "evaluate",
    "record",
    "other",
)


class Clock:
    """Accumulates seconds by phase for one rank; `lap` reads and resets them."""

    def __init__(self) -> None:
        """Starts with the phase `other`."""
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._stack = ["other"]
        self._since = time.perf_counter()

    def _charge(self) -> None:
        now = time.perf_counter()
        self._seconds[self._stack[-1]] += now - self._since
        self._since = now

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Charges the time inside the block to `phase`, one of `PHASES`."""
        self._charge()
        self._stack.append(phase)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def lap(self) -> list[float]:
        """Seconds of each phase, in the order of `PHASES`, since the last lap."""
        self._charge()
        seconds = [self._seconds[phase] for phase in PHASES]
        self._seconds = dict.fromkeys(PHASES, 0.0)
        return seconds
