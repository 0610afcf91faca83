"""Exchanges with neighbours as single messages, for a set of neighbours that lasts for one round.

To open a distributed-graph communicator takes some ten latencies of the network, because all ranks have
to agree on it. Where every round has another graph that is more than the round's messages take. These
messages travel on one communicator for the whole run, and opening a channel sends nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mpi4py import MPI

from mpi_ntkdfl.comm.graph_channel import require_sizes
from mpi_ntkdfl.comm.watchdog import mark
from mpi_ntkdfl.comm.world import Pending
from mpi_ntkdfl.model.params import ALIGNMENT as UNIT


class PointChannel:
    """See `Channel`."""

    def __init__(self, comm: Any, neighbours: Sequence[int]) -> None:
        """Opens the channel; sends nothing.

        Args:
            comm: mpi4py communicator of the ranks, for such channels only. All ranks start exchanges
                in the same order, so messages between two ranks arrive in the order that both expect.
            neighbours: other ranks, ascending; the relation is symmetric.
        """
        self.neighbours = tuple(int(rank) for rank in neighbours)
        self._comm = comm
        # Counts are 32 bit; in units of 64 bytes they allow messages of 137 GB.
        self._unit = MPI.BYTE.Create_contiguous(UNIT).Commit()

    def start(
        self,
        send: torch.Tensor,
        send_bytes: tuple[int, ...],
        receive_bytes: tuple[int, ...],
        room: torch.Tensor,
    ) -> Pending:
        """Starts one exchange; see `Channel.start`.

        Raises:
            ValueError: if a size is no multiple of 64, or the sizes do not fit the neighbours.
        """
        mark()
        coming = self._each(self._comm.Irecv, room, receive_bytes)
        return _Started([*coming, *self._each(self._comm.Isend, send, send_bytes)], send, room)

    def _each(self, call: Any, buffer: torch.Tensor, sizes: tuple[int, ...]) -> list[Any]:
        """A request for the part of `buffer` of every neighbour that has one."""
        require_sizes(sizes, self.neighbours)
        requests, address = [], buffer.data_ptr()
        for rank, size in zip(self.neighbours, sizes, strict=True):
            if size:
                memory = MPI.buffer.fromaddress(address, size)
                requests.append(call([memory, size // UNIT, self._unit], rank))
            address += size
        return requests

    def close(self) -> None:
        """Frees the type of the messages; the communicator stays."""
        self._unit.Free()


class _Started:
    """Requests together with the buffers they need alive."""

    __slots__ = ("_received", "_requests", "_send")

    def __init__(self, requests: list[Any], send: torch.Tensor, received: torch.Tensor) -> None:
        self._requests, self._send, self._received = requests, send, received

    def poke(self) -> bool:
        return bool(MPI.Request.Testall(self._requests))

    def wait(self) -> torch.Tensor:
        MPI.Request.Waitall(self._requests)
        return self._received
