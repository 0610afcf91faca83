"""Estimates what a study will take before it runs: runs, core time, bytes on disk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.analysis import tables
from mpi_ntkdfl.config import Config
from mpi_ntkdfl.config.sections import DirichletPartition
from mpi_ntkdfl.data import sources
from mpi_ntkdfl.data.source import Size
from mpi_ntkdfl.model.networks import build_for
from mpi_ntkdfl.planning.costs import NOMINAL, START_UP, Machine, disk_bytes, round_seconds
from mpi_ntkdfl.planning.first_round import FirstRound
from mpi_ntkdfl.runtime.units import duration, readable
from mpi_ntkdfl.studies.collect import core_seconds
from mpi_ntkdfl.studies.grid import Study, StudyRun, is_done, rounds_recorded
from mpi_ntkdfl.topology.graphs import Graph
from mpi_ntkdfl.topology.placement import Placement
from mpi_ntkdfl.topology.schedule import Schedule

_READING = 0.2
"""Core seconds per run for data, partition and starting weights, if runs share a process."""


@dataclass(frozen=True)
class Cost:
    """What some runs take, or took.

    Attributes:
        runs: number of runs.
        seconds: seconds of core time.
        nbytes: bytes of records and checkpoints.
        begun: number of runs that have done some of their rounds.
        rounds: number of rounds that these runs have done.
        planned: number of all rounds of these runs.
    """

    runs: int
    seconds: float
    nbytes: int
    begun: int = 0
    rounds: int = 0
    planned: int = 0


@dataclass(frozen=True)
class Estimate:
    """The costs of the runs that are done and of those that are left, by method.

    Attributes:
        done: measured costs of the finished runs.
        left: estimated costs of the other runs, without the rounds that they have done.
        measured: methods whose time per round was measured in finished runs of this study. For the
            other methods it is predicted from their counts of work, as in `check`.
    """

    done: Mapping[str, Cost]
    left: Mapping[str, Cost]
    measured: frozenset[str]


def estimate(study: Study, ranks: int = 1, machine: Machine = NOMINAL) -> Estimate:
    """Estimates a study from its finished runs, or from predictions for methods without such runs.

    Args:
        study: the study whose runs are estimated.
        ranks: number of ranks of each run. Every rank has to start.
        machine: speed of a core, for predictions.
    """
    weights = study.definition.needs_weights
    finished: dict[str, list[StudyRun]] = defaultdict(list)
    left: dict[str, list[StudyRun]] = defaultdict(list)
    for run in study.distinct():
        (finished if is_done(run, weights) else left)[run.config.algorithm.name].append(run)
    seconds = {
        name: [core_seconds(tables.read(run.outputs.record)) for run in runs]
        for name, runs in finished.items()
    }
    done = {
        name: Cost(len(runs), sum(seconds[name]), sum(_on_disk(run) for run in runs))
        for name, runs in finished.items()
    }
    prediction = _Prediction(machine)
    to_come: dict[str, Cost] = {}
    for name, runs in left.items():
        # Measured seconds per client and round of finished runs, for all sizes of shares together.
        rates = [
            spent / (run.config.clients * run.config.rounds)
            for run, spent in zip(finished.get(name, ()), seconds.get(name, ()), strict=True)
        ]
        total = 0.0
        for run in runs:
            config, start, each = run.config, *prediction.seconds(run.config)
            if rates:
                each = float(np.mean(rates)) * config.clients
            rounds = max(config.rounds - rounds_recorded(run.outputs), 0)
            total += (ranks * START_UP if ranks > 1 else _READING) + start + each * rounds
        if ranks == 1 and not to_come:
            total += START_UP  # all runs of one rank share the process of the study
        disk = sum(prediction.nbytes(run.config) for run in runs)
        begun = [run for run in runs if rounds_recorded(run.outputs)]
        rounds = sum(rounds_recorded(run.outputs) for run in begun)
        planned = sum(run.config.rounds for run in begun)
        to_come[name] = Cost(len(runs), total, disk, len(begun), rounds, planned)
    return Estimate(done, to_come, frozenset(finished))


class _Prediction:
    """Predicts runs without reading their data; graphs that several runs share are drawn once."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._sizes: dict[str, Size] = {}
        self._graphs: dict[str, Graph] = {}

    def seconds(self, config: Config) -> tuple[float, float]:
        """Core seconds of the evaluation before the first round, and of one round."""
        by_phase = round_seconds(self._first(config), 0, self._machine, config.compute.threads)
        return by_phase["evaluate"] * config.evaluation.every, sum(by_phase.values())

    def nbytes(self, config: Config) -> int:
        """Approximate bytes of a record and two checkpoints."""
        return disk_bytes(self._first(config))

    def _first(self, config: Config) -> FirstRound:
        """Round 0 if all clients had equally many samples."""
        data = self._size(config)
        return FirstRound(
            config=config,
            method=METHODS[config.algorithm.name],
            network=build_for(config, data.shape, data.classes),
            sizes=np.full(config.clients, _samples_per_client(config, data)),
            test_samples=data.test,
            graph=self._graph(config),
            placement=Placement(config.clients, 1),
        )

    def _size(self, config: Config) -> Size:
        key = config.dataset.model_dump_json()
        if key not in self._sizes:
            self._sizes[key] = sources.size(config.dataset)
        return self._sizes[key]

    def _graph(self, config: Config) -> Graph:
        key = f"{config.clients} {config.topology.model_dump_json()}"
        if key not in self._graphs:
            self._graphs[key] = Schedule(config.topology, config.clients, config.seed).graph(0)
        return self._graphs[key]


