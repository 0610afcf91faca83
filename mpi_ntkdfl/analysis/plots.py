"""Figures from records. matplotlib is imported when something is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpi_ntkdfl.analysis import style
from mpi_ntkdfl.analysis.files import replacing, require_suffix
from mpi_ntkdfl.analysis.traces import Group
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.looks import GREY, LineStyle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis as MplAxis
    from matplotlib.figure import Figure

_SPACING = 0.12
"""Between the markers of a line, in diagonals of the panel; its dashes are to be seen between them."""


@dataclass(frozen=True)
class Axis:
    """A quantity on an axis.

    Attributes:
        field: of `traces.Trace`.
        label: with the unit.
        log: whether the axis is logarithmic; points at 0 are left out then.
    """

    field: str
    label: str
    log: bool = False


X = {
    "rounds": Axis("rounds", "rounds"),
    "bytes": Axis("protocol_bytes", "protocol bytes, all clients", log=True),
    "seconds": Axis("seconds", "wall clock without evaluation (s)"),
}
Y = {
    "accuracy": Axis("accuracy", "test accuracy of the average"),
    "client-accuracy": Axis("client_accuracy", "test accuracy, mean client"),
    "loss": Axis("loss", "test loss of the average"),
    "deviation": Axis("deviation", "mean distance from the average"),
    "gradient-norm": Axis("gradient_norm", "gradient norm at the average", log=True),
}


@dataclass(frozen=True)
class Request:
    """What to draw.

    Attributes:
        x: keys of `X`, a panel each.
        y: key of `Y`.
        ylim: ends of the vertical axis, or None to fit.
        target: accuracy to mark, or None.
        title: above the panels, or None.
        labels: names of the groups in the legend; empty for their own.
    """

    x: Sequence[str] = tuple(X)
    y: str = "accuracy"
    ylim: tuple[float, float] | None = None
    target: float | None = None
    title: str | None = None
    labels: Sequence[str] = ()


def write(path: Path, groups: Sequence[Group], request: Request) -> None:
    """Draws and writes a figure; the same input gives the same bytes.

    Raises:
        InputError: for another suffix than pdf, png, svg; if there is nothing to draw, or the file
            cannot be written.
    """
    require_suffix(path, "pdf", "png", "svg")
    _refuse(groups, request)
    save(path, lambda: figure(groups, request))


def save(path: Path, draw: Callable[[], Figure]) -> None:
    """Writes what `draw` draws in the house style; see `write`."""
    kind = require_suffix(path, "pdf", "png", "svg")
    with house_style():
        drawn = draw()
        undated: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
        with replacing(path) as temporary:
            drawn.savefig(temporary, format=kind, metadata=undated.get(kind))


def figure(groups: Sequence[Group], request: Request) -> Figure:
    """One panel for every x: a line a group, the mean over its runs, with a band of one sd.

    Raises:
        InputError: if there are more lines than can be told apart.
    """
    from matplotlib.figure import Figure

    width = style.COLUMN if len(request.x) == 1 else style.PAGE
    names = request.labels or [_name(group) for group in groups]
    looks = style.styles((group.method for group in groups), looks_of(groups))
    drawn = Figure(figsize=(width, style.HEIGHT), layout="constrained")
    panels = drawn.subplots(1, len(request.x), sharey=True, squeeze=False)[0]
    for panel, key in zip(panels, request.x, strict=True):
        for number, (group, name, look) in enumerate(zip(groups, names, looks, strict=True)):
            _line(panel, group, X[key], Y[request.y], look, name, number / len(groups))
        if request.target is not None:
            panel.axhline(request.target, label=f"target {request.target:g}", **style.GUIDE)
        _scale(panel, X[key], Y[request.y])
    panels[0].set_ylim(request.ylim or _fitting(groups, request))
    panels[0].set_ylabel(Y[request.y].label)
    if request.title:
        drawn.suptitle(request.title)
    legend(drawn, panels[0], any(len(group.traces) > 1 for group in groups))
    return drawn


def looks_of(groups: Iterable[Group]) -> dict[str, LineStyle]:
    """The looks that records hold of their methods, by the method's name."""
    traces = [trace for group in groups for trace in group.traces]
    return {trace.method: trace.look for trace in traces if trace.look is not None}


