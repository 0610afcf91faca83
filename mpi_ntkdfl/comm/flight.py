"""A started exchange that measures how long it was in flight, and how long the rank waited for it."""

from __future__ import annotations

from time import perf_counter

import torch

from mpi_ntkdfl.comm.world import Pending
from mpi_ntkdfl.runtime.clock import Clock


class Flight:
    """See `Pending`.

    The exchange is in flight from its construction until `poke` or `wait` first sees that it is complete.
    The part of this time in which the rank did not wait overlapped with computation. This part is an
    upper bound of the time that overlapping saved: the messages may have arrived long before a call of
    `poke` noticed it, or they may have made no progress because nobody called `poke`.
    """

    def __init__(self, pending: Pending, clock: Clock) -> None:
        """Starts to measure.

        Args:
            pending: an exchange that was started just now.
            clock: books the seconds.
        """
        self._pending, self._clock = pending, clock
        self._start = perf_counter()
        self._landed = False

    def poke(self) -> bool:
        """Lets the MPI library make progress; returns at once whether the exchange is complete."""
        if not self._landed and self._pending.poke():
            self._land(waited=0.0)
        return self._landed

    def wait(self) -> torch.Tensor:
        """Blocks until the exchange is complete; returns the received bytes, `[bytes]` uint8."""
        before = perf_counter()
        received = self._pending.wait()
        if not self._landed:
            self._land(waited=perf_counter() - before)
        return received

    def _land(self, waited: float) -> None:
        self._landed = True
        self._clock.book_flight(max(perf_counter() - self._start, waited), waited)
