"""The round loop, and what surrounds it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mpi_ntkdfl import checkpoint
from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.algorithms.base import RoundResult
from mpi_ntkdfl.assembly import Assembly, assemble, prepare
from mpi_ntkdfl.comm.exchange import Exchange
from mpi_ntkdfl.comm.world import World
from mpi_ntkdfl.config import Config
from mpi_ntkdfl.errors import locating
from mpi_ntkdfl.evaluate import Evaluation, Evaluator
from mpi_ntkdfl.record import Record, RoundRecord, provenance
from mpi_ntkdfl.topology.graphs import Graph


@dataclass(frozen=True)
class Progress:
    """What a round tells the outside, on rank 0.

    Attributes:
        done: rounds done, of
        rounds: all of them.
        evaluation: the row, or None if this round was not evaluated.
        taus: `[client]`.
        seconds: since the start of the first round.
    """

    done: int
    rounds: int
    evaluation: Evaluation | None
    taus: np.ndarray
    seconds: float


def run(
    config: Config,
    world: World,
    record: Path,
    report: Callable[[Progress], None] = lambda _: None,
    check_output: Callable[[], None] = lambda: None,
) -> None:
    """Runs a configuration from start to end; all ranks of `world` call it.

    Args:
        config: what to run.
        world: the ranks.
        record: where to write; the checkpoint goes beside it.
        report: called on rank 0 at the start and after every round.
        check_output: called on rank 0 before anything is computed; raises InputError to refuse.

    Raises:
        InputError: on every rank, for bad input.
        SimulationError: on the rank where the computation failed.
    """
    problem = None

    def read() -> None:
        nonlocal problem
        check_output()
        problem = prepare(config, world.size)

    world.on_root(read)
    assembly = assemble(config, world, problem)
    problem = None  # every rank has its share; rank 0 needs the whole data set no longer
    Simulation(config, assembly, record, report).run()


class Simulation:
    """A run on one rank."""

    def __init__(
        self, config: Config, assembly: Assembly, record: Path, report: Callable[[Progress], None]
    ) -> None:
        """Composes method, evaluation and record; all ranks take part."""
        federation = assembly.federation
        self.config, self.federation, self.schedule = config, federation, assembly.schedule
        self.world = federation.world
        self.weights = assembly.weights
        self.method = METHODS[config.algorithm.name](config.algorithm, federation)
        self.evaluate = Evaluator(
            federation,
            assembly.test.inputs,
            assembly.test.labels,
            self.method.loss,
            config.evaluation.clients,
        )
        self.record = Record(record)
        self.report = report
        self._open_record(assembly)

    def run(self) -> None:
        """THE ROUND LOOP."""
        config, rounds = self.config, self.config.rounds
        self._start = time.perf_counter()
        self.federation.clock.lap()
        self._finish_round(0, None, None)
        exchange: Exchange | None = None
        for number in range(rounds):
            with locating(round=number):
                graph = self.schedule.graph(number)
                if exchange is None or exchange.graph is not graph:
                    if exchange is not None:
                        exchange.close()
                    exchange = Exchange(self.federation, graph)
                result = self.method.round(self.weights, number, exchange)
                self.weights = result.weights
                self._finish_round(number + 1, graph, result)
                if (number + 1) % config.output.checkpoint_every == 0 or number + 1 == rounds:
                    self._checkpoint(number + 1)
        if exchange is not None:
            exchange.close()

    # ----------------------------------------------------------------------------- between rounds

    def _finish_round(self, done: int, graph: Graph | None, result: RoundResult | None) -> None:
        """Evaluates if it is time to, and appends to the record; `done` rounds are over."""
        due = done % self.config.evaluation.every == 0 or done == self.config.rounds
        evaluation = self.evaluate(self.weights) if due else None
        taus = self._gather(np.array(result.taus if result else [0] * len(self.weights)))
        ledger, clock = self.federation.ledger, self.federation.clock
        round_record = None
        if graph is not None:
            busiest, traffic = ledger.busiest, self.world.total(ledger.lap())
            seconds = self._gather(np.array([clock.lap()]))
            round_record = RoundRecord(graph.edges, traffic, seconds, busiest)
        else:
            ledger.lap()  # evaluating the start belongs to no round
            clock.lap()
        if self.world.rank == 0:
            with clock("record"):
                self.record.append(done, taus, evaluation, round_record)
                elapsed = time.perf_counter() - self._start
                self.report(Progress(done, self.config.rounds, evaluation, taus, elapsed))

    def _gather(self, array: np.ndarray) -> np.ndarray:
        """Every rank's rows on rank 0; elsewhere this rank's own."""
        parts = list(self.world.collect(array))
        return np.concatenate(parts) if parts else array

    def _checkpoint(self, done: int) -> None:
        with self.federation.clock("record"):
            rows = self.world.collect(self.weights.cpu().numpy())
            if self.world.rank:
                list(rows)  # hands this rank's weights to rank 0
                return
            checkpoint.write(
                checkpoint.checkpoint_path(self.record.path),
                rows,
                (self.config.clients, self.weights.shape[1]),
                np.dtype(self.config.compute.dtype),
                self.config.to_yaml(),
                self.federation.network.layout,
                done,
            )

    def _open_record(self, assembly: Assembly) -> None:
        world, device = self.world, str(self.federation.device)

        def create() -> None:
            assert assembly.shares is not None
            attributes = provenance(
                self.config.to_yaml(),
                self.config.seed,
                world.hosts,
                world.library,
                device,
                str(torch.__version__),
            )
            self.record.create(attributes, self.config.clients, world.size, assembly.shares)
            checkpoint.checkpoint_path(self.record.path).unlink(missing_ok=True)

        world.on_root(create)
