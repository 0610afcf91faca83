"""The legs of a run's rounds: which messages there are, how long they are, and what clients compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from mpi_ntkdfl.algorithms import base
from mpi_ntkdfl.algorithms.base import Method, Needs
from mpi_ntkdfl.algorithms.work import Load, Work
from mpi_ntkdfl.comm.messages import MessageFormat
from mpi_ntkdfl.config import MethodSettings
from mpi_ntkdfl.environment.links import Floats, Integers
from mpi_ntkdfl.environment.rounds import Leg
from mpi_ntkdfl.federation.coding import vector_format
from mpi_ntkdfl.federation.waves import neighbourhood_sums
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.planning.first_round import codecs_of, coded_blocks, coded_rows
from mpi_ntkdfl.topology.graphs import Graph


@dataclass(frozen=True)
class RoundModel:
    """What clients of one method send and compute in a round.

    The lengths of messages are those of the method's `needs`. So a message whose length depends on the
    data, such as one of a codec, counts with its largest length.

    Attributes:
        method: the class of the method.
        settings: the settings of the method.
        network: the model of every client.
        dtype: floating-point type of weights and data.
        travelling: type in which raw inputs travel.
        sizes: samples of each client, `[client]`.
        speeds: operations per second of each node, `[client + 1]`; the last one is the server.
        lasting: whether all rounds have the same graph, on which neighbours keep estimates of weights.
    """

    method: type[Method[Any]]
    settings: MethodSettings
    network: Network
    dtype: torch.dtype
    travelling: torch.dtype
    sizes: np.ndarray
    speeds: Floats
    lasting: bool = False

    @cached_property
    def needs(self) -> Needs:
        """What a round of the method sends."""
        return self.method.needs(self.settings, self.network, self.dtype)

    @cached_property
    def _blocks(self) -> tuple[MessageFormat, ...]:
        """The layouts, per sample, of messages about a client's samples."""
        return coded_blocks(self.needs, self.settings, self.network, self.travelling)

    @cached_property
    def _rows(self) -> np.ndarray:
        """Of how many samples each client sends such messages, `[client]`."""
        return coded_rows(self.settings, self.sizes)

    @cached_property
    def order(self) -> tuple[base.Leg, ...]:
        """The legs of a round: those that the method states, or the default ones."""
        needs = self.needs
        if needs.legs:
            return needs.legs
        messages = _phases(needs.messages), _phases(self._blocks)
        # Vectors of one phase are one leg, which has the bytes of all of them.
        vectors = ((phase,) for phase in dict.fromkeys(needs.vectors))
        phases = [*vectors, *(each for each in messages if each)]
        work = tuple(self._work(Graph(len(self.sizes), np.zeros((0, 2), np.int64))))
        return tuple(base.Leg(each, work if not place else ()) for place, each in enumerate(phases))

    def legs(
        self, graph: Graph, present: np.ndarray, asked: Integers, samples: bool = True
    ) -> tuple[list[Leg], Floats]:
        """The legs of one round, and the seconds that each node computes after the last one, `[node]`.

        Args:
            graph: the graph among the clients that take part.
            present: which clients take part, `[client]`.
            asked: ids of the clients that a server asks for their blocks.
            samples: whether raw samples travel in this round; on a lasting graph clients keep them.
        """
        seconds = self._seconds(graph, present, asked)
        nothing = np.zeros(len(self.speeds))
        clients, server = np.flatnonzero(present), len(self.sizes)
        legs = []
        for leg in self.order:
            compute = sum((seconds.pop(phase, nothing) for phase in leg.before), nothing)
            if leg.way == "neighbours":
                source, target = np.concatenate([graph.edges, graph.edges[:, ::-1]]).T
                nbytes = self._to_neighbours(leg.phases, samples)[source]
            elif leg.way == "up":
                source = asked if self.needs.participants else clients
                target = np.full(len(source), server)
                nbytes = self._to_server(leg.phases)[source]
            else:
                compute = compute + seconds.pop("server", nothing)
                source, target = np.full(len(clients), server), clients
                nbytes = np.full(len(clients), float(self._vector(leg.phases[0])))
            sent = nbytes > 0  # samples that a neighbour has kept are no message
            legs.append(Leg(compute, source[sent], target[sent], nbytes[sent]))
        return legs, sum(seconds.values(), nothing)

    def _vector(self, phase: str) -> int:
        """Bytes of the message with a parameter vector."""
        shapes, choice = (
            self.method.coded_shapes(self.settings, self.network),
            codecs_of(self.settings),
        )
        form = vector_format(choice, phase, shapes, self.dtype, not self.lasting)
        return form.by_phase(1, travelling=False)[phase]

    def _to_neighbours(self, phases: Sequence[str], samples: bool) -> Floats:
        """Bytes that each client sends to one neighbour in some phases, `[client]`."""
        needs, whole = self.needs, np.zeros(len(self.sizes))
        whole += sum(self._vector(phase) for phase in needs.vectors if phase in phases)
        whole += sum(_bytes(form, phases) for form in needs.messages)
        if samples or not needs.samples:
            whole += self._rows * float(sum(_bytes(form, phases) for form in self._blocks))
        return whole

    def _to_server(self, phases: Sequence[str]) -> Floats:
        """Bytes that each client sends to a server, `[client]`."""
        if not self.needs.participants:
            return np.full(len(self.sizes), float(self._vector(phases[0])))
        each: Floats = self._rows * float(sum(_bytes(form, phases) for form in self._blocks))
        return each

    def _seconds(self, graph: Graph, present: np.ndarray, asked: Integers) -> dict[str, Floats]:
        """Seconds of computation by phase, `[node]`; those of a server are one phase, `server`."""
        working = np.append(present, True)
        seconds = {
            phase: working * np.append(work.operations, 0.0) / self.speeds
            for phase, work in self._work(graph).items()
        }
        if self.needs.participants and len(asked):
            samples, nothing = np.array([float(self.sizes[asked].sum())]), np.zeros(1)
            load = Load(self.network, self.dtype.itemsize, samples, samples, nothing)
            every = self.method.server_work(self.settings, load).values()
            operations = np.zeros(len(self.speeds))
            operations[-1] = sum(float(work.operations[0]) for work in every)
            seconds["server"] = operations / self.speeds
        return seconds

    def _work(self, graph: Graph) -> dict[str, Work]:
        own = self.sizes.astype(np.float64)
        gathered = own + neighbourhood_sums(graph, self.sizes)
        degrees = graph.degrees.astype(np.float64)
        load = Load(self.network, self.dtype.itemsize, own, gathered, degrees)
        return self.method.work(self.settings, load)


def _phases(forms: Sequence[MessageFormat]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(phase for form in forms for phase in form.phases))


def _bytes(form: MessageFormat, phases: Sequence[str]) -> int:
    """Bytes of one row of a message in some phases."""
    return sum(n for phase, n in form.by_phase(1, travelling=False).items() if phase in phases)
