"""What a metric is: a row of the table `metrics.METRICS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mpi_ntkdfl.runtime.units import readable, three_digits

Axes = Literal[
    "row", "row,client", "round", "round,client", "round,phase", "round,rank", "round,rank,phase"
]
"""Axes of a dataset. A `row` is an evaluation, a `round` a round, evaluated or not."""

Place = Literal["x", "panel", "y", "mark", "target", "end", "show", "live", "progress"]
"""Where a metric appears:

`x`, `y`: it may be drawn on this axis by `plot` and studies; `panel`: `plot` draws against it by default;
`mark`: an accuracy, so `plot --target` can be marked on its axis; `target`, `end`: columns of `compare`
up to a target accuracy, and at the last row; `show`: a column of `show`; `live`: in the lines of
`show --follow`; `progress`: in the lines that a run prints.
"""


@dataclass(frozen=True)
class About:
    """What reductions may need to know of a record beside the values.

    Attributes:
        rounds: rounds done at each row, `[row]`.
        phases: names of the phases of the dataset, if it has that axis.
    """

    rounds: np.ndarray
    phases: Sequence[str] = ()


Reduction = Callable[[np.ndarray, About], np.ndarray]
"""From the values of a dataset to one number per row or round."""


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    Attributes:
        name: by which `plot` and studies know it: lower-case letters, digits and dashes.
        label: what it is, for axes of figures, without the unit.
        axes: of its dataset.
        dataset: path in the record, for a metric that is measured; empty: `metrics/NAME`.
        source: name of the metric from whose dataset this one is reduced, if it has no dataset.
        dtype: of the dataset: `f8` or `i8`. NaN of a count means that there is no such number.
        unit: such as `B` or `s`; empty for a number without one.
        log: whether its axis is logarithmic in figures.
        optional: whether records of earlier versions may lack it.
        measure: of a metric that a user brings: from an `evaluate.View` of one model to its number. It is
            called for each client with the axes `row,client`, once for the average with the axes `row`.
        reduce: from the dataset to one number per row or round; None: the mean over clients, or the sum
            over phases, whatever there is.
        cumulative: whether the values per round are totals since the start. Others are summed.
        places: where it appears.
        head: its column in tables; empty: the name.
        column: its name in CSV files; empty: the name with `_` for `-`.
    """

    name: str
    label: str
    axes: Axes = "row"
    dataset: str = ""
    source: str = ""
    dtype: Literal["f8", "i8"] = "f8"
    unit: str = ""
    log: bool = False
    optional: bool = False
    measure: Callable[[Any], float] | None = None
    reduce: Reduction | None = None
    cumulative: bool = False
    places: frozenset[Place] = frozenset({"y", "end", "show"})
    head: str = ""
    column: str = ""

    def __post_init__(self) -> None:
        """Fills in what follows from the name."""
        defaults = {
            "dataset": "" if self.source else f"metrics/{self.name}",
            "head": self.name,
            "column": self.name.replace("-", "_"),
        }
        for field, default in defaults.items():
            object.__setattr__(self, field, getattr(self, field) or default)
        # A run may have been without the code that measures it.
        object.__setattr__(self, "optional", self.optional or self.measure is not None)

    @property
    def by_round(self) -> bool:
        """Whether its dataset has one entry per round; else it has one per evaluation."""
        return self.axes.startswith("round")

    @property
    def by_rank(self) -> bool:
        """Whether its dataset has an axis of ranks."""
        return "rank" in self.axes.split(",")

    @property
    def by_client(self) -> bool:
        """Whether its dataset has an axis of clients."""
        return "client" in self.axes.split(",")

    @property
    def of_clients(self) -> bool:
        """Whether it is measured on each client's own model, so only with `evaluation.clients`."""
        return self.axes == "row,client" and not self.counts

    @property
    def counts(self) -> bool:
        """Whether it is a count, which NaN can only say that there is none of."""
        return self.dtype == "i8"

    @property
    def title(self) -> str:
        """The label with the unit, as on an axis; bytes have their unit at the ticks."""
        return f"{self.label} ({self.unit})" if self.unit not in ("", "B") else self.label

    def text(self, value: float) -> str:
        """A value for people."""
        if self.unit == "B":
            return readable(value)
        if self.unit == "s":
            return three_digits(value)
        if self.counts:
            return f"{value:.1f}".removesuffix(".0")
        return f"{value:.4g}" if self.log else f"{value:.4f}"

    def curve(self, values: np.ndarray, about: About) -> np.ndarray:
        """One number per row, `[row]` float64: the state after `about.rounds` rounds.

        Args:
            values: of its dataset, or that of its source.
            about: the record.
        """
        with np.errstate(invalid="ignore"):  # infinities of two signs make NaN
            if self.reduce is not None:
                reduced = self.reduce(values, about)
            elif self.axes == "row,client":
                reduced = values.mean(axis=1)
            else:
                reduced = values.sum(axis=tuple(range(1, values.ndim)))
            if self.by_round:
                totals = reduced if self.cumulative else np.cumsum(reduced)
                reduced = np.concatenate([[0.0], totals])[about.rounds]
        return np.asarray(reduced, dtype=np.float64)
