"""The round loop, and what surrounds it."""

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
from mpi_ntkdfl.metrics import CLIENT_LOSS, LOSS
from mpi_ntkdfl.planning.legs import RoundModel
from mpi_ntkdfl.planning.timekeeper import Timekeeper
from mpi_ntkdfl.runtime.errors import Diverged, SimulationError, locating
from mpi_ntkdfl.runtime.stopping import SIGNALS, Budget, nothing_to_save, signalled
from mpi_ntkdfl.storage import identity
from mpi_ntkdfl.storage.journal import Journal
from mpi_ntkdfl.storage.lock import locked
from mpi_ntkdfl.storage.outputs import Outputs, refuse
from mpi_ntkdfl.storage.record import Times
from mpi_ntkdfl.storage.resume import find_start, finished_without_weights
from mpi_ntkdfl.topology.graphs import Graph

Mode = Literal["new", "overwrite", "resume"]
"""What to do about outputs that exist: refuse, replace them, or go on with them."""


@dataclass(frozen=True)
class Progress:
    """What a round tells the outside, on rank 0.

    Attributes:
        done: rounds done, of
        rounds: all of them.
        evaluation: the row, or None if this round was not evaluated.
        taus: `[client]`.
        seconds: since the start of the first round of this start, which was
        first: that round's number.
        simulated: seconds on the federation's clock; None in a run without an environment.
    """

    done: int
    rounds: int
    evaluation: Evaluation | None
    taus: np.ndarray
    seconds: float
    first: int = 0
    simulated: float | None = None


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        first: rounds that were done before, in earlier starts.
        done: rounds done.
        rounds: all of them.
        reason: what stopped it before the last one.
    """

    first: int
    done: int
    rounds: int
    reason: str = ""

    @property
    def finished(self) -> bool:
        """Whether all rounds are done."""
        return self.done >= self.rounds


def run(
    config: Config,
    world: World,
    outputs: Outputs,
    mode: Mode = "new",
    report: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Runs a configuration to its end, or to where it is stopped; all ranks of `world` call it.

    Args:
        config: what to run.
        world: the ranks.
        outputs: where to write.
        mode: what to do about existing outputs.
        report: called on rank 0 at the start and after every round.

    Raises:
        InputError: on every rank, for bad input; nothing is changed then.
        SimulationError: on the rank where the computation failed.
    """
    problem = start = contents = None
    with contextlib.ExitStack() as held:
        nothing_to_save(True)
        held.callback(nothing_to_save, False)

        def read() -> int | None:
            """Rounds done by a run to go on with, None for a new one."""
            nonlocal problem, start, contents
            killed = held.enter_context(locked(outputs))
            refuse(outputs, replace=mode != "new")
            if mode == "resume":
                done = finished_without_weights(outputs, config, killed)
                if done is not None:
                    return done
                start = held.enter_context(find_start(outputs, config))
            if start is not None and start.checkpoint.round >= config.rounds:
                return start.checkpoint.round
            problem = prepare(config, world.size, going_on=start is not None)
            contents = identity.contents(config, problem.dataset.fingerprint())
            if start is None:
                return None
            shares, last = problem.partition, problem.schedule.graph(start.checkpoint.round - 1)
            start.compare((shares.offsets, shares.indices), contents, last.edges)
            return start.checkpoint.round

        first = world.on_root(read)
        if first is not None and first >= config.rounds:
            return Outcome(first, first, config.rounds)
        assembly = assemble(config, world, problem)
        problem = None  # every rank has its share; rank 0 needs the whole data set no longer
        simulation = Simulation(config, assembly, outputs, report)
        if first is None:
            simulation.journal.create(assembly.shares, contents, simulation.method)
        else:
            simulation.weights = simulation.journal.resume(start, simulation.method)
            if simulation.timekeeper is not None:
                simulation.timekeeper.restore(*simulation.journal.clocks())
        return simulation.run(first)


