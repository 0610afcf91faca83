"""Wall-clock time by phase, and the time of exchanges in flight.

The time of a phase is exclusive: time spent in an inner phase does not count for the outer phase.
Exchanges in flight overlap with other phases, so their time is measured separately.
"""

from __future__ import annotations

import time
from types import TracebackType

import numpy as np

from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.registry import unknown

PHASES = (
    "graph",
    "connect",
    "exchange",
    "train",
    "jacobian",
    "kernel",
    "evolve",
    "update",
    "select",
    "evaluate",
    "gather",
    "agree",
    "record",
    "other",
)
"""The phases whose names need an explanation: `graph` draws the graph of the round. `connect` finds the
neighbouring ranks and opens the channel to them. `exchange` writes, sends and waits for messages.
`gather` brings to rank 0 what the record stores. `agree` decides whether to stop, and waits for the
slowest rank. `record` writes files and calls the functions that follow the run."""

COORDINATING = ("graph", "connect", "exchange", "gather", "agree", "other")
"""Phases in which a rank mostly waits for others, or does work that is not part of the method."""


IN_FLIGHT, WAIT = "in flight", "wait"
SPANS = (*PHASES, IN_FLIGHT, WAIT)
"""What a timeline shows: phases, exchanges in flight, and waiting for them."""


class Clock:
    """Accumulates seconds by phase for one rank; `lap` reads and resets them.

    The seconds of exchanges in flight are kept separately; `lap_flights` reads them.
    """

    def __init__(self) -> None:
        """Starts with the phase `other`."""
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._stack = ["other"]
        self._since = time.perf_counter()
        self._flown = self._waited = 0.0
        self._spans: list[tuple[int, float, float]] | None = None
        self._starts: list[float] = []

    def keep_spans(self) -> None:
        """From now on records when each phase and each exchange begins and ends, for `lap_spans`."""
        self._spans = []

    def lap_spans(self) -> np.ndarray:
        """The spans that ended since the last lap, `[span, 3]`: kind, begin and end.

        The kind is an index into `SPANS`. Begin and end are in seconds of `perf_counter`. The span of a
        phase includes the spans of its inner phases.
        """
        spans, self._spans = self._spans or [], []
        return np.array(spans, dtype=np.float64).reshape(-1, 3)

    def _charge(self) -> None:
        now = time.perf_counter()
        self._seconds[self._stack[-1]] += now - self._since
        self._since = now

    def __call__(self, phase: str) -> _Block:
        """Charges the time inside the `with` block to `phase`, one of `PHASES`.

        Raises:
            InputError: for another phase; records and tables know these only.
        """
        if phase not in self._seconds:
            raise InputError(unknown("phase of the clock", phase, PHASES))
        return _Block(self, phase)

    def enter(self, phase: str) -> None:
        """Charges the time from now on to `phase`."""
        self._charge()
        self._stack.append(phase)
        if self._spans is not None:
            self._starts.append(self._since)

    def leave(self) -> None:
        """Charges the time from now on to the phase that was active before."""
        self._charge()
        phase = self._stack.pop()
        if self._spans is not None and self._starts:
            self._spans.append((SPANS.index(phase), self._starts.pop(), self._since))

    def lap(self) -> list[float]:
        """Seconds of each phase, in the order of `PHASES`, since the last lap."""
        self._charge()
        seconds = [self._seconds[phase] for phase in PHASES]
        self._seconds = dict.fromkeys(PHASES, 0.0)
        return seconds

    def book_flight(self, flown: float, waited: float) -> None:
        """Adds an exchange that was in flight for `flown` seconds.

        Args:
            flown: seconds in flight.
            waited: those of these seconds in which the rank did nothing but wait for the exchange.
        """
        self._flown += flown
        self._waited += waited
        if self._spans is not None:
            now = time.perf_counter()
            self._spans.append((SPANS.index(IN_FLIGHT), now - flown, now))
            self._spans.append((SPANS.index(WAIT), now - waited, now))

    def lap_flights(self) -> tuple[float, float]:
        """Seconds in flight and seconds of waiting, summed over all exchanges since the last lap."""
        flown_and_waited = self._flown, self._waited
        self._flown = self._waited = 0.0
        return flown_and_waited


class _Block:
    """A phase as a context manager; it costs a fraction of one that is made from a generator."""

    __slots__ = ("_clock", "_phase")

    def __init__(self, clock: Clock, phase: str) -> None:
        self._clock, self._phase = clock, phase

    def __enter__(self) -> None:
        self._clock.enter(self._phase)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._clock.leave()
