"""Graphs of rounds in which not all clients take part, or in which not all messages are used."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mpi_ntkdfl.topology.graphs import Graph, Integers


def among(graph: Graph, present: np.ndarray) -> Graph:
    """The graph of the edges between clients that are `present` `[client]`; ids stay the same."""
    if present.all():
        return graph
    kept = present[graph.edges[:, 0]] & present[graph.edges[:, 1]]
    return Graph(graph.clients, graph.edges[kept])


@dataclass(frozen=True, eq=False)
class Hearing:
    """Whose messages each client uses. Unlike in a graph, i may hear j while j does not hear i.

    Attributes:
        offsets: client i hears `members[offsets[i]:offsets[i + 1]]`, `[client + 1]`.
        members: ascending for each client, the client itself included.
    """

    offsets: Integers
    members: Integers

    @classmethod
    def without(cls, graph: Graph, source: Integers, target: Integers) -> Hearing:
        """A graph's neighbourhoods without some directed messages.

        Args:
            graph: the graph.
            source: clients that are not heard, `[message]`.
            target: by whom each of them is not heard, `[message]`.
        """
        owner = np.repeat(np.arange(graph.clients, dtype=np.int64), graph.degrees + 1)
        lost = np.isin(owner * graph.clients + graph.members, target * graph.clients + source)
        counts = np.bincount(owner[~lost], minlength=graph.clients)
        return cls(np.concatenate([[0], np.cumsum(counts)]), graph.members[~lost])

    @property
    def clients(self) -> int:
        """M."""
        return len(self.offsets) - 1

    @cached_property
    def degrees(self) -> Integers:
        """How many others each client hears, `[client]`."""
        degrees: Integers = np.diff(self.offsets) - 1
        return degrees

    def closed(self, client: int) -> Integers:
        """Those whom `client` hears, itself included, ascending."""
        return self.members[self.offsets[client] : self.offsets[client + 1]]
