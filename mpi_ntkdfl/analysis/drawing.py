"""Draws panels in the house style: lines with bands, scales, ticks, legends.

Every figure of the package is drawn here. matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpi_ntkdfl.analysis import style
from mpi_ntkdfl.analysis.files import replacing, require_suffix
from mpi_ntkdfl.analysis.panels import Axis, Panel, Series
from mpi_ntkdfl.runtime.looks import GREY, LineStyle

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis as MplAxis
    from matplotlib.figure import Figure

_SPACING = 0.1
"""Between the markers of a long line, in diagonals of the panel; its dashes are seen between them."""

_UNDATED: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}

Legend = list[tuple[str, "Artist"]]
"""The entries of a legend in their order: names with the drawn objects."""


# -------------------------------------------------------------------------------------------- files


def save(path: Path, draw: Callable[[], Figure]) -> None:
    """Writes a figure that `draw` draws, in the style of the package; equal input gives equal bytes.

    Raises:
        InputError: for another suffix than pdf, png, svg, or if the file cannot be written.
    """
    kind = require_suffix(path, "pdf", "png", "svg")
    with house_style():
        drawn = draw()
        with replacing(path) as temporary:
            drawn.savefig(temporary, format=kind, metadata=_UNDATED.get(kind))


def svg(draw: Callable[[], Figure]) -> str:
    """The SVG text of a figure that `draw` draws, in the style of the package."""
    with house_style():
        text = io.StringIO()
        draw().savefig(text, format="svg", metadata=_UNDATED["svg"])
        return text.getvalue()


@contextmanager
def house_style() -> Iterator[None]:
    """The defaults of matplotlib, without the user's own settings, and the style of the package."""
    import matplotlib.style

    with matplotlib.style.context(["default", style.RC]):
        yield


# ------------------------------------------------------------------------------------------- panels


