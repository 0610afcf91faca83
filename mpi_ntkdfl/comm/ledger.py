"""What a round sent: protocol bytes (what real clients would send) and MPI bytes (what ranks moved)."""

from __future__ import annotations

import numpy as np

TRAFFIC_PHASES = (
    "weights",
    "averages",
    "jacobians",
    "outputs",
    "labels",
    "inputs",
    "statistics",
)
"""Messages by content. `statistics` are reductions that serve the record, not the method: real
clients would not send them, so their protocol bytes are 0."""


class Ledger:
    """Bytes by phase of the running round, on one rank.

    Protocol bytes are a property of the graph and booked by rank 0 alone, or, where they depend on the
    data, by the rank that owns the sending client; MPI bytes are booked by the rank that sends. Summed
    over ranks, both are totals of the whole job.
    """

    def __init__(self) -> None:
        """Starts empty."""
        self._bytes = np.zeros((2, len(TRAFFIC_PHASES)), dtype=np.int64)

    def book_protocol(self, phase: str, count: int) -> None:
        """Adds `count` bytes that clients would send to each other."""
        self._bytes[0, TRAFFIC_PHASES.index(phase)] += count

    def book_mpi(self, phase: str, count: int) -> None:
        """Adds `count` bytes that this rank hands to MPI for other ranks."""
        self._bytes[1, TRAFFIC_PHASES.index(phase)] += count

    def lap(self) -> np.ndarray:
        """`[2, phase]` int64: protocol and MPI bytes since the last lap."""
        booked, self._bytes = self._bytes, np.zeros_like(self._bytes)
        return booked
