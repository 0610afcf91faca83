"""Exchanges with neighbours as single messages, for a set of neighbours that is used in one round only.

Opening a distributed-graph communicator takes about ten latencies of the network, because all ranks have
to agree on it. If every round has a new graph, this takes longer than the messages of the round. The
channels here use one communicator for the whole run, and opening a channel sends nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mpi4py import MPI

from mpi_ntkdfl.comm.graph_channel import Started, require_sizes
from mpi_ntkdfl.comm.watchdog import mark
from mpi_ntkdfl.comm.world import Pending
from mpi_ntkdfl.model.params import ALIGNMENT as UNIT


class PointChannel:
    """See `Channel`."""

    def __init__(self, comm: Any, neighbours: Sequence[int]) -> None:
        """Opens the channel; sends nothing.

        Args:
            comm: mpi4py communicator of the ranks that only such channels use. All ranks start exchanges
                in the same order, so messages between two ranks arrive in the order that both expect.
            neighbours: other ranks, ascending; the relation is symmetric.
        """
        self.neighbours = tuple(int(rank) for rank in neighbours)
        self._comm = comm
        # Counts have 32 bits; in units of 64 bytes they allow messages of 137 GB.
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
        return Started([*coming, *self._each(self._comm.Isend, send, send_bytes)], send, room)

    def _each(self, call: Any, buffer: torch.Tensor, sizes: tuple[int, ...]) -> list[Any]:
        """Requests for the parts of `buffer`: one per neighbour whose part is not empty."""
        require_sizes(sizes, self.neighbours)
        requests, address = [], buffer.data_ptr()
        for rank, size in zip(self.neighbours, sizes, strict=True):
            if size:
                memory = MPI.buffer.fromaddress(address, size)
                requests.append(call([memory, size // UNIT, self._unit], rank))
            address += size
        return requests

    def close(self) -> None:
        """Frees the datatype of the messages; the communicator is kept."""
        self._unit.Free()
