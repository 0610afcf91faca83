"""The numbers of a study's figures, for drawing and for tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from mpi_ntkdfl.analysis import plots
from mpi_ntkdfl.analysis.panels import Axis, Panel, Series, at_points, no_point, over_seeds
from mpi_ntkdfl.metrics import ACCURACY, MEAN_TAU, METRICS, ROUNDS
from mpi_ntkdfl.runtime.looks import LineStyle
from mpi_ntkdfl.studies import maps, privacy, weights
from mpi_ntkdfl.studies.collect import Cell, Results, by
from mpi_ntkdfl.studies.definition import Figure
from mpi_ntkdfl.studies.published import with_published


@dataclass(frozen=True)
class Drawing:
    """A figure in numbers.

    Attributes:
        figure: its definition.
        panels: its panels in reading order.
        looks: how the lines of each method look, by the method's name, without methods that have no look.
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
        choosing = [c for c in results.cells if any(f.record[MEAN_TAU].any() for f in c.finished)]
        panels = [_taus(cell) for cell in choosing or results.cells]
    elif figure.kind == "sites":
        panels = _sites(results, figure)
    elif figure.kind == "privacy":
        panels = [_privacy(results)]
    elif figure.kind == "selection":
        panels = [_selection(cell) for cell in results.cells]
    elif figure.kind == "map":
        panels = maps.over_axes(results, figure)
    elif figure.kind == "fastest":
        panels = maps.over_links(results, figure)
    else:
        panels = _over_axis(results, figure)
    if results.study.scale == "paper":
        panels = [with_published(panel, figure) for panel in panels]
    looks = plots.looks_of(cell.group() for cell in results.cells)
    return Drawing(figure, tuple(panels), looks)


# ---------------------------------------------------------------------------------- kinds of figure


def _curves(results: Results, figure: Figure) -> list[Panel]:
    place = _place(results, figure.panels)
    panels = []
    for title, cells in by(results.cells, place).items():
        for x in figure.x:
            for y in (name for name in figure.y if name != x):
                guided = bool(figure.guides)
                across = Axis.of(METRICS[x], guided or figure.log_x)
                up = Axis.of(METRICS[y], guided)
                lines = (
                    _curve(cell, cell.label_without([place]), x, y, guided or figure.log_x)
                    for cell in cells
                    if cell.has(x) and cell.has(y)
                )
                kept = tuple(line for line in lines if len(line.x))
                panels.append(Panel(title, across, up, kept))
    return panels


def _curve(cell: Cell, label: str, x: str, y: str, log: bool) -> Series:
    """The line of a cell: metric `y` against metric `x`."""
    across, up = cell.values(x).mean(axis=0), cell.values(y)
    log_x = METRICS[x].log or log
    left_out = no_point(METRICS[x], METRICS[y], log_x, across, up)
    left_out |= cell.group().untested(x) | cell.group().untested(y)
    return over_seeds(label, cell.method, across, up, cell.rounds() == 0, left_out)


def _over_axis(results: Results, figure: Figure) -> list[Panel]:
    """`ends` and `drift`: one point per variant of an axis."""
    axis_place, place = results.place(figure.x[0]), _place(results, figure.panels)
    axis = results.study.definition.axes[axis_place]
    x = Axis(axis.name, axis.label or axis.name, axis.log)
    panels = []
    for title, cells in by(results.cells, place).items():
        for name in [None] if figure.kind == "drift" else figure.y:
            points: dict[tuple[str, str], list[tuple[float, np.ndarray]]] = {}
            for cell in cells:
                variant = cell.variants[axis_place]
                assert variant.value is not None
                label = cell.label_without([axis_place, place], variant.family)
                for kind, values in _at_the_end(cell, name).items():
                    line = ", ".join(part for part in (label, kind) if part), cell.method
                    points.setdefault(line, []).append((variant.value, values))
            lines = tuple(_ascending(*line, several) for line, several in points.items())
            y = _CHANGE if name is None else Axis.of(METRICS[name])
            panels.append(Panel(title, x, y, lines))
    return panels


_CHANGE = Axis("kernel-change", "||K' - K|| / ||K||")


