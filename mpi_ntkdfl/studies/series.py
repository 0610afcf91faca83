"""The numbers of a figure. Drawing and tables both take them from here, so they cannot differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpi_ntkdfl.analysis import plots
from mpi_ntkdfl.runtime.looks import LineStyle
from mpi_ntkdfl.studies import weights
from mpi_ntkdfl.studies.collect import QUANTITIES, Cell, Results, by
from mpi_ntkdfl.studies.definition import Figure


@dataclass(frozen=True)
class Series:
    """A line: mean and standard deviation (divisor n - 1) over seeds at some points.

    Attributes:
        label: in the legend; equal labels look alike in every panel.
        method: whose colour and marker it has; empty for a line of no method.
        x, mean, sd: `[point]`; `sd` is NaN for one seed.
        seeds: behind each point, `[point]`.
        published: points of a publication, not ours.
    """

    label: str
    method: str
    x: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    seeds: np.ndarray
    published: bool = False


@dataclass(frozen=True)
class Panel:
    """Axes with lines.

    Attributes:
        title: above them; empty for none.
        x, y: what the axes show.
        x_label, y_label, x_log, y_log: their labels and scales.
        lines: in the order of the legend.
    """

    title: str
    x: str
    y: str
    x_label: str
    y_label: str
    x_log: bool
    y_log: bool
    lines: tuple[Series, ...]


@dataclass(frozen=True)
class Drawing:
    """A figure in numbers.

    Attributes:
        figure: its definition.
        panels: in reading order.
        looks: of the methods' lines, by the method's name; methods without a look are left out.
    """

    figure: Figure
    panels: tuple[Panel, ...]
    looks: Mapping[str, LineStyle]


def drawing(results: Results, figure: Figure) -> Drawing:
    """Computes a figure from finished runs; published points are added at the paper's scale."""
    if figure.kind == "curves":
        panels = _curves(results, figure)
    elif figure.kind == "taus":
        # Methods without steps to choose are recorded with tau 0.
        choosing = [c for c in results.cells if any(f.record.tau.any() for f in c.finished)]
        panels = [_taus(cell) for cell in choosing or results.cells]
    elif figure.kind == "selection":
        panels = [_selection(cell) for cell in results.cells]
    else:
        panels = _over_axis(results, figure)
    if results.study.scale == "paper":
        panels = [_with_published(panel, figure) for panel in panels]
    looks = plots.looks_of(cell.group() for cell in results.cells)
    return Drawing(figure, tuple(panels), looks)


def over_seeds(
    label: str, method: str, x: np.ndarray, values: np.ndarray, log: tuple[bool, bool]
) -> Series:
    """A line of `values` `[seed, point]`; points that an axis cannot show are left out.

    Args:
        label: of the line.
        method: of the line.
        x: `[point]`.
        values: `[seed, point]`.
        log: whether x and y are logarithmic.
    """
    shown = np.isfinite(x) & np.isfinite(values.sum(axis=0))
    if log[0]:
        shown &= x > 0
    if log[1]:
        shown &= (values > 0).all(axis=0)
    x, values = x[shown], values[:, shown]
    nothing = np.full(len(x), np.nan)
    sd = values.std(axis=0, ddof=1) if len(values) > 1 else nothing
    return Series(label, method, x, values.mean(axis=0), sd, np.full(len(x), len(values)))


# ---------------------------------------------------------------------------------- kinds of figure


def _curves(results: Results, figure: Figure) -> list[Panel]:
    place = _place(results, figure.panels)
    panels = []
    for panel, cells in by(results.cells, place).items():
        for x in figure.x:
            for y in (name for name in figure.y if name != x):
                log = (
                    QUANTITIES[x].log or bool(figure.guides),
                    QUANTITIES[y].log or bool(figure.guides),
                )
                lines = [
                    over_seeds(
                        _line_label(cell, [place]),
                        cell.method,
                        cell.values(x).mean(axis=0),
                        cell.values(y),
                        log,
                    )
                    for cell in cells
                ]
                labels = QUANTITIES[x].label, QUANTITIES[y].label
                kept = tuple(line for line in lines if len(line.x))
                panels.append(Panel(panel, x, y, *labels, *log, kept))
    return panels