def canvas(count: int, across: int, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, `across` in a row."""
    from matplotlib.figure import Figure

    down = math.ceil(count / across)
    width = style.COLUMN if count == 1 else style.PAGE
    drawn = Figure(figsize=(width, style.HEIGHT * down), layout="constrained")
    axes = drawn.subplots(down, across, sharey=share_y, squeeze=False).ravel()
    for spare in axes[count:]:
        spare.set_axis_off()
    return drawn, list(axes[:count])


def lines(ax: Axes, panel: Panel, looks: Sequence[LineStyle]) -> Legend:
    """Draws the lines of a panel with their bands; the markers of long lines do not cover each other."""
    explained: Legend = []
    many = any(len(line.x) > 10 for line in panel.lines)
    for number, (line, look) in enumerate(zip(panel.lines, looks, strict=True)):
        markers = _markers(line.x, panel.x.log, number / len(looks)) if many else None
        if panel.x.ticks:
            explained.append((line.label, _points(ax, line, look, number, len(looks))))
            continue
        (drawn,) = ax.plot(
            line.x, line.mean, label=line.label, markevery=markers, **style.arguments(look)
        )
        if (ends := line.ends) is not None:
            ax.fill_between(line.x, *ends, color=look.color, alpha=0.2, linewidth=0)
        explained.append((line.label, drawn))
    return explained


def _points(ax: Axes, line: Series, look: LineStyle, number: int, of: int) -> Artist:
    """Marks the points of a line beside those of the other lines, with bars of one deviation.

    Args:
        ax: the axes to draw on.
        line: the points, at whole numbers.
        look: how the line looks.
        number: position of the line among all lines, from 0.
        of: number of lines.
    """
    x = line.x + 0.6 * ((number + 0.5) / of - 0.5)
    spread = np.nan_to_num(line.sd)
    ax.vlines(x, line.mean - spread, line.mean + spread, color=look.color, linewidth=0.8)
    (drawn,) = ax.plot(x, line.mean, **style.arguments(look))
    drawn.set_linestyle("")
    return drawn


def _markers(x: np.ndarray, log: bool, shift: float) -> list[int]:
    """The points of a long line that get a marker, spread over the panel as evenly as possible.

    Args:
        x: `[point]`.
        log: whether the axis is logarithmic.
        shift: part of the spacing by which the markers are shifted, so that markers of equal lines do not
            cover each other.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        across = np.log(x) if log else np.asarray(x, dtype=np.float64)
    usable = np.flatnonzero(np.isfinite(across))
    if not len(usable):
        return []
    low, high = across[usable].min(), across[usable].max()
    wanted = low + (high - low) * (np.arange(0, 1, _SPACING) + shift * _SPACING)
    nearest = np.abs(across[usable][None] - wanted[:, None]).argmin(axis=1)
    return sorted(set(usable[nearest].tolist()))


def scale(ax: Axes, panel: Panel) -> None:
    """Labels, scales and ticks of both axes; bytes have their unit at the ticks."""
    ax.set_xlabel(panel.x.label)
    ax.set_ylabel(panel.y.label)
    # A point is visible if both its numbers are. Without such a point a logarithmic axis has no ends.
    points = np.array(
        [(x, y) for line in panel.lines for x, y in zip(line.x, line.mean, strict=True)]
    )
    points = points.reshape(-1, 2)
    seen = np.isfinite(points).all(axis=1)
    for place, axis in enumerate((panel.x, panel.y)):
        seen &= (points[:, place] > 0) | (not axis.log)
    if not seen.any():
        ax.set_xticks([])
        ax.annotate("no values to show", (0.5, 0.5), xycoords="axes fraction", ha="center")
        return
    if panel.x.log:
        ax.set_xscale("log", nonpositive="mask")
    elif panel.x.from_zero:
        ax.set_xlim(left=0)
    if panel.y.log:
        ax.set_yscale("log", nonpositive="mask")
    _ticks(ax.xaxis, panel.x, ax.get_xscale() == "log", ax.get_xlim(), crowded=True)
    _ticks(ax.yaxis, panel.y, ax.get_yscale() == "log", ax.get_ylim(), crowded=False)


def _ticks(axis: MplAxis, shown: Axis, log: bool, ends: tuple[float, float], crowded: bool) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

    if shown.ticks:
        axis.set_ticks(range(len(shown.ticks)), shown.ticks)
        return
    if log:
        # Powers of ten, and numbers between them if there is room, because labels with a unit are wide.
        most = (3 if shown.unit else 5) if crowded else 7
        counts = {subs: len(_between(ends, subs)) for subs in ((1, 2, 5), (1, 3), (1,))}
        fitting = [subs for subs, count in counts.items() if 2 <= count <= most]
        if fitting:
            axis.set_major_locator(LogLocator(subs=fitting[0]))
        elif counts[1,] > most:
            axis.set_major_locator(LogLocator(numticks=most))
        elif counts[1, 2, 5] < 2:
            axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
        else:
            axis.set_major_locator(LogLocator(subs=(1, 3) if counts[1, 3] >= 2 else (1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}")
    elif crowded:
        axis.set_major_locator(MaxNLocator(6, integer=shown.whole, steps=[1, 2, 5, 10]))
    if shown.unit:
        axis.set_major_formatter(EngFormatter(unit=shown.unit))


def _between(ends: tuple[float, float], subs: Sequence[int]) -> list[float]:
    """The multiples `subs` of powers of ten within the ends of an axis."""
    if not (0 < ends[0] < ends[1] < math.inf):
        return []
    decades = range(math.floor(math.log10(ends[0])), math.ceil(math.log10(ends[1])) + 1)
    return [s * 10.0**d for d in decades for s in subs if ends[0] <= s * 10.0**d <= ends[1]]


def fit_after_start(ax: Axes, lines: Iterable[Series], more: Sequence[float] = ()) -> None:
    """Fits a linear vertical axis to all points but the start, because the start may be much larger.

    Args:
        ax: the panel.
        lines: the lines that it shows.
        more: further values that must be visible.
    """
    values = [np.asarray(more, dtype=np.float64)]
    for line in lines:
        later = ~line.start
        values += [each[later] for each in (line.mean, *(line.ends or ()))]
    everything = np.concatenate(values)
    everything = everything[np.isfinite(everything)]
    if len(everything):
        low, high = float(everything.min()), float(everything.max())
        margin = 0.05 * (high - low) or 0.05
        ax.set_ylim(low - margin, high + margin)


# ------------------------------------------------------------------------------------------- legends


def legend(drawn: Figure, explained: Legend, spread: bool, band: str = "") -> None:
    """Draws the legend below the panels, where it covers no data; the figure becomes taller by it.

    Args:
        drawn: the figure.
        explained: the entries of the legend.
        spread: whether the legend must explain bands.
        band: meaning of the bands; empty for one standard deviation over seeds.
    """
    from matplotlib.patches import Patch

    if spread:
        patch = Patch(color=GREY, alpha=0.4, linewidth=0)
        explained = [*explained, (band or "\N{PLUS-MINUS SIGN}1 SD over seeds", patch)]
    if not explained:
        return
    widest = style.LEGEND_HANDLE + style.LEGEND_LETTER * max(len(name) for name, _ in explained)
    columns = max(1, min(len(explained), int(drawn.get_figwidth() / widest)))
    rows = math.ceil(len(explained) / columns)
    drawn.set_figheight(drawn.get_figheight() + style.LEGEND_LINE * rows)
    box = drawn.legend(
        [artist for _, artist in explained],
        # matplotlib leaves out names that begin with an underscore; they are set afterwards.
        [str(number) for number in range(len(explained))],
        loc="outside lower center",
        ncols=columns,
    )
    for text, (name, _) in zip(box.get_texts(), explained, strict=True):
        text.set_text(name)


def spread_shown(panels: Iterable[Panel]) -> bool:
    """Whether any line has a band."""
    return any(line.ends is not None for panel in panels for line in panel.lines)
