"""The work of a client in a round, counted in operations, bytes and calls.

A method counts its own work. `planning/costs.py` adds the work that all methods share, turns the counts
into seconds, and distributes clients over ranks by them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpi_ntkdfl.model.network import Network


@dataclass(frozen=True)
class Work:
    """The work of every client in one phase of a round; each attribute is an array `[client]`.

    Attributes:
        operations: number of floating-point operations of matrix products.
        bytes: number of bytes that passes over arrays read and write.
        calls: number of tensor operations of any size.
    """

    operations: np.ndarray
    bytes: np.ndarray
    calls: np.ndarray

    def times(self, count: int) -> Work:
        """This work `count` times."""
        return Work(count * self.operations, count * self.bytes, count * self.calls)


@dataclass(frozen=True)
class Load:
    """The clients whose work is counted, with their numbers of samples; arrays are `[client]`.

    Attributes:
        network: the model of every client.
        itemsize: bytes of a floating-point number.
        own: number of samples of each client.
        gathered: number of samples of each client and its neighbours together.
        degrees: number of neighbours of each client. If graphs are dynamic, every client is given
            average neighbours.
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
