"""How a rank keeps to its working memory: waves of clients, and slices of dense Jacobians.

The working memory of a rank is everything that it holds in addition to the data and weights of its
clients: messages, stacked Jacobians, kernels, evolutions. `compute.memory_limit` bounds it. Every rank
computes the waves of all ranks from the graph and the numbers of samples, so senders know what receivers
need.
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
"""Number of arrays `[sample, output]` that an evolution holds at most (stages, sums, outputs)."""

_MOST_AT_ONCE = 512
"""Number of clients that are computed together at most: all take as many steps as the slowest one."""


@dataclass(frozen=True)
class WorkingSet:
    """Sizes that decide a rank's working memory.

    Attributes:
        network: the model of every client.
        taus: number of candidate taus.
        itemsize: bytes of a floating-point number.
        stacked: numbers per sample that a client holds of its neighbours' messages, besides those that
            the network's own memory counts.
    """

    network: Network
    taus: int
    itemsize: int
    stacked: int = 0

    @property
    def outputs(self) -> int:
        """C."""
        return self.network.classes

    @property
    def params(self) -> int:
        """P."""
        return self.network.layout.size

    def one_client(self, samples: int) -> int:
        """Bytes to process one client with N = `samples` samples in its neighbourhood.

        They are the sum of the network's memory for its Jacobian, three kernels, the evolution, and the
        candidate weights with their products.
        """
        kernels = 3 * samples * samples
        evolution = (_EVOLUTION_COPIES + 2 * self.taus) * samples * self.outputs
        jacobian = self.network.memory(samples) + self.stacked * samples
        candidates = 3 * self.taus * self.params
        return self.itemsize * (jacobian + kernels + evolution + candidates)


def neighbourhood_sums(graph: Graph, values: np.ndarray) -> np.ndarray:
    """For each client the sum of `values` `[client]` over its neighbours, without itself."""
    first, second = graph.edges.T
    return np.bincount(first, values[second], graph.clients).astype(np.int64) + np.bincount(
        second, values[first], graph.clients
    ).astype(np.int64)


def largest_neighbourhood(graph: Graph, sizes: np.ndarray) -> int:
    """Number of samples of the largest closed neighbourhood, given the `sizes` `[client]`."""
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
        placement: which rank owns which client.
        sizes: number of samples of each client, `[client]`.
        message_bytes: bytes of the message with the Jacobian of each client, `[client]`.
        work: sizes of the computation.
        limit: working memory of a rank in bytes, None for the default.
        at_once: number of clients that a rank computes together.

    Returns:
        For each rank its waves, which are ranges of client ids. All ranks have the same number of waves,
        because every rank takes part in every exchange; the last waves of a rank may be empty.
    """
    # The messages of one wave are held while those of the next wave arrive. Sent messages need about as
    # much memory as received ones.
    held = 4 * neighbourhood_sums(graph, message_bytes)
    one_client = work.one_client(largest_neighbourhood(graph, sizes))
    room = DEFAULT_LIMIT - one_client if limit is None else limit - at_once * one_client
    waves = [cut(placement.owned(rank), held, max(room, 0)) for rank in range(placement.ranks)]
    most = max(map(len, waves))
    return [own + [range(0)] * (most - len(own)) for own in waves]


def moved_to_ranks(
    graph: Graph, placement: Placement, message_bytes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Bytes that each rank sends and receives if a client's message goes to a rank once: `[2][rank]`.

    Args:
        graph: the round's graph.
        placement: which rank owns which client.
        message_bytes: bytes of the message of each client, `[client]`.
    """
    both = np.concatenate([graph.edges, graph.edges[:, ::-1]])
    targets = np.asarray(placement.owner(both[:, 0]))
    crossing = targets != np.asarray(placement.owner(both[:, 1]))
    pairs = np.unique(both[crossing, 1] * placement.ranks + targets[crossing])
    clients, ranks = pairs // placement.ranks, pairs % placement.ranks
    sources, nbytes = np.asarray(placement.owner(clients)), message_bytes[clients]
    sent = np.bincount(sources, nbytes, placement.ranks).astype(np.int64)
    return sent, np.bincount(ranks, nbytes, placement.ranks).astype(np.int64)


def can_keep(
    graph: Graph,
    placement: Placement,
    sizes: np.ndarray,
    message_bytes: np.ndarray,
    work: WorkingSet,
    limit: int | None,
    at_once: int = 1,
) -> bool:
    """Whether every rank has room for the messages of all its clients' neighbours at the same time.

    The arguments are those of `factored_waves`, and the answer is the same on all ranks.
    """
    sent, received = moved_to_ranks(graph, placement, message_bytes)
    one_client = work.one_client(largest_neighbourhood(graph, sizes))
    room = DEFAULT_LIMIT if limit is None else limit - at_once * one_client
    return int((sent + received).max()) <= room


def clients_at_once(wanted: int | None, memory: int, limit: int | None, one_client: int) -> int:
    """The number of clients that a rank computes together.

    Args:
        wanted: the number that the user wants, or None.
        memory: bytes to fill if the user wants no number; 0 for one client.
        limit: working memory of a rank in bytes, of which half is for messages; None for no limit.
        one_client: bytes per client.
    """
    memory = memory if limit is None else min(memory, limit // 2)
    return wanted or min(max(memory // one_client, 1), _MOST_AT_ONCE)


def cut(clients: range, held: np.ndarray, room: int) -> list[range]:
    """Cuts `clients` into consecutive ranges whose sum of `held` `[client]` is at most `room`.

    A client with more than `room` gets a range of its own.
    """
    cuts, start, filled = [], clients.start, 0
    for client in clients:
        if client > start and filled + held[client] > room:
            cuts.append(range(start, client))
            start, filled = client, 0
        filled += int(held[client])
    return [*cuts, range(start, clients.stop)]


def slice_width(graph: Graph, sizes: np.ndarray, work: WorkingSet, limit: int | None) -> int:
    """The number of parameters in a slice of the dense Jacobians.

    It depends only on the graph and the limit, never on the ranks, because sums over slices round
    differently for another width.
    """
    samples = largest_neighbourhood(graph, sizes)
    # There are four copies: received, sent, stacked, and flattened for the product.
    column = 4 * samples * work.outputs * work.itemsize
    fixed = work.one_client(samples)
    room = (max(DEFAULT_LIMIT, 2 * fixed) if limit is None else limit) - fixed
    return int(min(max(room // column, 1), work.params))


def smallest_limit(
    graph: Graph, sizes: np.ndarray, message_bytes: np.ndarray | None, work: WorkingSet
) -> int:
    """The working memory in bytes that one client per wave needs.

    Args:
        graph: the round's graph.
        sizes: number of samples of each client, `[client]`.
        message_bytes: bytes of the message with the factored Jacobian of each client, `[client]`; None
            for dense Jacobians, whose slices can be as small as one parameter.
        work: sizes of the computation.
    """
    samples = largest_neighbourhood(graph, sizes)
    if message_bytes is None:
        return work.one_client(samples) + 4 * samples * work.outputs * work.itemsize
    return work.one_client(samples) + 4 * int(neighbourhood_sums(graph, message_bytes).max())
