"""When to stop early: signals, and a budget of wall-clock time.

Batch systems announce a job's end by a signal (Slurm: `--signal=USR1@120`, SIGTERM), people by Ctrl-C or
by closing the terminal. The first signal asks the run to finish its round, write a checkpoint and exit
with `UNFINISHED`; before the first round the process ends at once. A second signal, some seconds later,
always ends the process at once, also while the main thread waits inside a library: a thread of its own
looks at signals. From the moment a run has said how it ended, signals are ignored.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

UNFINISHED = 75
"""Exit code of a run that stopped early with a checkpoint: EX_TEMPFAIL of sysexits.h, try again."""

SILENT = 69
"""Exit code of ranks that gave up waiting for a silent one: EX_UNAVAILABLE of sysexits.h."""

STARTED = time.monotonic()
"""About when the program started: the first import of this module."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
"""Those that ask a run to stop."""

_ECHO = 3.0
"""Seconds in which another signal is the same one: a batch system may signal the ranks and the
launcher, which passes it on."""

_ECHO_OF_KEYS = 0.5
"""The same for Ctrl-C, which people press twice within seconds and mean it."""

_GLANCE = 1.0
"""Seconds between looks whether the launcher is still there."""

_LATER = 0.3
"""Seconds by which other ranks let the first one speak."""

_seen: list[tuple[int, float]] = []
_starting = False
_speaks = True
_cleanups: list[Callable[[], None]] = []


class _Watcher(threading.Thread):
    """Reads the numbers of signals as they come, and keeps the time limit of the start."""

    def __init__(self) -> None:
        super().__init__(name="signals", daemon=True)
        self.end, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        self._wakeup = wakeup
        self._deadline: float | None = None
        self._late: Callable[[], str] = str
        self._first: tuple[int, float] | None = None
        self._parent = 0

    def watch_parent(self) -> None:
        """From now on the end of the process that started this one counts as SIGTERM."""
        self._parent = os.getppid()
        os.write(self._wakeup, b"\0")

    def limit(self, seconds: float | None, late: Callable[[], str] = str) -> None:
        """Ends the process with `SILENT` and the words of `late` after some seconds; None: never."""
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._late = late
        os.write(self._wakeup, b"\0")

    def run(self) -> None:
        while True:
            deadline = self._deadline
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if self._parent:
                left = _GLANCE if left is None else min(left, _GLANCE)
                if os.getppid() != self._parent:
                    self._parent = 0
                    os.kill(os.getpid(), signal.SIGTERM)
            if select.select([self.end], [], [], left)[0]:
                for number in os.read(self.end, 512):
                    if number in SIGNALS:
                        self._look_at(number)
            elif self._deadline is not None and time.monotonic() > self._deadline:
                end_now(SILENT, self._late())

    def _look_at(self, number: int) -> None:
        if signal.getsignal(number) is not _remember:  # ignored by now
            return
        now = time.monotonic()
        name = signal.Signals(number).name
        if _starting:
            end_now(UNFINISHED, f"stopped by {name} before the first round; nothing is lost")
        if self._first is None:
            self._first = number, now
            if number == signal.SIGINT and _speaks:
                _say("stopping after this round; Ctrl-C once more ends at once")
            return
        keys = number == self._first[0] == signal.SIGINT
        if now - self._first[1] > (min(_ECHO, _ECHO_OF_KEYS) if keys else _ECHO):
            end_now(128 + number, f"ended by a second signal ({name}); --resume goes on")


_watcher: _Watcher | None = None


def watch_signals(speaks: bool = True) -> None:
    """From now on the first of `SIGNALS` is remembered, a later one ends the process.

    SIGINT and SIGHUP stay ignored if they are, as under `nohup` or in the background of a script.

    Args:
        speaks: says at once what signals do; several ranks need to say it once only.
    """
    global _speaks
    _speaks = speaks
    _watch()
    for number in SIGNALS:
        kept = number in (signal.SIGINT, signal.SIGHUP)
        if not (kept and signal.getsignal(number) == signal.SIG_IGN):
            signal.signal(number, _remember)


def _watch() -> _Watcher:
    """The thread that looks at signals; a forked child has none."""
    global _watcher
    if _watcher is None or not _watcher.is_alive():
        _watcher = _Watcher()
        _watcher.start()
    return _watcher


def _remember(number: int, frame: FrameType | None) -> None:
    if not _seen:
        _seen.append((number, time.monotonic()))


def ignore_signals() -> None:
    """From now on signals change nothing: the run has said how it ended, and how it goes on."""
    if _watcher is not None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def signalled() -> int:
    """The signal that asked this process to stop, or 0."""
    return _seen[0][0] if _seen else 0


def watch_parent() -> None:
    """From now on the end of the process that started this one counts as SIGTERM.

    For ranks: they go on when the part of the launcher on their host has died, and nobody would know.
    """
    _watch().watch_parent()


def nothing_to_save(starting: bool) -> None:
    """Says whether a signal may end the process at once, because no round has begun."""
    global _starting
    _starting = starting


def limit_start(seconds: float | None, late: Callable[[], str] = str) -> None:
    """Gives the start of the ranks a limit; None takes it away.

    Args:
        seconds: from now. Then the process ends with exit code `SILENT`.
        late: gives the message.
    """
    if seconds is not None or _watcher is not None:
        _watch().limit(seconds, late)


@contextmanager
def cleaning(cleanup: Callable[[], None]) -> Iterator[None]:
    """Within the block, `cleanup` is called before the process is ended at once."""
    _cleanups.append(cleanup)
    try:
        yield
    finally:
        _cleanups.remove(cleanup)


def end_now(code: int, message: str) -> None:
    """Ends the process from any thread, whatever the main thread is in; does not return."""
    if not _speaks:
        time.sleep(_LATER)  # the launcher may have ended this rank by then
    if message:
        _say(message)
    for cleanup in reversed(_cleanups):
        with contextlib.suppress(Exception):
            cleanup()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(code)


def _say(message: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{message}\n".encode())


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
