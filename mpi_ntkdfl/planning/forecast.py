"""Simulated time before a run: how long rounds take if every client takes part, and where time goes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from mpi_ntkdfl.config.environment import Barrier, Deadline, Neighbours
from mpi_ntkdfl.environment.conditions import Conditions
from mpi_ntkdfl.environment.links import Floats, Links
from mpi_ntkdfl.environment.rounds import Leg, Timing, simulate
from mpi_ntkdfl.planning.first_round import FirstRound
from mpi_ntkdfl.planning.legs import RoundModel
from mpi_ntkdfl.topology.graphs import Graph
from mpi_ntkdfl.topology.schedule import participants


@dataclass(frozen=True)
class Rounds:
    """The first rounds of a run in which every client takes part.

    Attributes:
        legs: of each round, with the seconds that each node computes after them, `[node]`.
        central: whether there is a server.
    """

    legs: tuple[tuple[list[Leg], Floats], ...]
    central: bool

    @classmethod
    def of(
        cls, first: FirstRound, speeds: Floats, graphs: Iterable[Graph], kept: bool = False
    ) -> Rounds:
        """The rounds of a run.

        Args:
            first: its first round.
            speeds: operations per second of each node, `[client + 1]`.
            graphs: of the rounds. If all rounds have one graph, raw samples travel in round 0 only.
            kept: whether neighbours have the raw samples before the first of these rounds.
        """
        config, needs, clients = first.config, first.needs, first.config.clients
        model = RoundModel(
            first.method,
            config.algorithm,
            first.network,
            first.dtype,
            torch.uint8 if first.stored_bytes else first.dtype,
            first.sizes,
            speeds,
            config.lasting,
        )
        everybody, asked, legs = np.ones(clients, dtype=bool), np.zeros(0, dtype=np.int64), []
        for number, graph in enumerate(graphs):
            if needs.participants:
                asked = participants(clients, needs.participants, config.seed, number)
            samples = not config.lasting or (number == 0 and not kept)
            legs.append(model.legs(graph, everybody, asked, samples))
        return cls(tuple(legs), needs.central)

    def timings(self, links: Links, waiting: Barrier | Neighbours | Deadline) -> list[Timing]:
        """When each round ends, and each node in it.

        Args:
            links: between the nodes.
            waiting: for whom clients wait.
        """
        nodes = len(links.up)
        taking_part = np.append(np.ones(nodes - 1, dtype=bool), self.central)
        clocks, now, timings = np.zeros(nodes), 0.0, []
        for legs, rest in self.legs:
            timings.append(simulate(legs, rest, taking_part, now, clocks, links, waiting))
            # A server has no clock of its own, as in a run.
            clocks, now = np.append(timings[-1].nodes[:-1], 0.0), max(now, timings[-1].end)
        return timings


@dataclass(frozen=True)
class Forecast:
    """Where the simulated time of a round goes.

    Attributes:
        seconds: from the start to the end of the round.
        own: seconds that each client is busy itself, `[part, client]`: with computation, and with the
            latency and the bytes of its slowest message in each leg. It is the slowest one that it
            sends, or that it receives in a leg in which it sends none.
        late: number of messages that come after a deadline.
        messages: number of all messages.
    """

    seconds: float
    own: Floats
    late: int
    messages: int

    PARTS = ("computation", "latency", "sending")
    """The parts of `own`."""

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of the mean client by what it does; the rest of the round is `waiting`."""
        means = self.own.mean(axis=1)
        return {
            **dict(zip(self.PARTS, means.tolist(), strict=True)),
            "waiting": max(0.0, self.seconds - float(means.sum())),
        }

    @property
    def slowest(self) -> tuple[int, float]:
        """The client that is busy for the longest time, and its seconds."""
        busy = self.own.sum(axis=0)
        return int(busy.argmax()), float(busy.max())


def forecast(first: FirstRound, conditions: Conditions, kept: bool = False) -> Forecast:
    """Predicts a round on the graph of round 0.

    Args:
        first: the first round of a run.
        conditions: under which its clients work.
        kept: whether neighbours have the raw samples already, as in later rounds on a static graph.
    """
    rounds = Rounds.of(first, conditions.speeds, [first.graph], kept)
    (timing,) = rounds.timings(conditions.links, conditions.waiting)
    legs, rest = rounds.legs[0]
    own = np.zeros((len(Forecast.PARTS), len(rest)))
    own[0] = rest
    for leg in legs:
        own[0] += leg.compute
        own[1:] += _slowest_messages(leg, conditions.links)
    late = sum(int(each.sum()) for each in timing.late)
    return Forecast(timing.end, own[:, :-1], late, sum(len(leg.source) for leg in legs))


def _slowest_messages(leg: Leg, links: Links) -> Floats:
    """Latency, and seconds of the bytes, of the slowest message that each node sends or else receives."""
    seconds, latency = leg.travel(links), links.latency(leg.source, leg.target)
    parts = np.zeros((2, len(links.up)))
    for ends in (leg.target, leg.source):  # what a node sends is written over what it receives
        order = np.argsort(seconds, kind="stable")
        parts[0, ends[order]] = latency[order]
        parts[1, ends[order]] = (seconds - latency)[order]
    return parts
