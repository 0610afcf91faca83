"""The traffic of a round: protocol bytes (what real clients would send), MPI bytes (what ranks sent)."""

from __future__ import annotations

import numpy as np

TRAFFIC_PHASES = ("weights", "averages", "jacobians", "outputs", "labels", "inputs", "statistics")
"""Kinds of messages by their content. `statistics` are reductions for the record. Real clients would not
send them, so their protocol bytes are 0."""


class Ledger:
    """Bytes by phase of the current round, on one rank.

    Protocol bytes follow from the graph and the sizes of the messages, and only rank 0 books them. The
    sending rank books MPI bytes. Sums over ranks are therefore totals of the whole job.
    """

    def __init__(self) -> None:
        """Starts empty."""
        self._bytes: np.ndarray = np.zeros((2, len(TRAFFIC_PHASES)), dtype=np.int64)
        self._through: np.ndarray = np.zeros(1, dtype=np.int64)

    def book_protocol(self, phase: str, through: np.ndarray) -> None:
        """Adds bytes that nodes (the clients and a server) would send to each other.

        Args:
            phase: phase of the messages.
            through: bytes that each node receives plus bytes that it sends, `[client + 1]`; the last
                node is the server. Every byte is sent by one node and received by another, so the sum
                is twice the traffic.
        """
        self._bytes[0, TRAFFIC_PHASES.index(phase)] += int(through.sum()) // 2
        self._through = self._through + through

    def book_mpi(self, phase: str, count: int) -> None:
        """Adds `count` bytes that this rank sends to other ranks by MPI."""
        self._bytes[1, TRAFFIC_PHASES.index(phase)] += count

    @property
    def busiest(self) -> int:
        """Protocol bytes received plus sent by the busiest node since the last lap; valid on rank 0."""
        return int(self._through.max())

    @property
    def booked(self) -> np.ndarray:
        """`[2, phase]` int64: protocol and MPI bytes since the last lap; does not reset them."""
        return self._bytes

    def lap(self) -> np.ndarray:
        """`[2, phase]` int64: protocol and MPI bytes since the last lap; resets them."""
        booked, self._bytes = self._bytes, np.zeros_like(self._bytes)
        self._through = np.zeros(1, dtype=np.int64)
        return booked
