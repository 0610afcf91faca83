"""The round loop, its start, and the steps between rounds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.algorithms.absence import attended_round
from mpi_ntkdfl.assembly import Assembly, assemble, prepare
from mpi_ntkdfl.comm.world import World
from mpi_ntkdfl.config import Config
from mpi_ntkdfl.evaluate import Evaluation, Evaluator
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.metrics import ACCURACY, BYTES, CLIENT_LOSS, LOSS, MEAN_TAU, METRICS, ROUNDS, About
from mpi_ntkdfl.planning.legs import RoundModel
from mpi_ntkdfl.planning.timekeeper import Timekeeper
from mpi_ntkdfl.runtime.errors import Diverged, SimulationError, locating
from mpi_ntkdfl.runtime.stopping import SIGNALS, Budget, nothing_to_save, signalled
from mpi_ntkdfl.storage import identity
from mpi_ntkdfl.storage.checkpoint import remove_leftovers
from mpi_ntkdfl.storage.journal import Journal
from mpi_ntkdfl.storage.lock import locked
from mpi_ntkdfl.storage.outputs import Outputs, refuse
from mpi_ntkdfl.storage.resume import find_start, finished_without_weights
from mpi_ntkdfl.storage.times import Times
from mpi_ntkdfl.topology.graphs import Graph

Mode = Literal["new", "overwrite", "resume"]
"""What to do if outputs exist: refuse to run, replace them, or continue from them."""


@dataclass(frozen=True)
class Progress:
    """The state of a run after a round, as rank 0 reports it.

    Attributes:
        done: number of rounds done.
        rounds: number of all rounds.
        evaluation: the values measured after this round; None if it was not evaluated.
        taus: the number of steps that each client chose, `[client]`.
        seconds: seconds since this start of the program began its first round.
        first: the number of this start's first round.
        sent: protocol bytes of all clients since the start of the run.
        simulated: seconds on the federation's clock; None in a run without an environment.
    """

    done: int
    rounds: int
    evaluation: Evaluation | None
    taus: np.ndarray
    seconds: float
    first: int = 0
    sent: int = 0
    simulated: float | None = None

    def numbers(self) -> dict[str, float]:
        """One number per metric, by the names that `plot` knows; empty if the round was not evaluated.

        `rounds` comes first. Metrics of clients are means over clients. `bytes` are the protocol bytes
        since the start of the run, and `elapsed` are the seconds of this start of the program.
        """
        if self.evaluation is None:
            return {}
        about = About(np.array([self.done]))
        measured = {**self.evaluation, MEAN_TAU.name: self.taus}
        numbers = {ROUNDS.name: float(self.done)}
        for metric in METRICS.values():
            if metric.name in measured:
                numbers[metric.name] = float(metric.curve(measured[metric.name][None], about)[0])
        return {**numbers, BYTES.name: float(self.sent), "elapsed": self.seconds}


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        first: number of rounds that earlier starts had done.
        done: number of rounds done.
        rounds: number of all rounds.
        reason: what stopped the run before its last round; empty if nothing did.
        reached: whether the average has reached `stop_at`, which finishes the run.
    """

    first: int
    done: int
    rounds: int
    reason: str = ""
    reached: bool = False

    @property
    def finished(self) -> bool:
        """Whether all rounds are done that the run shall have."""
        return self.reached or self.done >= self.rounds


