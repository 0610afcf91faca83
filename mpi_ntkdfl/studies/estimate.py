"""What a study will take before it runs: runs, core time, bytes on disk. Rough, and says so."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpi_ntkdfl.analysis import tables
from mpi_ntkdfl.config import Config, DirichletPartition
from mpi_ntkdfl.data.sources import Entry, catalogue
from mpi_ntkdfl.metrics import SECONDS
from mpi_ntkdfl.model import mlp
from mpi_ntkdfl.runtime.units import duration, readable
from mpi_ntkdfl.studies.grid import Study, StudyRun, is_done, rounds_recorded

_ROUGH = {
    "ntk-dfl": 1.4e-3,
    "ntk-fl": 1.0e-4,
    "average-gd": 6e-4,
    "d-psgd": 6e-5,
    "dfedavg": 4e-4,
    "dfedavgm": 3e-4,
    "dfedsam": 4e-4,
    "dispfl": 6e-4,
    "fedavg": 2e-4,
    "local": 4e-4,
}
"""Core seconds a sample and round of the paper's network, where no run of the method is finished.

That of ntk-dfl was measured; the others are reckoned, and tell the order of magnitude.
"""
_UNKNOWN = 1e-3


@dataclass(frozen=True)
class Cost:
    """Of some runs.

    Attributes:
        runs: how many.
        seconds: of one core.
        nbytes: of records and checkpoints.
    """

    runs: int
    seconds: float
    nbytes: int


@dataclass(frozen=True)
class Estimate:
    """What is there and what is to come, by method.

    Attributes:
        done: of finished runs, as measured.
        left: of the others; what a started run has done already is left out of its seconds.
        measured: methods whose time is known from finished runs of this study.
    """

    done: Mapping[str, Cost]
    left: Mapping[str, Cost]
    measured: frozenset[str]


def estimate(study: Study) -> Estimate:
    """Estimates a study from its finished runs, and without them from rough figures."""
    weights = study.definition.needs_weights
    finished: dict[str, list[StudyRun]] = defaultdict(list)
    left: dict[str, list[StudyRun]] = defaultdict(list)
    for run in study.distinct():
        (finished if is_done(run, weights) else left)[run.config.algorithm.name].append(run)
    seconds = {name: [_seconds(run) for run in runs] for name, runs in finished.items()}
    done = {
        name: Cost(len(runs), sum(seconds[name]), sum(_on_disk(run) for run in runs))
        for name, runs in finished.items()
    }
    known = {e.name: e for e in catalogue()}
    to_come = {}
    for name, runs in left.items():
        # Seconds a client and round of what is finished, whatever the size of its shares.
        rates = [
            spent / (run.config.clients * run.config.rounds)
            for run, spent in zip(finished.get(name, ()), seconds.get(name, ()), strict=True)
        ]
        to_come[name] = Cost(
            len(runs),
            sum(_expected(run, known[run.config.dataset.name], rates) for run in runs),
            sum(_size(run.config, known[run.config.dataset.name]) for run in runs),
        )
    return Estimate(done, to_come, frozenset(finished))


def _expected(run: StudyRun, data: Entry, rates: Sequence[float]) -> float:
    """Core seconds of the rounds a run has still to do."""
    config = run.config
    if rates:
        rate = float(np.mean(rates))
    else:
        partition = config.partition
        samples = partition.samples if isinstance(partition, DirichletPartition) else None
        width = mlp.build(config.model, data.features, data.classes).layout.size / 79510
        each = samples or data.train_samples / config.clients
        rate = _ROUGH.get(config.algorithm.name, _UNKNOWN) * each * max(width, 0.2)
    return rate * config.clients * max(config.rounds - rounds_recorded(run.outputs), 0)


def _seconds(run: StudyRun) -> float:
    """Core seconds a finished run took: of all ranks."""
    return float(np.nansum(tables.read(run.outputs.record)[SECONDS]))


def _on_disk(run: StudyRun) -> int:
    return sum(file.stat().st_size for file in run.outputs.existing())


def _size(config: Config, data: Entry) -> int:
    """Bytes of a record and two checkpoints, about."""
    network = mlp.build(config.model, data.features, data.classes)
    number = 8 if config.compute.dtype == "float64" else 4
    checkpoint = config.clients * network.layout.size * number
    return 2 * checkpoint + config.rounds * config.clients * 80 + 60_000


def text(study: Study, found: Estimate, ranks: int) -> str:
    """The estimate for people."""
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
        done, left = found.done.get(name, nothing), found.left.get(name, nothing)
        rough = "" if name in found.measured or not left.runs else "  (a rough figure)"
        lines.append(
            f"{name:12}{done.runs + left.runs:>6}{done.runs:>6}{duration(left.seconds):>16}"
            f"{readable(left.nbytes):>12}{rough}"
        )
    seconds = sum(cost.seconds for cost in found.left.values())
    spent = sum(cost.seconds for cost in found.done.values())
    coming = sum(cost.nbytes for cost in found.left.values())
    there = sum(cost.nbytes for cost in found.done.values())
    lines += [
        "",
        f"left: about {duration(seconds)} of core time, {duration(seconds / ranks)} with {ranks} "
        f"rank(s) on as many cores, {readable(coming)}",
        f"done: {duration(spent)} of core time, {readable(there)}",
    ]
    return "\n".join(lines)


def run_list(study: Study) -> list[str]:
    """A line for each run: its place, files, whether it is done, and what it is."""
    weights = study.definition.needs_weights
    lines = []
    for place, run in enumerate(study.distinct()):
        done = rounds_recorded(run.outputs)
        state = "done" if is_done(run, weights) else f"{done}/{run.config.rounds}"
        lines.append(f"{place:>4}  {run.key}  {state:>6}  {run.label}")
    return lines
