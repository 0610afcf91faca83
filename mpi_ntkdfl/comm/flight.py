"""A started exchange that notes how long it was in flight, and how long it was waited for."""

from __future__ import annotations

from time import perf_counter

import torch

from mpi_ntkdfl.comm.world import Pending
from mpi_ntkdfl.runtime.clock import Clock


class Flight:
    """See `Pending`.

    It is in flight from its construction until a poke or a wait first finds it complete. What of that
    was not waited for was hidden beneath computation; messages may have arrived, or stood still for want
    of a poke, long before that is noticed, so it bounds the time that sending would have cost from above.
    """

    def __init__(self, pending: Pending, clock: Clock) -> None:
        """Takes off.

        Args:
            pending: just started.
            clock: books the seconds.
        """
        self._pending, self._clock = pending, clock
        self._start = perf_counter()
        self._landed = False

    def poke(self) -> bool:
        """Lets the message-passing library make progress; returns at once whether all is there."""
        if not self._landed and self._pending.poke():
            self._land(waited=0.0)
        return self._landed

    def wait(self) -> torch.Tensor:
        """Blocks until done; returns the received bytes, `[bytes]` uint8."""
        before = perf_counter()
        received = self._pending.wait()
        if not self._landed:
            self._land(waited=perf_counter() - before)
        return received

    def _land(self, waited: float) -> None:
        self._landed = True
        self._clock.book_flight(max(perf_counter() - self._start, waited), waited)
