"""Draws the figures of studies in the house style. matplotlib is imported when something is drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpi_ntkdfl.analysis import plots, style
from mpi_ntkdfl.analysis.files import replacing, require_suffix
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.looks import GREY, LineStyle
from mpi_ntkdfl.studies.series import Drawing, Panel, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ACROSS = 3
"""Panels beside one another."""
_BESIDE = 0.09
"""Between markers of a long line, in diagonals of the panel."""

_UNDATED: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}


def write(path: Path, drawing: Drawing) -> None:
    """Draws and writes a figure; the same input gives the same bytes.

    Raises:
        InputError: for another suffix than pdf, png, svg, or if the file cannot be written.
    """
    kind = require_suffix(path, "pdf", "png", "svg")
    with plots.house_style():
        drawn = figure(drawing)
        with replacing(path) as temporary:
            drawn.savefig(temporary, format=kind, metadata=_UNDATED.get(kind))


def svg(drawing: Drawing) -> str:
    """A figure as SVG text."""
    with plots.house_style():
        text = io.StringIO()
        figure(drawing).savefig(text, format="svg", metadata=_UNDATED["svg"])
        return text.getvalue()


def figure(drawing: Drawing) -> Figure:
    """All panels of a figure, with one legend below them.

    Raises:
        InputError: if there are more lines than can be told apart.
    """
    from matplotlib.figure import Figure

    count = len(drawing.panels)
    across = min(count, _ACROSS) if count != 4 else 2
    down = math.ceil(count / across)
    width = style.COLUMN if count == 1 else style.PAGE
    drawn = Figure(figsize=(width, style.HEIGHT * down), layout="constrained")
    axes = drawn.subplots(down, across, squeeze=False).ravel()
    looks = _looks(drawing)
    for spare in axes[count:]:
        spare.set_axis_off()
    for panel, ax in zip(drawing.panels, axes, strict=False):
        _panel(ax, panel, looks, drawing)
    if len({panel.y for panel in drawing.panels}) == 1:
        _share_vertical_axis(list(axes[:count]), across)
    drawn.suptitle(drawing.figure.title)
    _legend(drawn, list(axes[:count]), drawing)
    return drawn


def _looks(drawing: Drawing) -> dict[str, LineStyle]:
    """A look for every label; a line of a method has the method's, others take spare ones."""
    methods: dict[str, str] = {}
    for panel in drawing.panels:
        for line in panel.lines:
            if not line.published:
                methods.setdefault(line.label, line.method)
    known = [label for label, method in methods.items() if method]
    of_methods = style.styles((methods[label] for label in known), drawing.looks)
    looks = dict(zip(known, of_methods, strict=True))
    others = [label for label, method in methods.items() if not method]
    if len(others) > len(style.SPARE):
        raise InputError(
            f"figure {drawing.figure.name}: at most {len(style.SPARE)} lines can be told apart, got "
            f"{len(others)}: {', '.join(others)}"
        )
    return looks | dict(zip(others, style.SPARE, strict=False))


def _panel(ax: Axes, panel: Panel, looks: Mapping[str, LineStyle], drawing: Drawing) -> None:
    many = any(len(line.x) > 10 for line in panel.lines)
    own = [line for line in panel.lines if not line.published]
    for number, line in enumerate(own):
        markers = (number / len(own) * _BESIDE, _BESIDE) if many else None
        ax.plot(
            line.x,
            line.mean,
            label=line.label,
            markevery=markers,
            **style.arguments(looks[line.label]),
        )
        if np.isfinite(line.sd).any():
            ends = line.mean - line.sd, line.mean + line.sd
            ax.fill_between(line.x, *ends, color=looks[line.label].color, alpha=0.2, linewidth=0)
    for line in panel.lines:
        if line.published:
            _published(ax, line, looks)
    _guides(ax, panel, drawing)
    _scale(ax, panel)
    if panel.title:
        ax.set_title(panel.title)
    if drawing.figure.kind == "taus":
        ax.set_ylim(-0.05, 1.05)
    if drawing.figure.kind == "curves":
        _leave_out_start(ax, panel)


