"""Neighbourhood collectives on a distributed-graph communicator.

One nonblocking `Ineighbor_alltoallw` sends all messages of a rank to its neighbours. Alltoallw is used
rather than alltoallv, because its displacements are in bytes and wide enough for buffers above 2 GiB on
both Open MPI and MPICH. Its counts have 32 bits, so messages are counted in units of 64 bytes. This
allows 137 GB per neighbour, and every array in a message starts on a cache line.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from mpi4py import MPI

from mpi_ntkdfl.comm.watchdog import mark
from mpi_ntkdfl.comm.world import Pending
from mpi_ntkdfl.model.params import ALIGNMENT as UNIT


class GraphChannel:
    """See `Channel`. It holds a communicator, so `close` it: MPI libraries allow about 2,000 of them."""

    def __init__(self, comm: Any, neighbours: Sequence[int]) -> None:
        """Opens the channel; all ranks of `comm` take part.

        Args:
            comm: mpi4py communicator of the ranks.
            neighbours: other ranks, ascending; the relation is symmetric.
        """
        self.neighbours = tuple(int(rank) for rank in neighbours)
        # reorder=True hangs with some Open MPI releases. It would not help either, because ranks are
        # already bound to devices.
        self._graph = comm.Create_dist_graph_adjacent(
            self.neighbours, self.neighbours, reorder=False
        )
        self._unit = MPI.BYTE.Create_contiguous(UNIT).Commit()
        self._layouts: dict[tuple[int, ...], list[Any]] = {}

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
        layouts = self._layouts
        leaving = layouts.get(send_bytes) or self._layout(send_bytes)
        coming = layouts.get(receive_bytes) or self._layout(receive_bytes)
        mark()
        request = self._graph.Ineighbor_alltoallw(
            [_memory(send), *leaving], [_memory(room), *coming]
        )
        return Started([request], send, room)

    def _layout(self, sizes: tuple[int, ...]) -> list[Any]:
        """Counts, displacements and types of a buffer with `sizes` bytes for each neighbour.

        The layout is kept, because later rounds on the same graph use the same sizes.
        """
        require_sizes(sizes, self.neighbours)
        displacements = list(accumulate(sizes, initial=0))[:-1]
        counts = [size // UNIT for size in sizes]
        self._layouts[sizes] = [counts, displacements, [self._unit] * len(counts)]
        return self._layouts[sizes]

    def close(self) -> None:
        """Frees the communicator."""
        self._unit.Free()
        self._graph.Free()


def require_sizes(sizes: Sequence[int], neighbours: Sequence[int]) -> None:
    """Checks that there is one size per neighbour, and that all are multiples of 64 bytes.

    Raises:
        ValueError: if not.
    """
    if len(sizes) != len(neighbours) or any(size % UNIT for size in sizes):
        raise ValueError(
            f"expected sizes in multiples of {UNIT} bytes for {len(neighbours)} neighbours, got "
            f"{list(sizes)}"
        )


def _memory(buffer: torch.Tensor) -> Any:
    """The memory of `buffer` in the form that mpi4py accepts.

    This is cheaper than an array of `buffer`. It does not keep the memory alive.
    """
    return MPI.buffer.fromaddress(buffer.data_ptr(), buffer.numel())


class Started:
    """Requests together with their buffers, which must stay alive until all are complete."""

    __slots__ = ("_received", "_requests", "_send")

    def __init__(self, requests: list[Any], send: torch.Tensor, received: torch.Tensor) -> None:
        """Keeps the requests and the buffers from which they read and into which they write."""
        self._requests, self._send, self._received = requests, send, received

    def poke(self) -> bool:
        """Lets MPI work, and says whether all requests are complete."""
        return bool(MPI.Request.Testall(self._requests))

    def wait(self) -> torch.Tensor:
        """Waits for all requests; returns the buffer of what was received."""
        MPI.Request.Waitall(self._requests)
        return self._received
