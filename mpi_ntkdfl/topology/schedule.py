"""The graph and the participants of each round; they depend only on the seed and the round's number."""

from __future__ import annotations

import logging

import numpy as np

from mpi_ntkdfl.config.sections import Topology
from mpi_ntkdfl.runtime import seeds
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.topology.graphs import Graph, Integers, components, draw, fixed_shape, reseat

_log = logging.getLogger(__name__)


def participants(
    clients: int, wanted: int, seed: int, round: int, among: Integers | None = None
) -> Integers:
    """The clients `[wanted]` that a server asks in a round, drawn without replacement, ascending.

    Args:
        clients: number M of clients.
        wanted: how many clients the server asks.
        seed: the run's seed.
        round: the round's number.
        among: ids of the clients that it can ask, ascending; None for all. It asks all of them if there
            are fewer than wanted.

    Raises:
        InputError: if there are fewer clients than wanted.
    """
    if wanted > clients:
        raise InputError(
            f"algorithm.clients_per_round must be at most clients, got {wanted} of {clients}"
        )
    able = np.arange(clients, dtype=np.int64) if among is None else among
    generator = seeds.generator(seed, "participants", round)
    drawn = generator.choice(len(able), min(wanted, len(able)), replace=False)
    ascending: Integers = able[np.sort(drawn)]
    return ascending


class Schedule:
    """The graphs of a run, for rounds in any order; a static run has the same graph object in all rounds.

    Args:
        settings: the kind of graph, and whether it is dynamic, that is, drawn anew in every round.
        clients: number M of clients.
        seed: the run's seed.

    Raises:
        InputError: if a graph file cannot be used; the file is read only once, here.
    """

    def __init__(self, settings: Topology, clients: int, seed: int) -> None:
        self._settings = settings
        self._clients = clients
        self._seed = seed
        self._shape = fixed_shape(settings, clients)
        self._last: tuple[int, Graph] | None = None
        self._warned = False

    @property
    def names(self) -> tuple[str, ...]:
        """The clients' names, `[M]`, if the graph is static and its file has names; else empty."""
        moving = self._shape is None or self._settings.dynamic
        return () if moving or self._shape is None else self._shape.names

    def graph(self, round: int) -> Graph:
        """The graph of a round >= 0; the graph of the last call is kept.

        Logs one warning per run, at the first disconnected graph.
        """
        key = round if self._settings.dynamic else 0
        if self._last is None or self._last[0] != key:
            self._last = key, self._draw(key)
            # Only rank 0 warns. The check takes as long as drawing the graph, so others leave it out.
            if not self._warned and _log.isEnabledFor(logging.WARNING):
                self._warned = self._warn_if_disconnected(self._last[1], round)
        return self._last[1]

    def _draw(self, key: int) -> Graph:
        generator = seeds.generator(self._seed, "graph", key)
        if self._shape is None:
            return draw(self._settings, self._clients, generator)
        # `draw` would read a graph file again, which may have changed since the start of the run.
        return reseat(self._shape, generator) if self._settings.dynamic else self._shape

    def _warn_if_disconnected(self, graph: Graph, round: int) -> bool:
        parts = components(graph)
        if parts > 1:
            _log.warning(
                "the graph of round %d has %d components: averages cannot mix across components%s",
                round,
                parts,
                "; later rounds are not reported" if self._settings.dynamic else "",
            )
        return parts > 1
