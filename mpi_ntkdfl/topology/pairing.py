"""Random regular graphs by pairing stubs (Steger, Wormald, Comb. Probab. Comput. 8, 1999).

For the same seed the graphs have the same edges as those of `networkx.random_regular_graph` 3.3 to 3.6,
so that runs keep their graphs. This code works on arrays, and at 100,000 clients it takes less than a
tenth of the time of networkx.
"""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt

from mpi_ntkdfl.topology.shuffling import shuffled

Integers = npt.NDArray[np.int64]


def random_regular(degree: int, clients: int, seed: int) -> Integers:
    """Draws the edges of a `degree`-regular graph.

    Args:
        degree: degree of every client, less than `clients`; the product of both must be even.
        clients: number M of clients.
        seed: seed of the draw.

    Returns:
        `[E, 2]`, each row i < j, in lexicographic order.
    """
    generator = random.Random(seed)  # noqa: S311 - Python's own, to draw as networkx does
    keys = None
    while keys is None:
        keys = _paired(degree, clients, generator)
    return np.stack(np.divmod(keys, clients), axis=1)


def _paired(degree: int, clients: int, generator: random.Random) -> Integers | None:
    """Edges as ascending keys `i * clients + j`, i < j; None if no edge can join the remaining stubs."""
    keys = np.zeros(0, dtype=np.int64)
    stubs = np.tile(np.arange(clients, dtype=np.int64), degree)
    while len(stubs):
        pairs = shuffled(generator, stubs).reshape(-1, 2)
        low, high = np.minimum(*pairs.T), np.maximum(*pairs.T)
        drawn = low * clients + high
        accepted = _first_of_equals(drawn)
        accepted &= (low < high) & ~_among(drawn, keys)
        keys = np.sort(np.concatenate([keys, drawn[accepted]]))
        left, first, counts = np.unique(
            np.stack([low, high], axis=1)[~accepted], return_index=True, return_counts=True
        )
        order = np.argsort(first)
        left = left[order]
        if len(left) and not _can_go_on(left, keys, clients):
            return None
        stubs = np.repeat(left, counts[order])
    return keys


def _can_go_on(left: Integers, keys: Integers, clients: int) -> bool:
    """Whether two of the clients `left` are not joined by an edge yet.

    The search is that of networkx, which can overlook a pair: after it has met a client lower than `one`,
    it continues with that client instead of `one`. A complete search would draw other graphs.
    """
    every = left.tolist()
    for one in every:
        lowest = one
        for other in every:
            if other == lowest:
                break
            lowest, highest = min(lowest, other), max(lowest, other)
            if not _among(np.array([lowest * clients + highest]), keys)[0]:
                return True
    return False


def _first_of_equals(drawn: Integers) -> npt.NDArray[np.bool_]:
    """Which of `drawn` `[n]` are the first with their value; almost all are."""
    ordered = np.sort(drawn)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    first = ~_among(drawn, repeated)
    places = np.flatnonzero(~first)
    first[places[np.unique(drawn[places], return_index=True)[1]]] = True
    return first


def _among(wanted: Integers, keys: Integers) -> npt.NDArray[np.bool_]:
    """Which of `wanted` `[n]` are in the ascending `keys`."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=bool)
    return np.asarray(keys[np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)] == wanted)
