"""The federation's clock: which clients take part in a round, and when it ends; the same on all ranks."""

from __future__ import annotations

import numpy as np

from mpi_ntkdfl.comm.ledger import Ledger
from mpi_ntkdfl.config.environment import Deadline, Neighbours
from mpi_ntkdfl.environment.conditions import Conditions
from mpi_ntkdfl.environment.links import Floats, Integers
from mpi_ntkdfl.environment.rounds import Leg, Timing, simulate
from mpi_ntkdfl.federation.presence import Presence
from mpi_ntkdfl.planning.legs import RoundModel
from mpi_ntkdfl.topology.graphs import Graph
from mpi_ntkdfl.topology.present import Hearing, among
from mpi_ntkdfl.topology.schedule import participants


class Timekeeper:
    """Keeps the clock of a run. Times follow from the configuration, the seed and the partition only.

    Attributes:
        seconds: the time on the federation's clock at the end of the last round.
        clients: the time at which each client was done with its last round, `[client]`.
        active: which clients took part in the last round, `[client]`.
    """

    def __init__(
        self,
        conditions: Conditions,
        model: RoundModel,
        seed: int,
        presence: Presence,
        lasting: bool = False,
    ) -> None:
        """Starts at second 0.

        Args:
            conditions: availability of the clients, links, and for whom clients wait.
            model: what clients send and compute.
            seed: the run's seed.
            presence: tells the methods which clients take part; it is changed before every round.
            lasting: whether all rounds have the same graph, on which clients keep raw samples.
        """
        clients = len(model.sizes)
        self._conditions, self._waiting = conditions, conditions.waiting
        self._model, self._seed, self._presence = model, seed, presence
        self._lasting = lasting
        self._holders = np.ones(clients, dtype=bool)
        self.seconds, self.clients = 0.0, np.zeros(clients)
        self.active = np.ones(clients, dtype=bool)

    def restore(self, seconds: float, clients: Floats, holders: np.ndarray) -> None:
        """Goes on with a recorded run.

        Args:
            seconds: the time at the end of its last round.
            clients: the time at which each client was done, `[client]`.
            holders: which clients took part in the last round with participants, `[client]`.
        """
        self.seconds, self.clients, self._holders = seconds, clients, holders

    def begin(self, number: int, graph: Graph, ledger: Ledger | None = None) -> Graph | None:
        """Decides who takes part in round `number`, and moves the clock to the round's end.

        Args:
            number: number of the round, from 0.
            graph: the round's graph of all clients.
            ledger: books messages that no client uses, on rank 0; None elsewhere.

        Returns:
            The graph among the clients that take part. None for a round that does not change the weights,
            because no client takes part or no message reached the server in time.
        """
        starts = np.full(len(self.clients), self.seconds)
        if isinstance(self._waiting, Neighbours):
            starts = self.clients.copy()
        present = self._conditions.availability.at(number, starts)
        if isinstance(self._waiting, Deadline):
            present = present & (self.clients <= self.seconds)
        self.active = present
        if not present.any():
            self._pass()
            return None
        round_graph = among(graph, present)
        asked = self._asked(number, present)
        travel = number == 0 or not self._lasting
        legs, rest = self._model.legs(round_graph, present, asked, travel)
        # A server has no clock of its own: it waits for clients, whose clocks are later.
        timing = simulate(
            legs,
            rest,
            np.append(present, self._model.needs.central),
            self.seconds,
            np.append(starts, 0.0),
            self._conditions.links,
            self._waiting,
        )
        self.clients = timing.nodes[:-1]
        self.seconds = max(self.seconds, timing.end)
        if not self._tell(round_graph, present, asked, legs, timing):
            if ledger is not None:
                _book_in_vain(ledger, self._model, legs[0])
            self.active = np.zeros_like(present)
            return None
        self._holders = present
        return round_graph

    def _pass(self) -> None:
        """Moves the clock to the next arrival of a client, or by the deadline if there is one."""
        later = self._conditions.availability.next_arrival(self.seconds)
        if isinstance(self._waiting, Neighbours):
            later = self._conditions.availability.next_arrival(float(self.clients.min()))
        if isinstance(self._waiting, Deadline):
            later = self.seconds + self._waiting.seconds
        self.seconds = max(self.seconds, later)
        if isinstance(self._waiting, Neighbours):
            self.clients = np.maximum(self.clients, later)

    def _asked(self, number: int, present: np.ndarray) -> Integers:
        """Ids of the clients that a server asks."""
        wanted = self._model.needs.participants
        if not wanted:
            return np.zeros(0, dtype=np.int64)
        able = np.flatnonzero(present & self._holders)
        return participants(len(present), wanted, self._seed, number, able)

    def _tell(
        self, graph: Graph, present: np.ndarray, asked: Integers, legs: list[Leg], timing: Timing
    ) -> bool:
        """Tells the methods which clients take part and which messages are late.

        Returns:
            False if a server received nothing that it waited for.
        """
        everybody = present.all() and self._holders.all()
        self._presence.present = None if everybody else present
        self._presence.holders = None if everybody else self._holders
        self._presence.late, self._presence.heard = None, {}
        for leg, times, late in zip(self._model.order, legs, timing.late, strict=True):
            if leg.way == "up" and late.any():
                unused = np.zeros(len(present), dtype=bool)
                unused[times.source[late]] = True
                self._presence.late = unused
                if late.all():
                    return False
            if leg.way == "neighbours" and late.any():
                heard = Hearing.without(graph, times.source[late], times.target[late])
                self._presence.heard = {**self._presence.heard, **dict.fromkeys(leg.phases, heard)}
        return True


def _book_in_vain(ledger: Ledger, model: RoundModel, leg: Leg) -> None:
    """Books the messages to a server that used none of them, because all were late."""
    through = np.bincount(leg.source, leg.nbytes, len(model.speeds))
    through += np.bincount(leg.target, leg.nbytes, len(model.speeds))
    ledger.book_protocol(model.order[0].phases[0], through.astype(np.int64))
