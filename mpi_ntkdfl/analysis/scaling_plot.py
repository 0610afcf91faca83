"""The figure of scaling studies: speed-up, and efficiency with load balance, against ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mpi_ntkdfl.analysis import drawing, style
from mpi_ntkdfl.analysis.panels import Axis, Panel, over_seeds
from mpi_ntkdfl.analysis.scaling import Study
from mpi_ntkdfl.runtime.looks import (
    BLACK,
    BLUE,
    DARK_GREY,
    GREEN,
    ORANGE,
    PURPLE,
    VERMILION,
    LineStyle,
)

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
_RANKS = Axis("ranks", "ranks", log=True)


def write(path: Path, studies: Sequence[Study]) -> None:
    """Draws and writes a figure; the same input gives the same bytes.

    Raises:
        InputError: for another suffix than pdf, png, svg, or if the file cannot be written.
    """
    drawing.save(path, lambda: figure(studies))


def figure(studies: Sequence[Study]) -> Figure:
    """Draws speed-up (weak: work per second) on the left, efficiency and load balance on the right."""
    speed_up, efficiency, balance = panels(studies)
    looks = [_STYLES[number % len(_STYLES)] for number in range(len(studies))]
    drawn, (left, right) = drawing.canvas(2, 2)
    every = sorted({point.ranks for study in studies for point in study.points})
    explained = drawing.lines(left, speed_up, looks)
    (ideal,) = left.plot(every, [r / every[0] for r in every], **style.GUIDE)
    drawing.lines(right, efficiency, looks)
    for line, look in zip(balance.lines, looks, strict=True):
        right.plot(line.x, line.mean, color=look.color, linestyle=":", linewidth=0.8)
    (dotted,) = right.plot([], [], color=DARK_GREY, linestyle=":", linewidth=0.8)
    for ax, panel in ((left, speed_up), (right, efficiency)):
        _scale(ax, panel, every)
    left.set_yscale("log", base=2)
    left.yaxis.set_major_formatter("{x:g}")
    right.set_ylim(0, None)
    drawing.legend(
        drawn,
        [*explained, ("ideal speed-up", ideal), ("load balance (dotted)", dotted)],
        spread=False,
    )
    return drawn


def panels(studies: Sequence[Study]) -> tuple[Panel, Panel, Panel]:
    """The numbers of the figure: speed-up, efficiency and load balance, a line per study."""

    def panel(name: str, label: str, numbers: Sequence[Sequence[float]]) -> Panel:
        lines = tuple(
            over_seeds(study.label, "", np.array([p.ranks for p in study.points]), np.array([row]))
            for study, row in zip(studies, numbers, strict=True)
        )
        return Panel("", _RANKS, Axis(name, label), lines)

    return (
        panel("speed_up", "speed-up", [[s.speed_up(p) for p in s.points] for s in studies]),
        panel("efficiency", "efficiency", [[s.efficiency(p) for p in s.points] for s in studies]),
        panel(
            "load_balance", "load balance", [[p.load_balance for p in s.points] for s in studies]
        ),
    )


def _scale(ax: Axes, panel: Panel, ranks: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(ranks, [str(r) for r in ranks])
    ax.set_xlabel(panel.x.label)
    ax.set_ylabel(panel.y.label)
