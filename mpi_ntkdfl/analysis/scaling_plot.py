"""The figure of scaling studies: speed-up or seconds, and efficiencies, against ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mpi_ntkdfl.analysis import plots, style
from mpi_ntkdfl.analysis.scaling import Study
from mpi_ntkdfl.runtime.looks import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION, LineStyle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES = (
    LineStyle(BLUE, (), "o"),
    LineStyle(VERMILION, (4, 1.5), "s"),
    LineStyle(GREEN, (6, 1.5, 1, 1.5), "^"),
    LineStyle(PURPLE, (2, 1), "D"),
    LineStyle(ORANGE, (8, 2), "v"),
    LineStyle(BLACK, (1, 2.5), "P"),
)


def write(path: Path, studies: Sequence[Study]) -> None:
    """Draws and writes a figure; the same input gives the same bytes.

    Raises:
        InputError: for another suffix than pdf, png, svg, or if the file cannot be written.
    """
    plots.save(path, lambda: figure(studies))


def figure(studies: Sequence[Study]) -> Figure:
    """Left speed-up (weak: work a second); right parallel efficiency and, dotted, load balance."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(style.PAGE, style.HEIGHT), layout="constrained")
    left, right = drawn.subplots(1, 2)
    for number, study in enumerate(studies):
        look = _STYLES[number % len(_STYLES)]
        ranks = [point.ranks for point in study.points]
        _line(left, ranks, [study.speed_up(p) for p in study.points], look, study.label)
        _line(right, ranks, [p.parallel for p in study.points], look, study.label)
        balance = [p.load_balance for p in study.points]
        right.plot(ranks, balance, color=look.color, linestyle=":", linewidth=0.8)
    every = sorted({point.ranks for study in studies for point in study.points})
    left.plot(every, [r / every[0] for r in every], label="ideal", **style.GUIDE)
    left.set_yscale("log", base=2)
    left.set_ylabel("speed-up")
    right.set_ylim(0, 1.05)
    right.set_ylabel("efficiency (dotted: load)")
    for panel in (left, right):
        panel.set_xscale("log", base=2)
        panel.set_xticks(every, [str(r) for r in every])
        panel.set_xlabel("ranks")
    left.yaxis.set_major_formatter("{x:g}")
    plots.legend(drawn, left, spread=False)
    return drawn


def _line(panel: Axes, across: list[int], up: list[float], look: LineStyle, name: str) -> None:
    panel.plot(
        across,
        up,
        color=look.color,
        linestyle=(0, look.dashes) if look.dashes else "-",
        marker=look.marker,
        label=name,
    )