def _over_axis(results: Results, figure: Figure) -> list[Panel]:
    """`ends` and `drift`: a point a variant of an axis."""
    assert figure.axis is not None
    axis_place, place = _place(results, figure.axis), _place(results, figure.panels)
    assert axis_place is not None
    axis = results.study.definition.axes[axis_place]
    drift = figure.kind == "drift"
    quantities = ["kernel-change"] if drift else list(figure.y)
    panels = []
    for panel, cells in by(results.cells, place).items():
        for y in quantities:
            points: dict[tuple[str, str], list[tuple[float, np.ndarray]]] = {}
            for cell in cells:
                variant = cell.variants[axis_place]
                label = _line_label(cell, [axis_place, place], variant.family)
                measured = weights.drift(cell) if drift else {"": cell.ends(y)}
                for name, values in measured.items():
                    which = ", ".join(part for part in (label, name) if part)
                    assert variant.value is not None
                    points.setdefault((which, cell.method), []).append((variant.value, values))
            lines = tuple(_points(*who, found) for who, found in points.items())
            label = "||K' - K|| / ||K||" if drift else QUANTITIES[y].label
            log = not drift and QUANTITIES[y].log
            x_label = axis.label or axis.name
            panels.append(Panel(panel, axis.name, y, x_label, label, axis.log, log, lines))
    return panels


def _points(label: str, method: str, found: Sequence[tuple[float, np.ndarray]]) -> Series:
    """A line with a point for each of some values of an axis, whose numbers of seeds may differ."""
    known = [point for point in found if np.isfinite(point[1]).all()]
    ordered = sorted(known, key=lambda point: point[0])
    return Series(
        label,
        method,
        np.array([x for x, _ in ordered]),
        np.array([values.mean() for _, values in ordered]),
        np.array([values.std(ddof=1) if len(values) > 1 else np.nan for _, values in ordered]),
        np.array([len(values) for _, values in ordered]),
    )


def _taus(cell: Cell) -> Panel:
    """Share of clients by the tau they chose, round by round."""
    rounds = cell.rounds()
    rounds = rounds[rounds > 0]
    chosen = [f.record.tau[f.rows(rounds)] for f in cell.finished]
    every = np.unique(np.concatenate([each.ravel() for each in chosen]))
    lines = tuple(
        over_seeds(
            f"tau = {tau}",
            "",
            rounds.astype(np.float64),
            np.array([(each == tau).mean(axis=1) for each in chosen]),
            (False, False),
        )
        for tau in every.tolist()
    )
    return Panel(cell.label, "rounds", "share", "rounds", "share of clients", False, False, lines)


def _selection(cell: Cell) -> Panel:
    """Accuracy of the average of the first n clients in some orders."""
    numbers, found = weights.selection(cell)
    lines = tuple(
        over_seeds(order, "", numbers.astype(np.float64), values, (True, False))
        for order, values in found.items()
    )
    labels = "clients averaged", "accuracy on the other half"
    return Panel(cell.label, "clients", "accuracy", *labels, True, False, lines)


def _place(results: Results, axis: str | None) -> int | None:
    names = [each.name for each in results.study.definition.axes]
    return None if axis is None else names.index(axis)


def _line_label(cell: Cell, without: Sequence[int | None], family: str = "") -> str:
    """What tells a line apart in its panel: the variants of the axes not drawn otherwise."""
    parts = [v.label for place, v in enumerate(cell.variants) if place not in without]
    return ", ".join(part for part in [*parts, family] if part)


# ---------------------------------------------------------------------------------------- published


def _with_published(panel: Panel, figure: Figure) -> Panel:
    if figure.published is None:
        return panel
    methods = {line.label: line.method for line in panel.lines}
    added = [
        Series(
            line.line,
            methods.get(line.line, ""),
            np.array(line.x),
            np.array(line.y),
            np.full(len(line.x), np.nan),
            np.zeros(len(line.x), dtype=int),
            published=True,
        )
        for line in figure.published.lines
        if line.panel in (panel.title, panel.y)
    ]
    return Panel(
        panel.title,
        panel.x,
        panel.y,
        panel.x_label,
        panel.y_label,
        panel.x_log,
        panel.y_log,
        (*panel.lines, *added),
    )