def require_finite_losses(evaluation: Evaluation) -> None:
    """Stops a run of which a client's loss, or that of the average, is not finite any more.

    Weights can be finite where the outputs overflow. Methods look at weights only.

    Args:
        evaluation: of all clients, so that of rank 0.

    Raises:
        Diverged: naming the client.
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
        """Composes method, evaluation and journal; all ranks take part."""
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
            config.evaluation.clients,
        )
        self.journal = Journal(config, federation, outputs)
        self.report = report

    def run(self, resumed: int | None) -> Outcome:
        """THE ROUND LOOP.

        Args:
            resumed: rounds done before; None for a run that begins, whose start is recorded.
        """
        rounds = self.config.rounds
        self._first = done = resumed or 0
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
                    here = self._begin(done, graph)
                if here is None:  # nobody takes part
                    taus = [0] * len(self.weights)
                else:
                    if exchange is None or exchange.graph is not here:
                        if exchange is not None:
                            exchange.close()
                        exchange = Exchange(self.federation, here, self._lasting)
                    # Bookkeeping for gradients nobody asks for takes a tenth of an evolution's time.
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
        return Outcome(self._first, done, rounds, reason)

    # ----------------------------------------------------------------------------- simulated time

    def _timekeeper(self, assembly: Assembly) -> Timekeeper | None:
        """The federation's clock, None in a run without an environment."""
        conditions, f, algorithm = assembly.conditions, self.federation, self.config.algorithm
        if conditions is None:
            return None
        model = RoundModel(
            type(self.method), algorithm, f.network, f.dtype, f.sizes, conditions.speeds
        )
        return Timekeeper(conditions, model, f.seed, f.presence)

    def _begin(self, number: int, graph: Graph) -> Graph | None:
        """The graph among those who take part in a round; None if nobody does."""
        if self.timekeeper is None:
            return graph
        ledger = self.federation.ledger if self.world.rank == 0 else None
        return self.timekeeper.begin(number, graph, ledger)

    @property
    def _lasting(self) -> bool:
        """Whether a graph stays for many rounds."""
        environment = self.config.environment
        steady = environment is None or environment.always
        return steady and not self.config.topology.dynamic

    # ----------------------------------------------------------------------------- between rounds

    def _require_finite(self) -> None:
        """The last net: a method handles divergence itself, means over clients rely on it."""
        finite = torch.isfinite(self.weights).all(dim=1).tolist()
        for client, fine in zip(self.federation.owned, finite, strict=True):
            if not fine:
                with locating(client=client):
                    raise SimulationError("the round left non-finite weights")

    def _finish_round(self, done: int, graph: Graph | None, taus: list[int]) -> tuple[str, bool]:
        """Evaluates if it is time to, looks around, and records; `done` rounds are over.

        The ranks agree on what comes next while what the record stores is on its way to rank 0, and go
        on while rank 0 writes it.
        """
        due = done % self.config.evaluation.every == 0 or done == self.config.rounds
        evaluation = self.evaluate(self.weights, done) if due else None
        handed = self.journal.hand_in(taus)
        decided = self._look_around(done)
        clock = self.timekeeper
        times = None if clock is None else Times(clock.seconds, clock.clients, clock.active)
        every_tau = self.journal.finish_round(done, graph, handed, evaluation, times)
        if self.world.rank == 0:
            seconds = time.monotonic() - self._start
            rounds = self.config.rounds
            simulated = None if clock is None else clock.seconds
            self.report(
                Progress(done, rounds, evaluation, every_tau, seconds, self._first, simulated)
            )
            # After it was recorded: the row shows what became of the run. Rank 0 ends all ranks.
            if evaluation is not None and done and self.config.on_divergence == "stop":
                require_finite_losses(evaluation)
        return decided

    def _look_around(self, done: int) -> tuple[str, bool]:
        """Why to stop here, or nothing; and whether to write a checkpoint. The same on all ranks."""
        settings, seen, now = self.config.output, signalled(), time.monotonic()
        spent = self.world.rank == 0 and self._budget.spent()
        minutes = settings.checkpoint_minutes
        late = self.world.rank == 0 and minutes is not None and now - self._saved > 60 * minutes
        flags = [*(seen == number for number in SIGNALS), spent, late]
        with self.federation.clock("agree"):
            counts = self.world.total(np.array(flags, dtype=np.int64))
        *signals, spent, late = counts.tolist()
        reasons = [*(number.name for number in SIGNALS), "time limit"]
        reason = ""
        if done < self.config.rounds:
            named = zip(reasons, [*signals, spent], strict=True)
            reason = next((name for name, ranks in named if ranks), "")
        cadence = done % settings.checkpoint_every == 0 or done == self.config.rounds
        due = bool(reason or late or cadence)
        if due:
            self._saved = now
        return reason, due