def run(
    config: Config,
    world: World,
    outputs: Outputs,
    mode: Mode = "new",
    report: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Runs a configuration until it is finished or stopped. All ranks of `world` must call this.

    Args:
        config: the run's configuration.
        world: the ranks.
        outputs: the files to write.
        mode: what to do if outputs exist.
        report: function that is called on rank 0 at the start and after every round.

    Raises:
        InputError: on every rank, if the input is wrong. No file has been changed then.
        SimulationError: on the rank where the computation failed.
    """
    problem = start = contents = None
    with contextlib.ExitStack() as held:
        nothing_to_save(True)
        held.callback(nothing_to_save, False)

        def read() -> Outcome | int | None:
            """The number of rounds done by the run that is resumed; None for a new run.

            An outcome if the run is finished.
            """
            nonlocal problem, start, contents
            killed = held.enter_context(locked(outputs))
            refuse(outputs, replace=mode != "new")
            if mode == "resume":
                done = finished_without_weights(outputs, config, killed)
                if done is not None:
                    return Outcome(done, done, config.rounds, reached=done < config.rounds)
                start = held.enter_context(find_start(outputs, config))
            if start is not None and start.checkpoint.round >= start.last:
                remove_leftovers(outputs)  # of a kill after the last checkpoint
                done = start.checkpoint.round
                return Outcome(done, done, config.rounds, reached=done < config.rounds)
            problem = prepare(config, world.size, going_on=start is not None)
            contents = identity.contents(config, problem.dataset.fingerprint())
            if start is None:
                return None
            shares, last = problem.partition, problem.schedule.graph(start.checkpoint.round - 1)
            start.compare((shares.offsets, shares.indices), contents, last.edges)
            return start.checkpoint.round

        first = world.on_root(read)
        if isinstance(first, Outcome):
            return first
        assembly = assemble(config, world, problem)
        problem = None  # frees the whole data set on rank 0: every rank has its part
        simulation = Simulation(config, assembly, outputs, report)
        held.callback(simulation.journal.close)
        if first is None:
            names = assembly.schedule.names
            simulation.journal.create(assembly.facts, contents, simulation.method, names)
        else:
            simulation.weights = simulation.journal.resume(start, simulation.method)
            if simulation.timekeeper is not None:
                simulation.timekeeper.restore(*simulation.journal.clocks())
        return simulation.run(first)


def require_finite_losses(evaluation: Evaluation) -> None:
    """Checks the losses of all clients and of their average.

    Methods check weights only. Weights can be finite even if outputs overflow.

    Args:
        evaluation: the values of all clients, which rank 0 has.

    Raises:
        Diverged: if a loss is not finite; the client is named in a note.
    """
    way_out = "take smaller steps (such as algorithm.lr), or set on_divergence=continue"
    clients = evaluation.get(CLIENT_LOSS.name, np.zeros(0))
    for client in np.flatnonzero(~np.isfinite(clients)).tolist():
        with locating(client=client):
            raise Diverged(f"the test loss became {clients[client]}; {way_out}")
    average = evaluation.get(LOSS.name)
    if average is not None and not np.isfinite(average):
        raise Diverged(f"the test loss of the average of all clients became {average}; {way_out}")


class Simulation:
    """A run on one rank."""

    def __init__(
        self,
        config: Config,
        assembly: Assembly,
        outputs: Outputs,
        report: Callable[[Progress], None],
    ) -> None:
        """Makes the method, the evaluator and the journal. All ranks must call this."""
        federation = assembly.federation
        self.config, self.federation, self.schedule = config, federation, assembly.schedule
        self.world = federation.world
        self.weights = assembly.weights
        self.method = METHODS[config.algorithm.name](config.algorithm, federation)
        self.timekeeper = self._timekeeper(assembly)
        self.evaluate = Evaluator(
            federation,
            assembly.test_inputs,
            assembly.test_labels,
            self.method.loss,
            assembly.test_sites,
            config.evaluation.sample,
            config.seed,
        )
        self.journal = Journal(config, federation, outputs)
        self.report = report

    def run(self, resumed: int | None) -> Outcome:
        """THE ROUND LOOP.

        Args:
            resumed: number of rounds done before; None for a new run, whose starting state is recorded.
        """
        rounds = self.config.rounds
        self._first = done = resumed or 0
        self._reached = False
        self._start = self._saved = time.monotonic()
        self._budget = Budget(self.config.output.seconds)
        self.federation.clock.lap()
        nothing_to_save(False)
        exchange: Exchange | None = None
        if resumed is None:
            reason, _ = self._finish_round(0, None, [0] * len(self.weights))
        else:
            reason, _ = self._look_around(done)
        while done < rounds and not reason:
            self.world.round = done
            with locating(round=done):
                with self.federation.clock("graph"):
                    graph = self.schedule.graph(done)
                    present_graph = self._begin(done, graph)
                if present_graph is None:  # nobody takes part
                    taus = [0] * len(self.weights)
                else:
                    if exchange is None or exchange.graph is not present_graph:
                        if exchange is not None:
                            exchange.close()
                        exchange = Exchange(
                            self.federation,
                            present_graph,
                            self.config.lasting,
                            done > 0,
                            self.method.codings,
                        )
                    # Without this, autograd's bookkeeping would take a tenth of an evolution's time.
                    with torch.inference_mode():
                        result = attended_round(self.method, self.weights, done, exchange)
                    self.weights, taus = result.weights, result.taus
                self._require_finite()
                done += 1
                reason, due = self._finish_round(done, graph, taus)
                if due:
                    self.journal.checkpoint(done, self.weights, self.method)
                self._budget.round_done()
        if exchange is not None:
            exchange.close()
        return Outcome(self._first, done, rounds, reason, self._reached)

    # ----------------------------------------------------------------------------- simulated time

    def _timekeeper(self, assembly: Assembly) -> Timekeeper | None:
        """The federation's clock, None in a run without an environment."""
        conditions, f, algorithm = assembly.conditions, self.federation, self.config.algorithm
        if conditions is None:
            return None
        kind, sizes = type(self.method), f.sizes
        about = f.network, f.dtype, f.travelling, sizes, conditions.speeds, self.config.lasting
        model = RoundModel(kind, algorithm, *about)
        return Timekeeper(conditions, model, f.seed, f.presence, self.config.lasting)

    def _begin(self, number: int, graph: Graph) -> Graph | None:
        """The graph among those who take part in a round; None if nobody does."""
        if self.timekeeper is None:
            return graph
        ledger = self.federation.ledger if self.world.rank == 0 else None
        return self.timekeeper.begin(number, graph, ledger)

    # ----------------------------------------------------------------------------- between rounds

    def _require_finite(self) -> None:
        """Checks a round's weights. Methods should have handled divergence themselves.

        Raises:
            SimulationError: if the weights of a client are not finite.
        """
        finite = torch.isfinite(self.weights).all(dim=1).tolist()
        for client, fine in zip(self.federation.owned, finite, strict=True):
            if not fine:
                with locating(client=client):
                    raise SimulationError("the round left non-finite weights")

    def _finish_round(self, done: int, graph: Graph | None, taus: list[int]) -> tuple[str, bool]:
        """Evaluates if that is due, decides what comes next, and records; `done` rounds are over.

        The record's data travel to rank 0 while the ranks decide. The other ranks continue while rank 0
        writes.

        Returns:
            See `_look_around`.
        """
        settings, rounds = self.config.evaluation, self.config.rounds
        due = done % settings.every == 0 or done == rounds
        clients = settings.tests_clients(done, rounds)
        evaluation = self.evaluate(self.weights, clients, done) if due else None
        handed = self.journal.hand_in(taus)
        self._reached = self._reaches_target(done, evaluation)
        decided = self._look_around(done)
        clock = self.timekeeper
        times = None if clock is None else Times(clock.seconds, clock.clients, clock.active)
        every_tau = self.journal.finish_round(done, graph, handed, evaluation, times)
        if self.world.rank == 0:
            seconds = time.monotonic() - self._start
            simulated = None if clock is None else clock.seconds
            counts = every_tau, seconds, self._first, self.journal.sent
            # Logs and callbacks may take long. They serve the experimenter, as the record does.
            with self.federation.clock("record"):
                self.report(Progress(done, rounds, evaluation, *counts, simulated))
            # This check comes after recording, so that the record has the row of the divergence. An
            # exception on rank 0 ends all ranks.
            if evaluation is not None and done and self.config.on_divergence == "stop":
                require_finite_losses(evaluation)
        return decided

    def _reaches_target(self, done: int, evaluation: Evaluation | None) -> bool:
        """Whether the run is finished because of `stop_at`; only rank 0 knows the evaluation."""
        target = self.config.stop_at
        if target is None or not done or evaluation is None or self.world.rank:
            return False
        return bool(evaluation[ACCURACY.name] >= target)

    def _look_around(self, done: int) -> tuple[str, bool]:
        """Decides, alike on all ranks, whether to stop after `done` rounds.

        Only rank 0 knows beforehand whether the average has reached `stop_at`; afterwards all do.

        Returns:
            The reason to stop here, empty to continue; whether to write a checkpoint.
        """
        settings, seen, now = self.config.output, signalled(), time.monotonic()
        spent = self.world.rank == 0 and self._budget.spent()
        minutes = settings.checkpoint_minutes
        late = self.world.rank == 0 and minutes is not None and now - self._saved > 60 * minutes
        flags = [*(seen == number for number in SIGNALS), spent, late, self._reached]
        with self.federation.clock("agree"):
            counts = self.world.total(np.array(flags, dtype=np.int64))
        *signals, spent, late, reached = counts.tolist()
        self._reached = bool(reached)
        reasons = [*(number.name for number in SIGNALS), "time limit"]
        reason = ""
        if self._reached:
            reason = "stop_at"
        elif done < self.config.rounds:
            named = zip(reasons, [*signals, spent], strict=True)
            reason = next((name for name, ranks in named if ranks), "")
        cadence = done % settings.checkpoint_every == 0 or done == self.config.rounds
        due = bool(reason or late or cadence)
        if due:
            self._saved = now
        return reason, due
