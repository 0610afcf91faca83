"""Writes a run's files while it runs: all ranks send their data, and rank 0 writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from mpi_ntkdfl.algorithms.base import Method, Needs
from mpi_ntkdfl.config import Config
from mpi_ntkdfl.data.facts import DataFacts
from mpi_ntkdfl.evaluate import Evaluation
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.runtime import plugins
from mpi_ntkdfl.runtime.clock import PHASES
from mpi_ntkdfl.runtime.metric import conditions
from mpi_ntkdfl.storage import identity, lock, whole
from mpi_ntkdfl.storage.checkpoint import Header, remove_leftovers
from mpi_ntkdfl.storage.outputs import Outputs
from mpi_ntkdfl.storage.record import Record, RoundRecord, provenance
from mpi_ntkdfl.storage.resume import Start
from mpi_ntkdfl.storage.saving import Saving
from mpi_ntkdfl.storage.times import Times, last_times
from mpi_ntkdfl.storage.trace import Trace
from mpi_ntkdfl.topology.graphs import Graph


@dataclass(frozen=True)
class HandedIn:
    """All ranks' numbers of a round, which are on their way to rank 0.

    Attributes:
        busiest: protocol bytes through the busiest node, on rank 0.
        arrived: function that waits for the numbers and returns one array per rank on rank 0. Each array
            holds the tau of the rank's clients, seconds by phase and seconds of exchanges (both as the
            bits of float64), and the bytes of the ledger.
    """

    busiest: int
    arrived: Callable[[], list[np.ndarray]]


class Journal:
    """Writes record and checkpoints of one run. All ranks must call the same methods."""

    def __init__(self, config: Config, federation: Federation, outputs: Outputs) -> None:
        """Prepares the journal; afterwards call `create` or `resume`."""
        self._config, self._federation, self._outputs = config, federation, outputs
        self._config_text = config.to_yaml()
        self._world, self._clock = self._federation.world, self._federation.clock
        self._record = Record(outputs.record)
        self._saving = Saving(
            federation.world,
            federation.placement,
            federation.ledger,
            outputs,
            config.output.part_bytes,
        )
        self._trace: Trace | None = None
        self._run = ""  # on rank 0, from `create` or `resume`
        self.sent = 0
        """Protocol bytes of all clients since the start of the run, on rank 0."""

    def create(
        self,
        data: DataFacts | None,
        contents: Mapping[str, str] | None,
        method: Method[Any],
        names: Sequence[str] = (),
    ) -> None:
        """Makes an empty record. Files of an earlier run with this name are removed.

        Args:
            data: facts that the record stores about the samples, on rank 0.
            contents: SHA-256 of the files, by the names in `schema.FILES`, on rank 0.
            method: the run's method; the record stores what readers need to know about it.
            names: of the clients, if the file of the graph has names.
        """

        def begin() -> None:
            assert data is not None
            assert contents is not None
            config, network = self._config, self._federation.network
            needs = method.needs(config.algorithm, network, self._federation.dtype)
            self._run = identity.new_run()
            attributes = {
                "run": self._run,
                "config": self._config_text,
                "seed": config.seed,
                "data": contents["data"],
                "contents": json.dumps(dict(contents)),
                **data.attributes,
                **facts(type(method), needs),
                **self._provenance(),
            }
            fulfilled = conditions(
                *(network.classes, data.sites, config.clients),
                environment=config.environment is not None,
                sampled=config.evaluation.sample is not None,
            )
            whole.remove(self._outputs)
            remove_leftovers(self._outputs)
            self._record.create(
                attributes,
                config.clients,
                self._world.size,
                data.arrays,
                data.sites,
                fulfilled,
                names,
            )

        self._world.on_root(begin)
        self._begin_trace(0)

    def _provenance(self) -> dict[str, str | int]:
        """The attributes that describe this start, on rank 0."""
        federation = self._federation
        attributes = provenance(
            self._world, str(federation.device), str(torch.__version__), federation.choices
        )
        attributes["threads"] = self._config.compute.threads
        if loaded := plugins.loaded():
            attributes["plugins"] = plugins.as_json(loaded)
        return attributes

    def resume(self, start: Start | None, method: Method[Any]) -> torch.Tensor:
        """Cuts the record at the checkpoint's round, and restores the state of `method`.

        Args:
            start: the run to resume, on rank 0; None on other ranks.
            method: the run's method.

        Returns:
            Weights of this rank's clients, `[owned, param]`.
        """

        def begin() -> list[str]:
            assert start is not None
            start.compare_choices(self._federation.choices)
            if start.checkpoint.path != self._outputs.checkpoint:
                # The next checkpoint keeps the file of this name, which must not be the damaged one.
                lock.require_own(self._outputs.checkpoint)
                start.checkpoint.path.replace(self._outputs.checkpoint)
            remove_leftovers(self._outputs)
            self._run = start.run or identity.new_run()
            self.sent = start.sent
            attributes = self._provenance()
            self._record.resume(start.checkpoint.round, self._config, attributes, self._run)
            return start.checkpoint.arrays

        def rows(name: str, rank: int) -> np.ndarray:
            assert start is not None
            return start.checkpoint.rows(name, self._federation.placement.owned(rank))

        state = {}
        for name in self._world.on_root(begin):
            mine = self._world.scatter(partial(rows, name))
            state[name.removeprefix("state/")] = torch.from_numpy(mine)
        weights = state.pop("params").to(self._federation.device)
        method.restore_whole(state)
        self._begin_trace(start.checkpoint.round if start else 0)
        return weights

    def clocks(self) -> tuple[float, np.ndarray, np.ndarray]:
        """The simulated times with which a resumed run goes on, on all ranks; see `times.last_times`."""
        return self._world.on_root(lambda: last_times(self._record.path))

    def _begin_trace(self, done: int) -> None:
        """Begins the timeline, or continues it after `done` rounds, if `output.trace` is on."""
        if self._config.output.trace:
            self._trace = Trace(self._outputs.trace, self._world, self._clock, done, self._run)

    @property
    def _fixed(self) -> tuple[int, int]:
        """How many numbers of times and of the ledger a rank hands in after the taus of its clients."""
        return len(PHASES) + 2, self._federation.ledger.booked.size

    def hand_in(self, taus: list[int]) -> HandedIn:
        """Starts to send this rank's numbers of the finished round to rank 0.

        Every rank sends one message, which travels while the ranks agree on whether to stop.

        Args:
            taus: the tau of each of this rank's clients.
        """
        world, ledger, placement = self._world, self._federation.ledger, self._federation.placement
        size = sum(self._fixed)
        if world.rank:
            ledger.book_mpi("statistics", 8 * (size + len(taus)))
        busiest = ledger.busiest
        times = np.array([*self._clock.lap(), *self._clock.lap_flights()])
        parts = (np.array(taus, np.int64), times.view(np.int64), ledger.lap().ravel())
        lengths = [size + len(placement.owned(rank)) for rank in range(world.size)]
        with self._clock("gather"):
            return HandedIn(busiest, world.hand_in(np.concatenate(parts), lengths))

    def finish_round(
        self,
        done: int,
        graph: Graph | None,
        handed: HandedIn,
        evaluation: Evaluation | None,
        times: Times | None = None,
    ) -> np.ndarray:
        """Appends the finished round to the record.

        Args:
            done: number of rounds done.
            graph: the round's graph; None at the start of the run, before the first round.
            handed: the result of `hand_in`.
            evaluation: the values of a row; None if this round is not evaluated.
            times: simulated time at the end of the round; None in a run without an environment.

        Returns:
            The tau of every client on rank 0; nothing on other ranks.
        """
        with self._clock("gather"):
            every = handed.arrived()
        if self._trace is not None:
            with self._clock("record"):
                self._trace.add(done)
        if not every:
            return np.zeros(0, np.int64)
        timing, booked = self._fixed
        parts = [np.split(row, [-timing - booked, -booked]) for row in every]
        taus, times_of_ranks, booked_by_ranks = zip(*parts, strict=True)
        timed = np.array(times_of_ranks).view(np.float64)
        seconds, flights = np.split(timed, [len(PHASES)], axis=1)
        traffic = np.sum(booked_by_ranks, axis=0).reshape(2, -1)
        every_tau = np.concatenate(taus)
        with self._clock("record"):
            round_record = None
            if graph is not None:
                more = {} if times is None else times.values
                round_record = RoundRecord(
                    graph.edges, traffic, seconds, handed.busiest, flights, more
                )
                self.sent += int(traffic[0].sum())
            self._record.append(done, every_tau, evaluation, round_record)
        return every_tau

    def checkpoint(self, done: int, weights: torch.Tensor, method: Method[Any]) -> None:
        """Writes the checkpoint after `done` rounds."""
        state = {f"state/{name}": array for name, array in method.whole_state().items()}
        arrays = {name: array.cpu().numpy() for name, array in {"params": weights, **state}.items()}
        layout = self._federation.network.layout
        with self._clock("record"):
            self._saving.save(Header(self._config_text, layout, done, self._run), arrays)

    def close(self) -> None:
        """Removes what only another round would need."""
        if self._world.rank == 0:
            self._record.close()


def facts(method: type[Method[Any]], needs: Needs) -> dict[str, str | int]:
    """Attributes that describe the method in a record, because readers of records load no methods.

    Args:
        method: the method's class.
        needs: the method's needs in this run.

    Returns:
        `method_label`; `method_look` (JSON), if the method has a look; `method_central`, which is 1 if
        the method has a server, and 0 if not; `method_learned`, what a receiver of messages learns.
    """
    look = {} if method.look is None else {"method_look": method.look.to_json()}
    told: dict[str, str | int] = {
        "method_central": int(needs.central),
        "method_learned": needs.learned,
    }
    return {"method_label": method.label, **look, **told}
