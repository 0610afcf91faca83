"""Which clients' messages a rank exchanges with its neighbouring ranks on one graph.

The lists are computed once per graph, and all exchanges use them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from mpi_ntkdfl.federation.transfer import Pair
from mpi_ntkdfl.topology.graphs import Graph, Integers
from mpi_ntkdfl.topology.placement import Placement, pairs, receive_clients, send_clients


class Crossing:
    """Clients and pairs of clients for each neighbouring rank; lists are `[neighbour]`, in rank order."""

    def __init__(
        self, graph: Graph, placement: Placement, rank: int, neighbours: Sequence[int]
    ) -> None:
        """Keeps the arguments; each list is computed when it is first needed."""
        self._graph, self._placement, self._rank = graph, placement, rank
        self._neighbours = neighbours

    @cached_property
    def leaving(self) -> list[list[int]]:
        """For each neighbour, the own clients whose vectors are sent to it, ascending."""
        graph, placement, others = self._graph, self._placement, self._neighbours
        return [send_clients(graph, placement, self._rank, to).tolist() for to in others]

    @cached_property
    def coming(self) -> list[list[int]]:
        """For each neighbour, its clients whose vectors are received from it, ascending."""
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
        """For each neighbour, the sorted pairs (i, j) of adjacent clients, j on this rank and i on it.

        Args:
            targets: the clients i to keep, for each rank: `[rank]`.
        """
        by_neighbour = zip(self._neighbours, self._pairs_leaving, strict=True)
        return [_within(each, targets[to]) for to, each in by_neighbour]

    def pairs_coming(self, targets: Sequence[range]) -> list[list[Pair]]:
        """For each neighbour, the sorted pairs (i, j) of adjacent clients, i on this rank and j on it.

        Args:
            targets: the clients i to keep, for each rank: `[rank]`.
        """
        return [_within(each, targets[self._rank]) for each in self._pairs_coming]


def _within(sorted_pairs: Integers, clients: range) -> list[Pair]:
    """The rows (i, j) of `sorted_pairs` `[pair, 2]` with i in `clients`."""
    start, stop = np.searchsorted(sorted_pairs[:, 0], [clients.start, clients.stop])
    return [(i, j) for i, j in sorted_pairs[start:stop].tolist()]
