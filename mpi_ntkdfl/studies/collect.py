"""The finished runs of a study, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpi_ntkdfl.analysis import tables, traces
from mpi_ntkdfl.analysis.plots import Axis as Quantity
from mpi_ntkdfl.analysis.plots import X as PLOT_X
from mpi_ntkdfl.analysis.plots import Y as PLOT_Y
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.studies.definition import Variant
from mpi_ntkdfl.studies.grid import Study, StudyRun, is_done, rounds_recorded

QUANTITIES: dict[str, Quantity] = {
    **PLOT_X,
    **PLOT_Y,
    "own-accuracy": Quantity("own_accuracy", "accuracy on own distribution, mean client"),
    "mean-tau": Quantity("mean_tau", "tau, mean over clients"),
    "steps": Quantity("steps", "evolution steps, mean over clients", log=True),
    "least-squared-gradient": Quantity(
        "least_squared_gradient", "least squared gradient so far", log=True
    ),
}
"""What can be drawn by round, by the names definitions use."""


@dataclass(frozen=True)
class Finished:
    """A run with all its rounds.

    Attributes:
        run: of the study.
        record: its numbers.
        trace: the same, reduced.
    """

    run: StudyRun
    record: tables.Run
    trace: traces.Trace

    def values(self, quantity: str) -> np.ndarray:
        """A quantity at every evaluated row, `[row]`; NaN where the record cannot tell."""
        field = QUANTITIES[quantity].field
        if field == "mean_tau":
            return self._mean_tau()
        if field == "steps":
            # Rounds that were not evaluated have left no tau.
            known = np.diff(self.record.rounds, prepend=-1) == 1
            return np.where(np.cumprod(known), np.cumsum(np.nan_to_num(self._mean_tau())), np.nan)
        if field == "least_squared_gradient":
            least: np.ndarray = np.minimum.accumulate(self.trace.gradient_norm**2)
            return least
        return np.asarray(getattr(self.trace, field), dtype=np.float64)

    def _mean_tau(self) -> np.ndarray:
        """NaN at the start, where nobody has chosen one, and for methods that know none."""
        means: np.ndarray = self.record.tau.mean(axis=1)
        return np.where(means > 0, means, np.nan)

    def rows(self, rounds: np.ndarray) -> np.ndarray:
        """The rows after some `rounds`, which it has evaluated."""
        return np.searchsorted(self.record.rounds, rounds)


@dataclass(frozen=True)
class Cell:
    """The finished seeds of one combination of variants.

    Attributes:
        variants: one of each axis.
        finished: in the order of the seeds.
    """

    variants: tuple[Variant, ...]
    finished: tuple[Finished, ...]

    @property
    def label(self) -> str:
        """For people."""
        return ", ".join(variant.label for variant in self.variants)

    @property
    def method(self) -> str:
        """The algorithm's name."""
        return self.finished[0].run.config.algorithm.name

    def group(self) -> traces.Group:
        """As `compare` knows it."""
        return traces.Group(self.method, self.label, tuple(f.trace for f in self.finished))

    def rounds(self) -> np.ndarray:
        """The rounds that all its seeds have evaluated."""
        return self.group().shared_rounds()

    def values(self, quantity: str) -> np.ndarray:
        """A quantity at those rounds, `[seed, row]`."""
        rounds = self.rounds()
        return np.array([f.values(quantity)[f.rows(rounds)] for f in self.finished])

    def ends(self, quantity: str) -> np.ndarray:
        """A quantity at the end, `[seed]`."""
        return np.array([f.values(quantity)[-1] for f in self.finished])


@dataclass(frozen=True)
class Results:
    """What there is of a study.

    Attributes:
        study: it.
        cells: combinations of variants of which a seed is finished, in order.
        missing: runs that are not finished, in order.
    """

    study: Study
    cells: tuple[Cell, ...]
    missing: tuple[StudyRun, ...]

    def missing_text(self) -> list[str]:
        """What is missing, a line each; empty if nothing is."""
        if not self.missing:
            return []
        total = len(self.study.runs)
        lines = [f"incomplete: {total - len(self.missing)} of {total} runs are finished; missing:"]
        for run in self.missing:
            done = rounds_recorded(run.outputs)
            started = f", {done} of {run.config.rounds} rounds done" if done else ""
            lines.append(f"  {run.label} ({run.key}{started})")
        return lines


def collect(study: Study) -> Results:
    """Reads the finished runs.

    Raises:
        InputError: if there is none, or a record is damaged.
    """
    found: dict[tuple[str, ...], list[Finished]] = {}
    variants: dict[tuple[str, ...], tuple[Variant, ...]] = {}
    missing = []
    known: dict[str, tuple[tables.Run, traces.Trace]] = {}
    for run in study.runs:
        if not is_done(run, study.definition.needs_weights):
            missing.append(run)
            continue
        if run.key not in known:
            record = tables.read(run.outputs.record)
            known[run.key] = record, traces.trace(record, str(run.outputs.record))
        labels = tuple(variant.label for variant in run.cell)
        variants[labels] = run.cell
        found.setdefault(labels, []).append(Finished(run, *known[run.key]))
    if not found:
        raise InputError(
            f"{study.name} has no finished runs at scale {study.scale} in {study.folder}; do some "
            f"first: study run {study.name} --scale {study.scale} -o {study.folder}"
        )
    in_order = dict.fromkeys(tuple(v.label for v in run.cell) for run in study.runs)
    cells = [Cell(variants[labels], tuple(found[labels])) for labels in in_order if labels in found]
    return Results(study, tuple(cells), tuple(missing))


def by(cells: Sequence[Cell], place: int | None) -> dict[str, list[Cell]]:
    """Cells by the label of their variant of the axis at `place`; all together for None."""
    if place is None:
        return {"": list(cells)}
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.variants[place].label, []).append(cell)
    return found
