"""How a rank works through its clients within its memory: waves, and slices of dense Jacobians.

A rank's working memory is what it holds beyond its clients' data and weights: messages, stacked
Jacobians, kernels, evolutions. `compute.memory_limit` bounds it. Every rank computes everybody's waves
from the graph and the sample counts, so senders know what receivers ask for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.topology.graphs import Graph
from mpi_ntkdfl.topology.placement import Placement

DEFAULT_LIMIT = 256 * 2**20
"""Working memory of a rank in bytes when the user sets no limit."""

_EVOLUTION_COPIES = 60
"""Arrays `[sample, output]` an evolution holds at most (stages, sums, outputs)."""

_MOST_AT_ONCE = 512
"""Clients computed together at most: all take as many steps as the slowest of them."""


@dataclass(frozen=True)
class WorkingSet:
    """Sizes that decide a rank's working memory.

    Attributes:
        network: the model of every client.
        taus: number of candidate taus.
        itemsize: bytes of a floating-point number.
    """

    network: Network
    taus: int
    itemsize: int

    @property
    def outputs(self) -> int:
        """C."""
        return self.network.classes

    @property
    def params(self) -> int:
        """P."""
        return self.network.layout.size

    def one_client(self, samples: int) -> int:
        """Bytes to process one client with N = `samples` in its neighbourhood.

        What the network needs for its Jacobian, three kernels, the evolution, and the candidate
        weights with their products.
        """
        kernels = 3 * samples * samples
        evolution = (_EVOLUTION_COPIES + 2 * self.taus) * samples * self.outputs
        jacobian, candidates = self.network.memory(samples), 3 * self.taus * self.params
        return self.itemsize * (jacobian + kernels + evolution + candidates)


def neighbourhood_sums(graph: Graph, values: np.ndarray) -> np.ndarray:
    """For each client the sum of `values` `[client]` over its neighbours (itself not included)."""
    first, second = graph.edges.T
    return np.bincount(first, values[second], graph.clients).astype(np.int64) + np.bincount(
        second, values[first], graph.clients
    ).astype(np.int64)


def largest_neighbourhood(graph: Graph, sizes: np.ndarray) -> int:
    """Samples of the largest closed neighbourhood, given each client's `sizes` `[client]`."""
    return int((neighbourhood_sums(graph, sizes) + sizes).max())


def factored_waves(
    graph: Graph,
    placement: Placement,
    sizes: np.ndarray,
    message_bytes: np.ndarray,
    work: WorkingSet,
    limit: int | None,
    at_once: int = 1,
) -> list[list[range]]:
    """Cuts every rank's clients into waves that fit the working memory.

    Args:
        graph: the round's graph.
        placement: who owns whom.
        sizes: samples of each client, `[client]`.
        message_bytes: bytes of a Jacobian's message from each client, `[client]`.
        work: sizes of the computation.
        limit: working memory of a rank in bytes, None for the default.
        at_once: clients a rank computes together.

    Returns:
        For each rank its waves, ranges of client ids; all ranks have equally many, the last ones
        possibly empty, because every rank takes part in every exchange.
    """
    # A wave's messages are held while the next wave's arrive, and sent messages weigh about as much.
    held = 4 * neighbourhood_sums(graph, message_bytes)
    one_client = work.one_client(largest_neighbourhood(graph, sizes))
    room = DEFAULT_LIMIT - one_client if limit is None else limit - at_once * one_client
    waves = [cut(placement.owned(rank), held, max(room, 0)) for rank in range(placement.ranks)]
    most = max(map(len, waves))
    return [own + [range(0)] * (most - len(own)) for own in waves]


def clients_at_once(wanted: int | None, memory: int, limit: int | None, one_client: int) -> int:
    """How many clients a rank computes together.

    Args:
        wanted: by the user.
        memory: bytes to fill if nobody wanted a number; 0 for one client.
        limit: working memory of a rank, of which half is for messages; None for no limit.
        one_client: bytes of one.
    """
    memory = memory if limit is None else min(memory, limit // 2)
    return wanted or min(max(memory // one_client, 1), _MOST_AT_ONCE)


def cut(clients: range, held: np.ndarray, room: int) -> list[range]:
    """Consecutive ranges of `clients` whose `held` `[client]` add up to `room` at most, or singles."""
    cuts, start, filled = [], clients.start, 0
    for client in clients:
        if client > start and filled + held[client] > room:
            cuts.append(range(start, client))
            start, filled = client, 0
        filled += int(held[client])
    return [*cuts, range(start, clients.stop)]


def slice_width(graph: Graph, sizes: np.ndarray, work: WorkingSet, limit: int | None) -> int:
    """Parameters a slice of the dense Jacobians may have.

    It follows from the graph and the limit alone, never from the ranks, because sums over slices
    round differently for another width.
    """
    samples = largest_neighbourhood(graph, sizes)
    # Received, sent, stacked, and the product's flattened copy.
    column = 4 * samples * work.outputs * work.itemsize
    fixed = work.one_client(samples)
    room = (max(DEFAULT_LIMIT, 2 * fixed) if limit is None else limit) - fixed
    return int(min(max(room // column, 1), work.params))


def smallest_limit(
    graph: Graph, sizes: np.ndarray, message_bytes: np.ndarray | None, work: WorkingSet
) -> int:
    """Working memory in bytes below which not even one client a wave fits.

    Args:
        graph: the round's graph.
        sizes: samples of each client, `[client]`.
        message_bytes: bytes of a factored Jacobian's message from each client, `[client]`; None for
            dense Jacobians, which can be cut down to one parameter a slice.
        work: sizes of the computation.
    """
    samples = largest_neighbourhood(graph, sizes)
    if message_bytes is None:
        return work.one_client(samples) + 4 * samples * work.outputs * work.itemsize
    return work.one_client(samples) + 4 * int(neighbourhood_sums(graph, message_bytes).max())
