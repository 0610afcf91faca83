"""The finished runs of a study, and the runs that are missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpi_ntkdfl.analysis import tables, traces
from mpi_ntkdfl.metrics import SECONDS
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.studies.definition import Variant
from mpi_ntkdfl.studies.grid import Study, StudyRun, has_other_code, is_done, rounds_recorded


@dataclass(frozen=True)
class Finished:
    """A run with all its rounds.

    Attributes:
        run: the run of the study.
        record: its record.
        trace: its numbers per row.
    """

    run: StudyRun
    record: tables.Run
    trace: traces.Trace

    @property
    def site_names(self) -> tuple[str, ...]:
        """Names of the sites of its data set; empty if they are only numbered."""
        return tuple(json.loads(self.record.attributes.get("site_names", "[]")))

    def rows(self, rounds: np.ndarray) -> np.ndarray:
        """The rows after these `rounds`, which it has evaluated."""
        return np.searchsorted(self.record.rounds, rounds)


@dataclass(frozen=True)
class Cell:
    """The finished seeds of one combination of variants.

    Attributes:
        variants: one variant of each axis.
        finished: its finished runs, in the order of the seeds.
    """

    variants: tuple[Variant, ...]
    finished: tuple[Finished, ...]

    @property
    def label(self) -> str:
        """The text that describes it in tables and messages."""
        return ", ".join(variant.label for variant in self.variants)

    def label_without(self, places: Sequence[int | None], family: str = "") -> str:
        """What tells its line apart in a panel: the variants of the axes that are not drawn otherwise.

        Args:
            places: of axes that are drawn otherwise.
            family: of the variant of an axis that the line runs over.
        """
        parts = [v.label for place, v in enumerate(self.variants) if place not in places]
        return ", ".join(part for part in [*parts, family] if part)

    @property
    def method(self) -> str:
        """The algorithm's name."""
        return self.finished[0].run.config.algorithm.name

    def group(self) -> traces.Group:
        """The cell as a group of `compare`."""
        return traces.Group(self.method, self.label, tuple(f.trace for f in self.finished))

    def rounds(self) -> np.ndarray:
        """The rounds that all its seeds have evaluated."""
        return self.group().shared_rounds()

    def has(self, name: str) -> bool:
        """Whether a metric was measured in all its runs."""
        return all(name in finished.trace.curves for finished in self.finished)

    def values(self, name: str) -> np.ndarray:
        """A metric at those rounds, `[seed, row]`; NaN where a run does not have it."""
        return self.group().values(name)

    def ends(self, name: str) -> np.ndarray:
        """The last value of a metric that it has, `[seed]`."""
        return np.array([finished.trace.curves[name][-1] for finished in self.finished])


@dataclass(frozen=True)
class Results:
    """The results of a study so far.

    Attributes:
        study: the study.
        cells: the combinations of variants with a finished run, in order.
        missing: the runs that are not finished, in order.
    """

    study: Study
    cells: tuple[Cell, ...]
    missing: tuple[StudyRun, ...]

    def place(self, axis: str) -> int:
        """The place of an axis of the study among its axes."""
        return [each.name for each in self.study.definition.axes].index(axis)

    def distinct(self) -> list[Finished]:
        """Every finished run once, in order; a run may belong to two cells."""
        every = (finished for cell in self.cells for finished in cell.finished)
        return list({finished.run.key: finished for finished in every}.values())

    def missing_text(self) -> list[str]:
        """One line per missing run."""
        if not self.missing:
            return []
        total = len(self.study.runs)
        lines = [f"incomplete: {total - len(self.missing)} of {total} runs are finished; missing:"]
        for run in self.missing:
            done = rounds_recorded(run.outputs)
            started = f", {done} of {run.config.rounds} rounds done" if done else ""
            lines.append(f"  {run.label} ({run.key}{started})")
        return lines

    def other_code_text(self) -> list[str]:
        """One line per run that other sources of the package, or other plugins, have computed."""
        runs = dict.fromkeys(
            f"  {finished.run.label} ({finished.run.key})"
            for cell in self.cells
            for finished in cell.finished
            if has_other_code(finished.run.outputs)
        )
        if not runs:
            return []
        head = (
            f"{len(runs)} runs were computed by other sources of the package, or by other plugins, than "
            "those of this report; `study run --fresh` does them again:"
        )
        return [head, *runs]


def core_seconds(record: tables.Run) -> float:
    """Seconds that all rounds of a run took, all ranks together."""
    return float(np.nansum(record[SECONDS]))


def collect(study: Study) -> Results:
    """Reads the finished runs.

    Raises:
        InputError: if there is none, or a record is damaged.
    """
    by_labels: dict[tuple[str, ...], list[Finished]] = {}
    variants: dict[tuple[str, ...], tuple[Variant, ...]] = {}
    missing = []
    read: dict[str, tuple[tables.Run, traces.Trace]] = {}
    for run in study.runs:
        if not is_done(run, study.definition.needs_weights):
            missing.append(run)
            continue
        if run.key not in read:
            record = tables.read(run.outputs.record)
            read[run.key] = record, traces.trace(record, str(run.outputs.record))
        labels = tuple(variant.label for variant in run.cell)
        variants[labels] = run.cell
        by_labels.setdefault(labels, []).append(Finished(run, *read[run.key]))
    if not by_labels:
        raise InputError(
            f"{study.name} has no finished runs at scale {study.scale} in {study.folder}; do some "
            f"first: study run {study.name} --scale {study.scale} -o {study.folder}"
        )
    in_order = dict.fromkeys(tuple(v.label for v in run.cell) for run in study.runs)
    cells = [Cell(variants[each], tuple(by_labels[each])) for each in in_order if each in by_labels]
    return Results(study, tuple(cells), tuple(missing))


def by(cells: Sequence[Cell], place: int | None) -> dict[str, list[Cell]]:
    """Cells by the label of their variant on the axis number `place`; all in one group for None."""
    if place is None:
        return {"": list(cells)}
    panels: dict[str, list[Cell]] = {}
    for cell in cells:
        panels.setdefault(cell.variants[place].label, []).append(cell)
    return panels
