"""When to stop early: signals, and a budget of wall-clock time.

Batch systems announce a job's end by a signal (Slurm: `--signal=USR1@120`, SIGTERM). The first one
asks the run to finish its round, write a checkpoint and exit with `UNFINISHED`; a second one, some
seconds later, ends the process at once.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

UNFINISHED = 75
"""Exit code of a run that stopped early with a checkpoint: EX_TEMPFAIL of sysexits.h, try again."""

STARTED = time.monotonic()
"""About when the program started: the first import of this module."""

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_seen: list[tuple[int, float]] = []

_ECHO = 3.0
"""Seconds in which another signal is the same one: a batch system may signal the ranks and the
launcher, which passes it on."""


def watch_signals() -> None:
    """From now on the first SIGTERM or SIGUSR1 is remembered, a later one ends the process."""
    for number in _SIGNALS:
        signal.signal(number, _remember)


def _remember(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if not _seen:
        _seen.append((number, now))
    elif now - _seen[0][1] > _ECHO:
        # By the signal's own default, so that whoever waits sees what ended the process.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def signalled() -> int:
    """The signal that asked this process to stop, or 0."""
    return _seen[0][0] if _seen else 0


class Budget:
    """Wall-clock time of a run on one rank."""

    _MARGIN = 1.25
    """The next round may take this much longer than the longest of the last ones."""

    def __init__(self, limit: float | None) -> None:
        """Takes the seconds the program may run from its start; None for no limit."""
        self._limit = limit
        self._rounds: list[float] = []
        self._lap = time.monotonic()

    def round_done(self) -> None:
        """Notes that a round, with all that is written after it, is over."""
        now = time.monotonic()
        self._rounds = [*self._rounds[-2:], now - self._lap]
        self._lap = now

    def spent(self) -> bool:
        """Whether another round would not fit."""
        if self._limit is None:
            return False
        coming = self._MARGIN * max(self._rounds, default=0.0)
        return time.monotonic() - STARTED + coming > self._limit
