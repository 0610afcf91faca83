"""Which clients are available: drawn from the seed, or read from a trace; never from the wall clock."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from mpi_ntkdfl.config.environment import Always, Bernoulli, EnvironmentSettings, OnOff, TraceFile
from mpi_ntkdfl.environment.links import Floats
from mpi_ntkdfl.environment.rounds import Truths
from mpi_ntkdfl.environment.trace import Trace, read_trace
from mpi_ntkdfl.runtime import seeds


class Availability(Protocol):
    """Who is available in a round."""

    def at(self, round: int, times: Floats) -> Truths:
        """Which clients are available, `[client]`.

        Args:
            round: the round's number, from 0.
            times: simulated seconds at which each client would begin the round, `[client]`.
        """

    def next_arrival(self, time: float) -> float:
        """The earliest simulated second, not before `time`, at which somebody may be available."""


def availability(settings: EnvironmentSettings, clients: int, seed: int) -> Availability:
    """What a configuration describes.

    Raises:
        InputError: if a trace file cannot be used.
    """
    kind = settings.availability
    if isinstance(kind, Bernoulli):
        return _Drawn(kind.p, clients, seed)
    if isinstance(kind, OnOff):
        return _Process(kind, clients, seed)
    if isinstance(kind, TraceFile):
        return _Traced(read_trace(kind.path, clients))
    assert isinstance(kind, Always)
    return _Everybody(clients)


class _Everybody:
    """All clients, always."""

    def __init__(self, clients: int) -> None:
        self._clients = clients

    def at(self, round: int, times: Floats) -> Truths:
        return np.ones(self._clients, dtype=bool)

    def next_arrival(self, time: float) -> float:
        return time


class _Drawn:
    """Each client with probability p, drawn for each round."""

    def __init__(self, p: float, clients: int, seed: int) -> None:
        self._p, self._clients, self._seed = p, clients, seed

    def at(self, round: int, times: Floats) -> Truths:
        drawn = seeds.generator(self._seed, "availability", round).random(self._clients)
        present: Truths = drawn < self._p
        return present

    def next_arrival(self, time: float) -> float:
        return time


class _Process:
    """Exponential stays and absences. A client's k-th change is a function of the seed, client and k.

    At time 0 a client is present with the long-run probability `on / (on + off)`; what is left of an
    exponential stay is distributed like a whole one.
    """

    CHANGES = 16
    """Changes of each client that are drawn at once."""

    def __init__(self, settings: OnOff, clients: int, seed: int) -> None:
        self._on, self._off = settings.means
        self._seed = seed
        begins = seeds.generator(seed, "availability").random(clients)
        self._present = begins < self._on / (
            self._on + self._off
        )  # before the changes that are kept
        self._changes = np.zeros((0, clients))
        self._ends = np.zeros(clients)  # of the last change that is kept
        self._blocks = 0

    def at(self, round: int, times: Floats) -> Truths:
        while self._ends.min() <= times.max():
            self._draw()
        changed = (self._changes <= times).sum(axis=0)
        present: Truths = self._present ^ (changed % 2 == 1)
        self._forget(float(times.min()))
        return present

    def next_arrival(self, time: float) -> float:
        later = np.where(self._changes > time, self._changes, np.inf).min(axis=0, initial=np.inf)
        while not np.isfinite(later).any():
            self._draw()
            later = np.where(self._changes > time, self._changes, np.inf).min(axis=0)
        return float(later.min())

    def _draw(self) -> None:
        """Appends a block of changes. Their number is even, so every block begins alike."""
        rng = seeds.generator(self._seed, "availability", self._blocks)
        lengths = rng.standard_exponential((self.CHANGES, len(self._present)))
        first, second = (
            np.where(self._present, one, other)
            for one, other in ((self._on, self._off), (self._off, self._on))
        )
        lengths[0::2] *= first
        lengths[1::2] *= second
        block = self._ends + np.cumsum(lengths, axis=0)
        self._changes = np.concatenate([self._changes, block])
        self._ends, self._blocks = block[-1], self._blocks + 1

    def _forget(self, time: float) -> None:
        """Drops blocks that all clients have passed; clocks never go back."""
        while len(self._changes) > self.CHANGES and self._changes[self.CHANGES - 1].max() <= time:
            self._changes = self._changes[self.CHANGES :]


class _Traced:
    """Intervals of a file."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def at(self, round: int, times: Floats) -> Truths:
        return self._trace.present(times)

    def next_arrival(self, time: float) -> float:
        return self._trace.next_arrival(time)