def _samples_per_client(config: Config, data: Size) -> int:
    given = config.partition.samples if isinstance(config.partition, DirichletPartition) else None
    return given or max(data.train // config.clients, 1)


def _on_disk(run: StudyRun) -> int:
    return sum(file.stat().st_size for file in run.outputs.existing())


def text(study: Study, estimated: Estimate, ranks: int) -> str:
    """The estimate as text."""
    definition = study.definition
    every = study.distinct()
    lines = [
        f"{study.name}, scale {study.scale}: {definition.title}",
        f"{len(every)} runs: {len(every) // max(1, study.seeds)} configurations, seeds 0 to "
        f"{study.seeds - 1}; in {study.folder}",
        "",
        f"{'method':12}{'runs':>6}{'done':>6}{'core time left':>16}{'bytes left':>12}",
    ]
    nothing = Cost(0, 0.0, 0)
    for name in dict.fromkeys(run.config.algorithm.name for run in every):
        done, left = estimated.done.get(name, nothing), estimated.left.get(name, nothing)
        how = "" if name in estimated.measured or not left.runs else "  (predicted)"
        if left.begun:
            how += f"  ({left.begun} begun: {left.rounds} of {left.planned} rounds)"
        lines.append(
            f"{name:12}{done.runs + left.runs:>6}{done.runs:>6}{duration(left.seconds):>16}"
            f"{readable(left.nbytes):>12}{how}"
        )
    seconds = sum(cost.seconds for cost in estimated.left.values())
    spent = sum(cost.seconds for cost in estimated.done.values())
    bytes_left = sum(cost.nbytes for cost in estimated.left.values())
    bytes_done = sum(cost.nbytes for cost in estimated.done.values())
    begins = "once, for all runs in one process" if ranks == 1 else "per run and rank"
    lines += [
        "",
        f"left: about {duration(seconds)} of core time, {duration(seconds / ranks)} with {ranks} "
        f"rank(s) on as many cores, {readable(bytes_left)}; start-up counts {START_UP} s "
        f"{begins}",
        f"done: {duration(spent)} of core time, {readable(bytes_done)}",
    ]
    return "\n".join(lines)


def run_list(study: Study) -> list[str]:
    """One line per run: its number, its key, its state, and its label."""
    weights = study.definition.needs_weights
    lines = []
    for place, run in enumerate(study.distinct()):
        done = rounds_recorded(run.outputs)
        state = "done" if is_done(run, weights) else f"{done}/{run.config.rounds}"
        lines.append(f"{place:>4}  {run.key}  {state:>6}  {run.label}")
    return lines
