"""The numbers of a figure: axes, and lines with their spread over seeds.

Figures and tables take their numbers from here, so they cannot differ. matplotlib is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpi_ntkdfl.metrics import Metric


@dataclass(frozen=True)
class Axis:
    """A quantity on an axis.

    Attributes:
        name: name of the quantity, for programs.
        label: label with the unit, for people.
        log: whether the axis is logarithmic.
        unit: the unit to write at the ticks.
        whole: whether ticks are at whole numbers only.
        from_zero: whether a linear axis begins at 0.
        ticks: names of the positions 0, 1, ..., for an axis without an order, such as one of hospitals.
    """

    name: str
    label: str
    log: bool = False
    unit: str = ""
    whole: bool = False
    from_zero: bool = False
    ticks: tuple[str, ...] = ()

    @classmethod
    def of(cls, metric: Metric, log: bool = False) -> Axis:
        """The axis of a metric; `log` makes it logarithmic even if the metric is not."""
        return cls(
            name=metric.name,
            label=metric.title,
            log=metric.log or log,
            unit=metric.unit if metric.unit == "B" else "",
            whole=metric.counts and not metric.unit,
            from_zero="panel" in metric.places,
        )


@dataclass(frozen=True)
class Series:
    """A line: mean and standard deviation (divisor n - 1) over seeds at some points.

    NaN and infinities are measured values; they are gaps in the drawn line.

    Attributes:
        label: its label in the legend; lines with equal labels look the same in every panel of a figure.
        method: the method whose colour and marker it has; empty if it belongs to no method.
        x, mean, sd: `[point]`; `sd` is NaN for one seed.
        seeds: number of seeds of each point, `[point]`.
        start: whether a point is the start of a run, before any round, `[point]`.
        published: whether these are points of a publication, not of runs.
        band: lower and upper end of a band `[point]` that is not the deviation over seeds, such as
            percentiles of clients; None for the deviation.
    """

    label: str
    method: str
    x: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    seeds: np.ndarray
    start: np.ndarray
    published: bool = False
    band: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def ends(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Lower and upper end of its band, `[point]`; None if it has none."""
        if self.band is not None:
            return self.band
        return (self.mean - self.sd, self.mean + self.sd) if (self.seeds > 1).any() else None


@dataclass(frozen=True)
class Panel:
    """Axes with lines.

    Attributes:
        title: the text above the axes; empty for none.
        x, y: the axes.
        lines: its lines in the order of the legend.
        rows: of a heat map, whose rows are the lines and whose colours are `y`; else None. The names of
            the columns are `x.ticks`.
    """

    title: str
    x: Axis
    y: Axis
    lines: tuple[Series, ...]
    rows: Axis | None = None


def over_seeds(
    label: str,
    method: str,
    x: np.ndarray,
    values: np.ndarray,
    start: np.ndarray | None = None,
    left_out: np.ndarray | None = None,
) -> Series:
    """A line of `values` `[seed, point]`.

    Args:
        label: label of the line.
        method: method of the line.
        x: `[point]`.
        values: `[seed, point]`.
        start: whether a point is the start of a run, `[point]`; None: no point is.
        left_out: points that are not part of the line, `[point]`; see `no_point`.
    """
    shown = np.full(len(x), True) if left_out is None else ~left_out
    x, values = x[shown], values[:, shown]
    starts = np.full(len(x), False) if start is None else start[shown]
    with np.errstate(invalid="ignore"):  # infinities have no deviation: NaN
        sd = values.std(axis=0, ddof=1) if len(values) > 1 else np.full(len(x), np.nan)
        mean = values.mean(axis=0)
    return Series(label, method, x, mean, sd, np.full(len(x), len(values)), starts)


def at_points(label: str, method: str, several: Sequence[tuple[float, np.ndarray]]) -> Series:
    """A line from the place of each point and its values `[seed]`; numbers of seeds may differ."""
    every = [over_seeds(label, method, np.array([x]), each[:, None]) for x, each in several]
    parts = [(line.x, line.mean, line.sd, line.seeds, line.start) for line in every]
    x, mean, sd, seeds, start = map(np.concatenate, zip(*parts, strict=True))
    return Series(label, method, x, mean, sd, seeds, start)


def no_point(x: Metric, y: Metric, log_x: bool, across: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Marks where a line has no point, `[point]` bool.

    A line has no point where x is 0 or less on a logarithmic axis, and where a count does not exist. A
    NaN of another metric is a point.

    Args:
        x: the quantity of the horizontal axis.
        y: the quantity of the vertical axis.
        log_x: whether the axis of x is logarithmic.
        across: values of x, `[point]`.
        up: values of y, `[seed, point]`.
    """
    missing = across <= 0 if log_x else np.full(len(across), False)
    if x.counts:
        missing = missing | np.isnan(across)
    if y.counts:
        missing = missing | np.isnan(up).any(axis=0)
    return missing
