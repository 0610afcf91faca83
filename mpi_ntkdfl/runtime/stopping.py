"""When to stop early: signals, and a budget of wall-clock time.

Batch systems announce the end of a job with a signal (Slurm: `--signal=USR1@120`, SIGTERM). People send
one with Ctrl-C or by closing the terminal. The first signal asks the run to finish its round, write a
checkpoint and exit with `UNFINISHED`; before the first round it ends the process at once. A second
signal some seconds later always ends the process at once, even while the main thread waits inside a
library, because a separate thread handles signals. After a run has reported how it ended, signals are
ignored.
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
"""Exit code of a run that stopped early with a checkpoint: EX_TEMPFAIL of sysexits.h, "try again"."""

SILENT = 69
"""Exit code of ranks that gave up waiting for a silent rank: EX_UNAVAILABLE of sysexits.h."""

STARTED = time.monotonic()
"""The time of the first import of this module, which is about when the program started."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
"""The signals that ask a run to stop."""

_ECHO = 3.0
"""Seconds after a signal in which another one counts as its copy. A batch system may send a signal to
the ranks and to the launcher, which passes it on to the ranks."""

_ECHO_OF_KEYS = 0.5
"""The same for Ctrl-C. It is shorter, because a user who presses Ctrl-C twice wants a second signal."""

_GLANCE = 1.0
"""Seconds between two checks whether the launcher still exists."""

_LATER = 0.3
"""Seconds that other ranks wait before they end, so that the first rank can write the message."""

_seen: list[tuple[int, float]] = []
_starting = False
_speaks = True
_cleanups: list[Callable[[], None]] = []


class _Watcher(threading.Thread):
    """Reads the numbers of signals when they arrive, and enforces the time limit of the start."""

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
        """Ends the process with `SILENT` and the message of `late` after `seconds`; None for never."""
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
        if signal.getsignal(number) is not _remember:  # the signal is ignored by now
            return
        now = time.monotonic()
        name = signal.Signals(number).name
        if _starting:
            end_now(
                UNFINISHED,
                f"stopped by {name} before the first round; nothing is lost. If this repeats, the time "
                "limit is too short for the start-up and one round",
            )
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
    """From now on the first of `SIGNALS` is remembered, and a later one ends the process.

    SIGINT and SIGHUP stay ignored if they are ignored already, as under `nohup` or for a background
    process of a script.

    Args:
        speaks: whether this process prints messages about signals at once. One of several ranks is
            enough.
    """
    global _speaks
    _speaks = speaks
    _watch()
    for number in SIGNALS:
        may_be_ignored = number in (signal.SIGINT, signal.SIGHUP)
        if not (may_be_ignored and signal.getsignal(number) == signal.SIG_IGN):
            signal.signal(number, _remember)


def _watch() -> _Watcher:
    """The thread that handles signals. A forked child does not inherit it, so it may be started anew."""
    global _watcher
    if _watcher is None or not _watcher.is_alive():
        _watcher = _Watcher()
        _watcher.start()
    return _watcher


def _remember(number: int, frame: FrameType | None) -> None:
    if not _seen:
        _seen.append((number, time.monotonic()))


def ignore_signals() -> None:
    """From now on signals have no effect: the run has reported how it ended and how to continue it."""
    if _watcher is not None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def signalled() -> int:
    """The signal that asked this process to stop, or 0."""
    return _seen[0][0] if _seen else 0


def watch_parent() -> None:
    """From now on the end of the process that started this one counts as SIGTERM.

    Ranks use this. Without it they would go on unnoticed after the part of the launcher on their host
    has died.
    """
    _watch().watch_parent()


def nothing_to_save(starting: bool) -> None:
    """Sets whether a signal may end the process at once, because no round has begun."""
    global _starting
    _starting = starting


def limit_start(seconds: float | None, late: Callable[[], str] = str) -> None:
    """Sets a time limit for the start of the ranks.

    Args:
        seconds: seconds from now after which the process ends with exit code `SILENT`; None removes
            the limit.
        late: returns the message.
    """
    if seconds is not None or _watcher is not None:
        _watch().limit(seconds, late)


@contextmanager
def cleaning(cleanup: Callable[[], None]) -> Iterator[None]:
    """Within the block, `end_now` calls `cleanup` before it ends the process."""
    _cleanups.append(cleanup)
    try:
        yield
    finally:
        _cleanups.remove(cleanup)


def end_now(code: int, message: str) -> None:
    """Ends the process from any thread, whatever the main thread is doing; does not return."""
    if not _speaks:
        time.sleep(_LATER)  # the launcher may end this rank in that time
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
    """Factor by which the next round may take longer than the longest of the last three."""

    def __init__(self, limit: float | None) -> None:
        """Takes the number of seconds that the program may run from its start; None for no limit."""
        self._limit = limit
        self._rounds: list[float] = []
        self._lap = time.monotonic()

    def round_done(self) -> None:
        """Notes that a round is over, together with all writing after it."""
        now = time.monotonic()
        self._rounds = [*self._rounds[-2:], now - self._lap]
        self._lap = now

    def spent(self) -> bool:
        """Whether the time that is left is too short for another round."""
        if self._limit is None:
            return False
        coming = self._MARGIN * max(self._rounds, default=0.0)
        return time.monotonic() - STARTED + coming > self._limit
