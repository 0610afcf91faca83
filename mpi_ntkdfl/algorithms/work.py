"""What a round asks of a client, counted in operations, bytes and calls.

A method counts its own work. `planning/costs.py` adds what is common to all methods, turns the counts
into seconds, and shares clients out to ranks by them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpi_ntkdfl.model.network import Network


@dataclass(frozen=True)
class Work:
    """What one phase of a round asks of every client; each attribute is an array `[client]`.

    Attributes:
        operations: floating-point operations of matrix products.
        bytes: read and written by passes over arrays.
        calls: of tensor operations, whatever their size.
    """

    operations: np.ndarray
    bytes: np.ndarray
    calls: np.ndarray

    def times(self, count: int) -> Work:
        """The work of doing this `count` times."""
        return Work(count * self.operations, count * self.bytes, count * self.calls)


@dataclass(frozen=True)
class Load:
    """The clients whose work is counted, and on what they compute; arrays are `[client]`.

    Attributes:
        network: the model of every client.
        itemsize: bytes of a floating-point number.
        own: samples of each client.
        gathered: samples of each client and of its neighbours together.
        degrees: number of neighbours of each client. Where graphs are dynamic, neighbours are average
            ones.
    """

    network: Network
    itemsize: int
    own: np.ndarray
    gathered: np.ndarray
    degrees: np.ndarray

    @property
    def nothing(self) -> np.ndarray:
        """Zeros `[client]`, for counts that are the same for all clients."""
        return np.zeros(len(self.own))
