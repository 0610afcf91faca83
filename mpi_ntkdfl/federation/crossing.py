"""What crosses between a rank and its neighbours on one graph: found once, used by every exchange."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from mpi_ntkdfl.federation.transfer import Pair
from mpi_ntkdfl.topology.graphs import Graph, Integers
from mpi_ntkdfl.topology.placement import Placement, pairs, receive_clients, send_clients


class Crossing:
    """Clients and pairs of clients by neighbouring rank; lists are `[neighbour]`, in the ranks' order."""

    def __init__(
        self, graph: Graph, placement: Placement, rank: int, neighbours: Sequence[int]
    ) -> None:
        """Remembers whose they are; what is never asked for is never found."""
        self._graph, self._placement, self._rank = graph, placement, rank
        self._neighbours = neighbours

    @cached_property
    def leaving(self) -> list[list[int]]:
        """Own clients whose vectors go to each neighbour, ascending."""
        graph, placement, others = self._graph, self._placement, self._neighbours
        return [send_clients(graph, placement, self._rank, to).tolist() for to in others]

    @cached_property
    def coming(self) -> list[list[int]]:
        """Clients of each neighbour whose vectors come from it, ascending."""
        graph, placement, others = self._graph, self._placement, self._neighbours
        return [receive_clients(graph, placement, self._rank, source).tolist() for source in others]

    @cached_property
    def _pairs_leaving(self) -> list[Integers]:
        graph, placement, others = self._graph, self._placement, self._neighbours
        return [pairs(graph, placement, self._rank, to) for to in others]

    @cached_property
    def _pairs_coming(self) -> list[Integers]:
        graph, placement, others = self._graph, self._placement, self._neighbours
        return [pairs(graph, placement, source, self._rank) for source in others]

    def pairs_leaving(self, targets: Sequence[range]) -> list[list[Pair]]:
        """Pairs (i, j) of neighbouring clients, j of this rank and i of each neighbour, sorted.

        Args:
            targets: for each rank the clients i that are meant, `[rank]`.
        """
        found = zip(self._neighbours, self._pairs_leaving, strict=True)
        return [_within(each, targets[to]) for to, each in found]

    def pairs_coming(self, targets: Sequence[range]) -> list[list[Pair]]:
        """Pairs (i, j) of neighbouring clients, i of this rank and j of each neighbour, sorted.

        Args:
            targets: for each rank the clients i that are meant, `[rank]`.
        """
        return [_within(each, targets[self._rank]) for each in self._pairs_coming]


def _within(found: Integers, clients: range) -> list[Pair]:
    """The rows (i, j) of the sorted `found` `[pair, 2]` with i in `clients`."""
    start, stop = np.searchsorted(found[:, 0], [clients.start, clients.stop])
    return [(i, j) for i, j in found[start:stop].tolist()]
