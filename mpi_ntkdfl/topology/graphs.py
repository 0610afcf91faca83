"""Communication graphs: their representation, the ways to draw or read one, and their components.

Clients are the integers 0 to M-1. A graph is undirected and simple. Equal settings and a generator with
the same seed give the same graph on every rank and in every process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mpi_ntkdfl.config.sections import (
    CompleteTopology,
    ErdosRenyiTopology,
    FileTopology,
    GridTopology,
    RegularTopology,
    RingTopology,
    SmallWorldTopology,
    StarTopology,
    Topology,
)
from mpi_ntkdfl.runtime.paths import user_path
from mpi_ntkdfl.topology.graph_files import read_graph
from mpi_ntkdfl.topology.pairing import random_regular

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Graph:
    """Undirected simple graph of the clients 0 to M-1; `from_pairs` builds one from any pairs.

    Attributes:
        clients: number M of clients, >= 1.
        edges: [E, 2] int64, each row i < j, rows unique and in lexicographic order; read-only.
        names: of the clients, `[M]`, if the file of the graph calls them by names; else empty.

    Raises:
        ValueError: if `edges` does not have this form.
    """

    clients: int
    edges: Integers
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        edges = np.asarray(self.edges, dtype=np.int64).reshape(-1, 2).view()
        low, high = edges.T
        if len(edges) and not (
            low.min() >= 0
            and high.max() < self.clients
            and (low < high).all()
            and (np.diff(low * self.clients + high) > 0).all()
        ):
            raise ValueError(
                f"edges must be sorted unique rows i < j of clients 0 to {self.clients - 1}, but the "
                "given ones are not; use Graph.from_pairs"
            )
        edges.flags.writeable = False
        object.__setattr__(self, "edges", edges)

    @classmethod
    def from_pairs(cls, clients: int, pairs: npt.ArrayLike) -> Graph:
        """Builds the graph from pairs [K, 2] in any order and direction; pairs may be repeated.

        Raises:
            ValueError: if a pair joins a client with itself, or a client does not exist.
        """
        given = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        if given.size and (given.min() < 0 or given.max() >= clients):
            raise ValueError(
                f"pairs must be of clients 0 to {clients - 1}, got {given.min()} to {given.max()}"
            )
        if (given[:, 0] == given[:, 1]).any():
            raise ValueError("pairs must be of two different clients, got a client with itself")
        keys = np.unique(given.min(axis=1) * clients + given.max(axis=1))
        return cls(clients, np.stack(np.divmod(keys, clients), axis=1))

    @cached_property
    def _closed(self) -> tuple[Integers, Integers]:
        low, high = self.edges.T
        below = np.bincount(high, minlength=self.clients)
        above = np.bincount(low, minlength=self.clients)
        offsets = np.zeros(self.clients + 1, dtype=np.int64)
        np.cumsum(below + 1 + above, out=offsets[1:])
        members = np.empty(offsets[-1], dtype=np.int64)
        # For each client come its lower neighbours, itself, and its higher neighbours. The edges are
        # already sorted by their lower ends, so only the lower neighbours need a sort.
        starts, edge = offsets[:-1], np.arange(len(low), dtype=np.int64)
        keys = high * self.clients + low
        keys.sort()
        upper, lower = np.divmod(keys, self.clients)
        members[edge + (starts - np.cumsum(below) + below)[upper]] = lower
        own = starts + below
        members[own] = np.arange(self.clients, dtype=np.int64)
        members[edge + (own + 1 - np.cumsum(above) + above)[low]] = high
        members.flags.writeable = offsets.flags.writeable = False
        return offsets, members

    @property
    def offsets(self) -> Integers:
        """[M+1]: the closed neighbourhood of i is `members[offsets[i]:offsets[i + 1]]`."""
        return self._closed[0]

    @property
    def members(self) -> Integers:
        """[M+2E]: the closed neighbourhoods of all clients, one after another; each is ascending."""
        return self._closed[1]

    @cached_property
    def degrees(self) -> Integers:
        """[M] number of neighbours of each client, without the client itself."""
        degrees: Integers = np.diff(self.offsets) - 1
        return degrees

    def closed(self, client: int) -> Integers:
        """Neighbours of `client` and itself, [degree+1], ascending; a read-only view."""
        return self.members[self.offsets[client] : self.offsets[client + 1]]


# ----------------------------------------------------------------------------------------- drawing


def draw(settings: Topology, clients: int, generator: np.random.Generator) -> Graph:
    """Draws one graph.

    Kinds with a fixed shape (ring, complete, star, grid, file) use the generator only if they are
    dynamic, to permute the clients. Random kinds take an integer seed from the generator. All random
    kinds but the regular graph pass this seed to networkx, so their graphs depend on how the version of
    networkx draws.

    Args:
        settings: the kind of graph and its parameters; `Config` has validated them for `clients`.
        clients: number M of clients.
        generator: source of all randomness.

    Raises:
        InputError: if a graph file cannot be used.
    """
    shape = fixed_shape(settings, clients)
    if shape is None:
        return _draw_random(settings, clients, int(generator.integers(2**63)))
    return reseat(shape, generator) if settings.dynamic else shape


def fixed_shape(settings: Topology, clients: int) -> Graph | None:
    """The graph of a kind with a fixed shape, before clients are permuted; None for the random kinds.

    Raises:
        InputError: if a graph file cannot be used.
    """
    every = np.arange(clients, dtype=np.int64)
    match settings:
        case RingTopology():
            return Graph.from_pairs(clients, np.stack([every, np.roll(every, -1)], axis=1))
        case CompleteTopology():
            return _complete(clients)
        case StarTopology():
            return Graph(clients, np.stack([np.zeros_like(every), every], axis=1)[1:])
        case GridTopology():
            return _grid(clients)
        case FileTopology():
            pairs, names = read_graph(str(user_path(settings.path, "topology.path")), clients)
            return replace(Graph.from_pairs(clients, pairs), names=names)
        case _:
            return None


def reseat(shape: Graph, generator: np.random.Generator) -> Graph:
    """The same graph with randomly permuted clients."""
    return Graph.from_pairs(shape.clients, generator.permutation(shape.clients)[shape.edges])


def _complete(clients: int) -> Graph:
    return Graph(clients, np.stack(np.triu_indices(clients, 1), axis=1))


def _grid(clients: int) -> Graph:
    """A full grid of rows x columns, numbered row by row; a prime number of clients gives a path."""
    rows = next(r for r in range(math.isqrt(clients), 0, -1) if clients % r == 0)
    seats = np.arange(clients, dtype=np.int64).reshape(rows, -1)
    across = np.stack([seats[:, :-1].ravel(), seats[:, 1:].ravel()], axis=1)
    down = np.stack([seats[:-1].ravel(), seats[1:].ravel()], axis=1)
    return Graph.from_pairs(clients, np.concatenate([across, down]))


def _draw_random(settings: Topology, clients: int, seed: int) -> Graph:
    if isinstance(settings, RegularTopology):
        return _random_regular(settings.degree, clients, seed)
    import networkx as nx  # it takes as long to load as numpy, and regular graphs do not need it

    match settings:
        case ErdosRenyiTopology(p=p):
            # networkx divides by log(1 - p), which rounds to zero for the tiniest p.
            if 1.0 - p == 1.0:
                return Graph.from_pairs(clients, [])
            drawn = nx.fast_gnp_random_graph(clients, p, seed=seed)
        case SmallWorldTopology(degree=degree, p=p):
            drawn = nx.watts_strogatz_graph(clients, degree, p, seed=seed)
        case _:
            raise TypeError(f"topology must be one of the known kinds, got {settings!r}")
    return Graph.from_pairs(clients, list(drawn.edges()))


def _random_regular(degree: int, clients: int, seed: int) -> Graph:
    # Pairing starts again when it cannot continue, and near the complete graph this happens practically
    # always. So dense graphs are drawn by their missing edges, which form a sparse regular graph.
    by_complement = 2 * degree > clients - 1
    drawn_degree = clients - 1 - degree if by_complement else degree
    edges = random_regular(drawn_degree, clients, seed)
    if not by_complement:
        return Graph(clients, edges)
    present = np.triu(np.ones((clients, clients), dtype=bool), 1)
    present[edges[:, 0], edges[:, 1]] = False
    return Graph(clients, np.argwhere(present))


# ---------------------------------------------------------------------------------------- analysis


def components(graph: Graph) -> int:
    """Number of connected components; every isolated client counts as one."""
    roots = np.arange(graph.clients, dtype=np.int64)
    low, high = graph.edges.T
    while True:
        ends, others = roots[low], roots[high]
        apart = ends != others
        if not apart.any():
            return int(np.count_nonzero(roots == np.arange(graph.clients)))
        low, high = np.minimum(ends, others)[apart], np.maximum(ends, others)[apart]
        # Each root joins the lowest neighbouring component; pointers to lower roots form no cycle.
        np.minimum.at(roots, high, low)
        while not np.array_equal(roots, roots[roots]):
            roots = roots[roots]