def _fitting(groups: Sequence[Group], request: Request) -> tuple[float, float] | None:
    """Ends of a linear axis that fit all but the start, which would dwarf everything after it."""
    y = Y[request.y]
    later = [group.values(y.field)[:, group.shared_rounds() > 0].ravel() for group in groups]
    values = np.concatenate([*later, [np.nan if request.target is None else request.target]])
    values = values[np.isfinite(values)]
    if y.log or not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 0.05
    return low - margin, high + margin


def _refuse(groups: Sequence[Group], request: Request) -> None:
    """Refuses what would be an empty or a misleading figure."""
    if request.labels and len(request.labels) != len(groups):
        found = "; ".join(_name(group) for group in groups)
        raise InputError(
            f"--label is needed once for each of {len(groups)} configurations ({found}), got "
            f"{len(request.labels)}"
        )
    if request.target is not None and request.y not in ("accuracy", "client-accuracy"):
        raise InputError(f"--target is an accuracy and cannot be marked in a figure of {request.y}")
    if request.ylim is not None and not request.ylim[0] < request.ylim[1]:
        raise InputError(
            f"--ylim needs LOW below HIGH, got {request.ylim[0]:g} {request.ylim[1]:g}"
        )
    for group in groups:
        values = group.values(Y[request.y].field)
        if not np.isfinite(values.sum(axis=0)).any():
            files = ", ".join(trace.name for trace in group.traces)
            raise InputError(f"no {request.y} to draw in {files}; leave out or choose another --y")


@contextmanager
def house_style() -> Iterator[None]:
    """Defaults of matplotlib, whatever the user's own settings are, and the house style."""
    import matplotlib.style

    with matplotlib.style.context(["default", style.RC]):
        yield


def _line(
    panel: Axes, group: Group, x: Axis, y: Axis, look: LineStyle, name: str, shift: float
) -> None:
    """Draws a group; `shift`, from 0 to 1, moves its markers between those of others."""
    across, up = group.values(x.field), group.values(y.field)
    shown = np.isfinite(up.sum(axis=0))
    if x.log:
        shown &= (across > 0).all(axis=0)
    if y.log:
        shown &= (up > 0).all(axis=0)
    across, up = across[:, shown].mean(axis=0), up[:, shown]
    markers = (shift * _SPACING, _SPACING)
    panel.plot(across, up.mean(axis=0), label=name, markevery=markers, **style.arguments(look))
    if len(up) > 1:
        spread = up.std(axis=0, ddof=1)
        ends = up.mean(axis=0) - spread, up.mean(axis=0) + spread
        panel.fill_between(across, *ends, color=look.color, alpha=0.2, linewidth=0)


def _scale(panel: Axes, x: Axis, y: Axis) -> None:
    """Scales and ticks of both axes; bytes have their unit at the ticks."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    panel.set_xlabel(x.label)
    if x.log:
        panel.set_xscale("log")
        log_ticks(panel.xaxis, *panel.get_xlim())
        panel.xaxis.set_major_formatter(EngFormatter(unit="B"))
    else:
        panel.set_xlim(left=0)
        whole = x.field == "rounds"
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=whole, steps=[1, 2, 5, 10]))
    if y.log:
        panel.set_yscale("log")
        log_ticks(panel.yaxis, *panel.get_ylim())
        panel.yaxis.set_major_formatter("{x:g}")


def log_ticks(axis: MplAxis, low: float, high: float) -> None:
    """Ticks at powers of ten, over a few decades at 2 and 5 as well."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    axis.set_minor_locator(NullLocator())


def legend(drawn: Figure, panel: Axes, spread: bool) -> None:
    """Below the panels, where it covers no data; the figure grows by it."""
    from matplotlib.patches import Patch

    handles, names = panel.get_legend_handles_labels()
    handles = [*handles, *([Patch(color=GREY, alpha=0.4, linewidth=0)] if spread else [])]
    names = [*names, *(["\N{PLUS-MINUS SIGN}1 SD over seeds"] if spread else [])]
    widest = style.LEGEND_HANDLE + style.LEGEND_LETTER * max(map(len, names))
    columns = max(1, min(len(names), int(drawn.get_figwidth() / widest)))
    drawn.set_figheight(style.HEIGHT + style.LEGEND_LINE * math.ceil(len(names) / columns))
    drawn.legend(handles, names, loc="outside lower center", ncols=columns)


def _name(group: Group) -> str:
    return f"{group.method_label}, {group.label}" if group.label else group.method_label