def _published(ax: Axes, line: Series, looks: Mapping[str, LineStyle]) -> None:
    """Bare hollow markers in the colour of the method they belong to."""
    look = looks.get(line.label)
    ax.plot(
        line.x,
        line.mean,
        linestyle="",
        marker=look.marker if look else "o",
        markersize=6,
        markerfacecolor="none",
        markeredgecolor=look.color if look else GREY,
        label="published",
    )


def _guides(ax: Axes, panel: Panel, drawing: Drawing) -> None:
    """Power laws through the first point of the first line."""
    if not panel.lines or not len(panel.lines[0].x):
        return
    first = panel.lines[0]
    end = max(float(line.x.max()) for line in panel.lines if len(line.x))
    x = np.array([first.x[0], end])
    for exponent in drawing.figure.guides:
        y = first.mean[0] * (x / first.x[0]) ** exponent
        symbol = "K" if panel.x == "rounds" else "(K T)"
        ax.plot(x, y, label=f"{symbol}^{exponent:g}", **style.GUIDE)


def _scale(ax: Axes, panel: Panel) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator

    ax.set_xlabel(panel.x_label)
    ax.set_ylabel(panel.y_label)
    for log, name in ((panel.x_log, "x"), (panel.y_log, "y")):
        axis = ax.xaxis if name == "x" else ax.yaxis
        if log:
            (ax.set_xscale if name == "x" else ax.set_yscale)("log")
            plots.log_ticks(axis, *(ax.get_xlim() if name == "x" else ax.get_ylim()))
            axis.set_major_formatter("{x:g}")
    if panel.x == "bytes":
        # Fewer ticks than elsewhere: their labels carry a unit, and panels are narrow.
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        ax.xaxis.set_major_formatter(EngFormatter(unit="B"))
    elif not panel.x_log:
        whole = panel.x == "rounds"
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=whole, steps=[1, 2, 5, 10]))


def _leave_out_start(ax: Axes, panel: Panel) -> None:
    """Fits a linear vertical axis to what comes after the start, which would dwarf it."""
    values = [line.mean[1:] if not line.published else line.mean for line in panel.lines]
    later = np.concatenate([*values, np.zeros(0)])
    if panel.y_log or not len(later):
        return
    low, high = float(later.min()), float(later.max())
    margin = 0.05 * (high - low) or 0.05
    ax.set_ylim(low - margin, high + margin)


def _share_vertical_axis(axes: list[Axes], across: int) -> None:
    """Panels of one quantity are compared by eye: one range, and a label at the left of each row."""
    ends = np.array([ax.get_ylim() for ax in axes])
    for ax in axes:
        ax.set_ylim(float(ends[:, 0].min()), float(ends[:, 1].max()))
    for place, ax in enumerate(axes):
        if place % across:
            ax.set_ylabel("")


def _legend(drawn: Figure, axes: list[Axes], drawing: Drawing) -> None:
    """Below the panels, a handle for every label; the figure grows by it."""
    from matplotlib.patches import Patch

    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    if any(np.isfinite(line.sd).any() for panel in drawing.panels for line in panel.lines):
        band = Patch(color=GREY, alpha=0.4, linewidth=0)
        handles["\N{PLUS-MINUS SIGN}1 SD over seeds"] = band
    if not handles:
        return
    widest = style.LEGEND_HANDLE + style.LEGEND_LETTER * max(map(len, handles))
    columns = max(1, min(len(handles), int(drawn.get_figwidth() / widest)))
    lines = math.ceil(len(handles) / columns)
    drawn.set_figheight(drawn.get_figheight() + style.LEGEND_LINE * (lines + 1))
    drawn.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)