def _at_the_end(cell: Cell, name: str | None) -> Mapping[str, np.ndarray]:
    """The values of a cell in a figure over an axis: `[seed]` by the kind of line.

    Args:
        cell: a cell of the study.
        name: name of a metric, for its values at the end of the runs; None for the change of the kernel.
    """
    if name is None:
        return weights.drift(cell)
    ends = cell.ends(name) if cell.has(name) else None
    if ends is None or (METRICS[name].counts and np.isnan(ends).any()):
        return {}
    return {"": ends}


def _ascending(label: str, method: str, several: list[tuple[float, np.ndarray]]) -> Series:
    """A line through the points in the order of their places."""
    return at_points(label, method, sorted(several, key=lambda point: point[0]))


def _sites(results: Results, figure: Figure) -> list[Panel]:
    """The last values of runs by site: one panel per metric.

    A metric by client and site has a panel for each cell whose clients end with different models.
    """
    place = _place(results, figure.panels)
    panels = []
    for title, cells in by(results.cells, place).items():
        for name in figure.y:
            lines: list[Series] = []
            x, y = Axis("site", ""), Axis.of(METRICS[name])
            # The mean is what tables show; here every site stands for itself.
            y = replace(y, label=y.label.partition(", mean ")[0])
            for cell in (each for each in cells if each.has(name)):
                names = cell.finished[0].site_names
                last = cell.rounds()[-1:]
                values = np.stack([f.record[name][f.rows(last)[0]] for f in cell.finished])
                if values.shape[-1] != len(names):
                    continue  # of clients that are no sites, such as one with all samples
                x = Axis("site", "", ticks=names)
                if values.ndim == 2:
                    lines.append(_by_site(cell.label_without([place]), cell.method, values))
                    continue
                if np.array_equal(values, values[:, :1].repeat(values.shape[1], 1), equal_nan=True):
                    continue  # all clients end with one model
                models = [f"model of {site}" for site in names]
                own = [_by_site(m, "", values[:, client]) for client, m in enumerate(models)]
                panels.append(Panel(cell.label, replace(x, label="tested on"), y, tuple(own)))
            if lines:
                panels.append(Panel(title, x, y, tuple(lines)))
    return panels


def _by_site(label: str, method: str, values: np.ndarray) -> Series:
    """Points at the sites 0, 1, ... from `values` `[seed, site]`; NaN if no seed has a number."""
    return over_seeds(label, method, np.arange(values.shape[1], dtype=np.float64), values)


def _taus(cell: Cell) -> Panel:
    """Fraction of clients that chose each tau, against rounds."""
    rounds = cell.rounds()
    rounds = rounds[rounds > 0]
    chosen = [f.record[MEAN_TAU][f.rows(rounds)] for f in cell.finished]
    every = np.unique(np.concatenate([each.ravel() for each in chosen]))
    lines = tuple(
        over_seeds(
            f"tau = {tau}",
            "",
            rounds.astype(np.float64),
            np.array([(each == tau).mean(axis=1) for each in chosen]),
        )
        for tau in every.tolist()
    )
    return Panel(cell.label, Axis.of(ROUNDS), Axis("share", "share of clients"), lines)


def _selection(cell: Cell) -> Panel:
    """Accuracy of the average of the first n clients in some orders."""
    numbers, accuracies = weights.selection(cell)
    lines = tuple(
        over_seeds(order, "", numbers.astype(np.float64), values)
        for order, values in accuracies.items()
    )
    x = Axis("clients", "clients averaged", log=True)
    return Panel(cell.label, x, Axis(ACCURACY.name, "accuracy on the other half"), lines)


def _privacy(results: Results) -> Panel:
    """Accuracy at the end against what an audit reconstructs; a line for each family of variants."""
    lines: dict[tuple[str, str], list[tuple[float, np.ndarray]]] = {}
    for cell in results.cells:
        family = ", ".join(v.family for v in cell.variants if v.family) or cell.label
        point = privacy.reconstructed(cell), cell.ends(ACCURACY.name)
        lines.setdefault((family, cell.method), []).append(point)
    x = Axis("psnr", "PSNR of reconstructed samples (dB)")
    drawn = tuple(_ascending(*line, points) for line, points in lines.items())
    return Panel("", x, Axis.of(ACCURACY), drawn)


def _place(results: Results, axis: str | None) -> int | None:
    return None if axis is None else results.place(axis)
