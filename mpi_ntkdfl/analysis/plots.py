"""The figures of `plot`: a metric against rounds, bytes or seconds, with one line per configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mpi_ntkdfl.analysis import drawing, style
from mpi_ntkdfl.analysis.panels import Axis, Panel, no_point, over_seeds
from mpi_ntkdfl.analysis.traces import Group
from mpi_ntkdfl.metrics import ACCURACY, METRICS, Metric, Place, at
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.looks import LineStyle
from mpi_ntkdfl.runtime.registry import unknown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Request:
    """A figure to draw.

    Attributes:
        x: names of the metrics of the horizontal axes, one panel each; empty for the default ones.
        y: name of a metric.
        ylim: ends of the vertical axis; None fits them to the data.
        target: accuracy to mark, or None.
        title: the text above the panels, or None.
        labels: names of the groups in the legend; empty for the groups' own labels.
        percentiles: percentiles of clients, which the band shows instead of the deviation over seeds, or
            None.
    """

    x: Sequence[str] = ()
    y: str = ACCURACY.name
    ylim: tuple[float, float] | None = None
    target: float | None = None
    title: str | None = None
    labels: Sequence[str] = ()
    percentiles: tuple[float, float] | None = None


def write(path: Path, groups: Sequence[Group], request: Request) -> None:
    """Draws and writes a figure; the same input gives the same bytes.

    Raises:
        InputError: for another suffix than pdf, png, svg; for metrics that do not exist; if there is
            nothing to draw, or the file cannot be written.
    """
    _refuse(groups, request)
    drawing.save(path, lambda: figure(groups, request))


def figure(groups: Sequence[Group], request: Request) -> Figure:
    """One panel per x, with one line per group: the mean over its runs, with a band of one deviation.

    Raises:
        InputError: for metrics that do not exist, or more lines than can be told apart.
    """
    made = panels(groups, request)
    looks = style.styles((group.method for group in groups), looks_of(groups))
    drawn, axes = drawing.canvas(len(made), len(made), share_y=True)
    explained: drawing.Legend = []
    for ax, panel in zip(axes, made, strict=True):
        explained = drawing.lines(ax, panel, looks)
        if request.target is not None:
            name = f"target {request.target:g}"
            explained.append((name, ax.axhline(request.target, label=name, **style.GUIDE)))
        drawing.scale(ax, panel)
    for ax in axes[1:]:
        ax.set_ylabel("")
    if request.ylim is not None:
        axes[0].set_ylim(request.ylim)
    elif not made[0].y.log:
        every = [line for panel in made for line in panel.lines]
        drawing.fit_after_start(axes[0], every, [] if request.target is None else [request.target])
    if request.title:
        drawn.suptitle(request.title)
    band = "" if request.percentiles is None else "{:g}th to {:g}th percentile of clients"
    named = band.format(*(request.percentiles or ()))
    drawing.legend(drawn, explained, drawing.spread_shown(made), named)
    return drawn


def panels(groups: Sequence[Group], request: Request) -> list[Panel]:
    """The numbers of the figure.

    Raises:
        InputError: for metrics that do not exist.
    """
    metrics = _metrics(groups)
    y = _find(request.y, metrics, "y")
    names = request.labels or [_name(group) for group in groups]
    made = []
    for key in request.x or [metric.name for metric in at("panel")]:
        x = _find(key, metrics, "x")
        lines = []
        for group, name in zip(groups, names, strict=True):
            across, up = group.values(x.name).mean(axis=0), group.values(y.name)
            left_out = no_point(x, y, x.log, across, up)
            left_out |= group.untested(x.name) | group.untested(y.name)
            start = group.shared_rounds() == 0
            line = over_seeds(name, group.method, across, up, start, left_out)
            if request.percentiles is not None:
                low, high = _of_clients(group, y.name, request.percentiles)
                line = dataclasses.replace(line, band=(low[~left_out], high[~left_out]))
            lines.append(line)
        made.append(Panel("", Axis.of(x), Axis.of(y), tuple(lines)))
    return made


def _of_clients(group: Group, name: str, shares: tuple[float, float]) -> np.ndarray:
    """Percentiles of clients at a group's rounds, `[percentile, row]`.

    Raises:
        InputError: if its records do not have the metric by client.
    """
    ends = group.percentiles(name, shares)
    if ends is None:
        possible = {each for trace in group.traces for each in trace.by_client}
        raise InputError(f"--percentiles: {unknown('metric by client', name, possible)}")
    return ends


def _metrics(groups: Sequence[Group]) -> dict[str, Metric]:
    """The metrics of the table, and those that only the records have."""
    metrics = dict(METRICS)
    for group in groups:
        metrics.update(group.metrics())
    return metrics


def _find(name: str, metrics: Mapping[str, Metric], place: Place) -> Metric:
    possible = {metric.name: metric for metric in at(place, list(metrics.values()))}
    if name not in possible:
        raise InputError(
            f"--{place}: {unknown('metric', name, possible)}; a metric of your own is in the record "
            "if the run was started with --plugin FILE.py"
        )
    return possible[name]


def _refuse(groups: Sequence[Group], request: Request) -> None:
    """Refuses figures that would be empty or misleading."""
    if request.labels and len(request.labels) != len(groups):
        configurations = "; ".join(_name(group) for group in groups)
        raise InputError(
            f"--label is needed once for each of {len(groups)} configurations ({configurations}), got "
            f"{len(request.labels)}"
        )
    metrics = _metrics(groups)
    y = _find(request.y, metrics, "y")
    for name in request.x:
        _find(name, metrics, "x")
    if request.target is not None and "mark" not in y.places:
        raise InputError(f"--target is an accuracy and cannot be marked in a figure of {request.y}")
    if (
        request.percentiles is not None
        and not 0 <= request.percentiles[0] < request.percentiles[1] <= 100
    ):
        raise InputError(
            "--percentiles needs LOW below HIGH, from 0 to 100, got {:g} {:g}".format(
                *request.percentiles
            )
        )
    if request.ylim is not None and not request.ylim[0] < request.ylim[1]:
        raise InputError(
            f"--ylim needs LOW below HIGH, got {request.ylim[0]:g} {request.ylim[1]:g}"
        )
    for axis, name in (("y", y.name), *(("x", name) for name in request.x)):
        for group in groups:
            if not np.isfinite(group.values(name)).all(axis=0).any():
                files = ", ".join(trace.name for trace in group.traces)
                raise InputError(
                    f"no {name} to draw in {files}; leave out or choose another --{axis}"
                )


def looks_of(groups: Iterable[Group]) -> dict[str, LineStyle]:
    """The looks of methods as recorded, by the method's name."""
    traces = [trace for group in groups for trace in group.traces]
    return {trace.method: trace.look for trace in traces if trace.look is not None}


def _name(group: Group) -> str:
    return f"{group.method_label}, {group.label}" if group.label else group.method_label
