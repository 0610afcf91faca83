"""Which rank owns which client, and which clients' messages two ranks exchange on a graph.

Everything follows from the graph and the placement, so sender and receiver compute the same lists without
communication. The time that a rank needs is proportional to the number of edges of its own clients, once
the neighbourhoods of the graph are built.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
import numpy.typing as npt

from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.topology.graphs import Graph, Integers


@dataclass(frozen=True)
class Placement:
    """Contiguous shares of the clients, never empty.

    Attributes:
        clients: number M of clients.
        ranks: number R of ranks, 1 <= R <= M.
        cuts: first client of each rank except rank 0, ascending. None for equal shares, where the first
            M % R ranks own one client more than the others. `balanced` computes cuts from costs.

    Raises:
        InputError: if there are more ranks than clients.
        ValueError: if there is no rank, or the cuts leave a rank without a client.
    """

    clients: int
    ranks: int
    cuts: tuple[int, ...] | None = None

    @classmethod
    def balanced(cls, costs: Integers, ranks: int) -> Placement:
        """The placement whose most loaded rank has the least load that contiguous shares allow.

        This least possible load is exact; it is computed by bisection (Pinar, Aykanat, "Fast optimal
        load balancing algorithms for 1D partitioning", J. Parallel Distrib. Comput. 64, 2004). Several
        placements can reach it. Among these, the ranks are filled in order, and the load of each rank is
        as near as possible to an equal part of the load that is left.

        Args:
            costs: cost of each client, `[client]` non-negative integers; equal costs give equal shares.
            ranks: number R of ranks.

        Raises:
            InputError: if there are more ranks than clients.
        """
        equal = cls(len(costs), ranks)
        # Every client costs at least 1, so that clients without cost are distributed as well.
        sums = np.concatenate([[0], np.cumsum(np.maximum(costs, 1), dtype=np.int64)])
        low, high = -(-int(sums[-1]) // ranks), int(sums[-1])
        while low < high:
            middle = (low + high) // 2
            if _last_starts(sums, equal.ranks, middle) is None:
                low = middle + 1
            else:
                high = middle
        earliest = _last_starts(sums, ranks, high)
        assert earliest is not None  # the bisection ends at a load with which the clients fit
        cuts, start = [], 0
        for rank in range(1, ranks):
            left = int(sums[-1] - sums[start])
            fair = int(sums[start]) - (-left // (ranks - rank + 1))
            reach = int(np.searchsorted(sums, sums[start] + high, side="right")) - 1
            wanted = int(np.searchsorted(sums, fair))
            latest = min(reach, len(costs) - (ranks - rank))
            start = min(max(wanted, earliest[rank], start + 1), latest)
            cuts.append(start)
        return cls(len(costs), ranks, tuple(cuts))

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise ValueError(f"ranks must be at least 1, got {self.ranks}")
        if self.ranks > self.clients:
            raise InputError(
                f"more ranks than clients: got {self.ranks} ranks for {self.clients} clients; "
                f"start at most {self.clients} ranks"
            )
        if self.cuts is not None and (
            len(self.cuts) != self.ranks - 1 or (np.diff([0, *self.cuts, self.clients]) < 1).any()
        ):
            raise ValueError(f"cuts leave a rank without clients: {self.cuts}")

    @cached_property
    def offsets(self) -> Integers:
        """[R+1] int64: rank r owns the clients from `offsets[r]` to `offsets[r + 1] - 1`."""
        if self.cuts is None:
            share, extra = divmod(self.clients, self.ranks)
            rank = np.arange(self.ranks + 1, dtype=np.int64)
            offsets = rank * share + np.minimum(rank, extra)
        else:
            offsets = np.array([0, *self.cuts, self.clients], dtype=np.int64)
        offsets.flags.writeable = False
        return offsets

    def owned(self, rank: int) -> range:
        """The clients of a rank, never empty."""
        return range(int(self.offsets[rank]), int(self.offsets[rank + 1]))

    @overload
    def owner(self, client: int) -> int: ...
    @overload
    def owner(self, client: Integers) -> Integers: ...
    def owner(self, client: int | Integers) -> int | Integers:
        """The rank that owns a client from 0 to M-1; for an array of clients, an array of ranks."""
        ranks: Integers = np.searchsorted(self.offsets, client, side="right") - 1
        return ranks if isinstance(client, np.ndarray) else int(ranks)


def _last_starts(sums: Integers, ranks: int, most: int) -> list[int] | None:
    """The earliest first client of each rank, if the load of every rank is at most `most`.

    Ranks are filled from the last one.

    Args:
        sums: cost of all clients before each client, `[client + 1]`, strictly ascending.
        ranks: number R of ranks, at most as many as clients.
        most: the largest load allowed.

    Returns:
        `[rank]`, or None if the clients do not fit.
    """
    starts, stop = [], len(sums) - 1
    for rank in range(ranks - 1, -1, -1):
        # Each rank before this one needs at least one client.
        start = max(int(np.searchsorted(sums, sums[stop] - most)), rank)
        if start >= stop:
            return None
        starts.append(start)
        stop = start
    return starts[::-1] if stop == 0 else None


def neighbour_ranks(graph: Graph, placement: Placement, rank: int) -> Integers:
    """The other ranks that share an edge with `rank`, ascending; the relation is symmetric."""
    _, others = _own_edges(graph, placement, rank)
    owners = np.unique(placement.owner(others))
    other_ranks: Integers = owners[owners != rank]
    return other_ranks


def send_clients(graph: Graph, placement: Placement, rank: int, to: int) -> Integers:
    """Clients of `rank` with a neighbour on the other rank `to`, ascending; each is listed once."""
    own, others = _own_edges(graph, placement, rank)
    return np.unique(own[_owned_by(others, placement, to)])


def receive_clients(graph: Graph, placement: Placement, rank: int, source: int) -> Integers:
    """Clients of the other rank `source` with a neighbour on `rank`, ascending.

    The result equals `send_clients(graph, placement, source, rank)`, but it is computed from the edges of
    `rank`.
    """
    _, others = _own_edges(graph, placement, rank)
    return np.unique(others[_owned_by(others, placement, source)])


def pairs(graph: Graph, placement: Placement, source_rank: int, target_rank: int) -> Integers:
    """Directed edges from the clients of one rank to the clients of another rank, or of the same rank.

    Returns:
        [K, 2] int64, sorted rows (target client i, source client j), where i is on `target_rank`, j is on
        `source_rank`, and {i, j} is an edge. A client is never paired with itself.
    """
    targets, sources = _own_edges(graph, placement, target_rank)
    kept = _owned_by(sources, placement, source_rank)
    return np.stack([targets[kept], sources[kept]], axis=1)


def _own_edges(graph: Graph, placement: Placement, rank: int) -> tuple[Integers, Integers]:
    """Clients of `rank` [K] and their neighbours [K], sorted by both, without the clients themselves."""
    owned = placement.owned(rank)
    starts = graph.offsets[owned.start : owned.stop + 1]
    others = graph.members[starts[0] : starts[-1]]
    own = np.repeat(np.arange(owned.start, owned.stop, dtype=np.int64), np.diff(starts))
    proper = own != others
    return own[proper], others[proper]


def _owned_by(clients: Integers, placement: Placement, rank: int) -> npt.NDArray[np.bool_]:
    owned = placement.owned(rank)
    return (clients >= owned.start) & (clients < owned.stop)
