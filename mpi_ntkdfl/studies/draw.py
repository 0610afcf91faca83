"""Draws the figures of studies. matplotlib is imported when something is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mpi_ntkdfl.analysis import drawing, style
from mpi_ntkdfl.analysis.panels import Panel, Series
from mpi_ntkdfl.metrics import ROUNDS
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.looks import GREY, LineStyle
from mpi_ntkdfl.studies import draw_maps
from mpi_ntkdfl.studies.series import Drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ACROSS = 3
"""Number of panels in a row."""


def write(path: Path, drawn: Drawing) -> None:
    """Draws and writes a figure; equal input gives equal bytes.

    Raises:
        InputError: for another suffix than pdf, png, svg, or if the file cannot be written.
    """
    drawing.save(path, lambda: figure(drawn))


def svg(drawn: Drawing) -> str:
    """A figure as SVG text."""
    return drawing.svg(lambda: figure(drawn))


def figure(drawn: Drawing) -> Figure:
    """All panels of a figure, with one legend below them.

    Raises:
        InputError: if there are more lines than can be told apart.
    """
    if any(panel.rows for panel in drawn.panels):
        return draw_maps.figure(drawn)
    count = len(drawn.panels)
    across = min(count, _ACROSS) if count != 4 else 2
    made, axes = drawing.canvas(count, across)
    looks = _looks(drawn)
    explained: drawing.Legend = []
    for panel, ax in zip(drawn.panels, axes, strict=True):
        explained += _panel(ax, panel, looks, drawn)
    _share_vertical_axes(axes, [panel.y.name for panel in drawn.panels], across)
    made.suptitle(drawn.figure.title)
    once = dict(reversed(explained))  # what is drawn first explains a name
    names = dict.fromkeys(name for name, _ in explained)
    drawing.legend(made, [(name, once[name]) for name in names], drawing.spread_shown(drawn.panels))
    return made


def _looks(drawn: Drawing) -> dict[str, LineStyle]:
    """A look for every label: that of the method, or a spare one for lines without a method."""
    methods: dict[str, str] = {}
    for panel in drawn.panels:
        for line in panel.lines:
            if not line.published:
                methods.setdefault(line.label, line.method)
    of_methods = [label for label, method in methods.items() if method]
    styles = style.styles((methods[label] for label in of_methods), drawn.looks)
    others = [label for label, method in methods.items() if not method]
    if len(others) > len(style.SPARE):
        raise InputError(
            f"figure {drawn.figure.name}: at most {len(style.SPARE)} lines can be told apart, got "
            f"{len(others)}: {', '.join(others)}"
        )
    return {
        **dict(zip(of_methods, styles, strict=True)),
        **dict(zip(others, style.SPARE, strict=False)),
    }


def _panel(
    ax: Axes, panel: Panel, looks: Mapping[str, LineStyle], drawn: Drawing
) -> drawing.Legend:
    own = Panel(panel.title, panel.x, panel.y, tuple(x for x in panel.lines if not x.published))
    explained = drawing.lines(ax, own, [looks[line.label] for line in own.lines])
    for line in panel.lines:
        if line.published:
            explained += _published(ax, line, looks.get(line.label))
    explained += _guides(ax, own, drawn)
    drawing.scale(ax, panel)
    if panel.title:
        ax.set_title(panel.title)
    if drawn.figure.kind == "taus":
        ends = [each for line in panel.lines for each in (line.ends or ())]
        reach = np.concatenate([np.array([-0.05, 1.05]), *ends])
        ax.set_ylim(float(np.nanmin(reach)), float(np.nanmax(reach)))
    elif drawn.figure.limits is not None:
        ax.set_ylim(drawn.figure.limits)
    elif drawn.figure.kind == "curves" and not panel.y.log:
        drawing.fit_after_start(ax, panel.lines)
    return explained


def _published(ax: Axes, line: Series, look: LineStyle | None) -> drawing.Legend:
    """The look of published points: hollow markers without a line, in the colour of their method."""
    (markers,) = ax.plot(
        line.x,
        line.mean,
        linestyle="",
        marker=look.marker if look else "o",
        markersize=6,
        markerfacecolor="none",
        markeredgecolor=look.color if look else GREY,
        label="published",
    )
    return [("published", markers)]


def _guides(ax: Axes, panel: Panel, drawn: Drawing) -> drawing.Legend:
    """Power laws through the first point of the first line."""
    explained: drawing.Legend = []
    if not panel.lines or not len(panel.lines[0].x):
        return explained
    first = panel.lines[0]
    end = max(float(line.x.max()) for line in panel.lines if len(line.x))
    x = np.array([first.x[0], end])
    for exponent in drawn.figure.guides:
        symbol = "K" if panel.x.name == ROUNDS.name else "(K T)"
        (guide,) = ax.plot(x, first.mean[0] * (x / first.x[0]) ** exponent, **style.GUIDE)
        explained.append((f"{symbol}^{exponent:g}", guide))
    return explained


def _share_vertical_axes(axes: Sequence[Axes], names: Sequence[str], across: int) -> None:
    """Gives panels of one quantity the same range, so that they can be compared, and one label per row.

    Args:
        axes: the panels.
        names: the name of each panel's quantity.
        across: number of panels in a row.
    """
    for name in dict.fromkeys(names):
        own = [ax for ax, each in zip(axes, names, strict=True) if each == name]
        if len({ax.get_yscale() for ax in own}) > 1:
            continue  # one of them has nothing that a logarithmic axis could show
        ends = np.array([ax.get_ylim() for ax in own])
        for ax in own:
            ax.set_ylim(float(ends[:, 0].min()), float(ends[:, 1].max()))
    for place, ax in enumerate(axes):
        if place % across and names[place] == names[place - 1]:
            ax.set_ylabel("")
