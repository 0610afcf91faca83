"""The house style of figures: sizes, fonts, and what each method looks like wherever it appears.

Colours are those of Okabe and Ito (jfly.uni-koeln.de/color, 2008), told apart under the common kinds of
colour blindness, without their yellow, which is too pale for lines on paper, and with two greys. In grey
the dashes and markers tell methods apart: no two methods share either.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from mpi_ntkdfl.runtime.errors import InputError

COLUMN, PAGE = 3.5, 7.2
"""Inches: widths of one column and of two of a journal's page."""
HEIGHT = 2.2
"""Inches: of the axes with their labels."""
LEGEND_LINE, LEGEND_HANDLE, LEGEND_LETTER = 0.16, 0.6, 0.062
"""Inches: height of a legend's line; widths of its handle and of a letter, about."""

RC: dict[str, object] = {
    # DejaVu Sans comes with matplotlib: the same letters on every machine.
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 3.4,
    "legend.columnspacing": 1.6,
    "figure.titlesize": 9,
    "text.parse_math": False,  # a dollar in a label or path is a dollar
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E0E0E0",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.visible": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.2,
    "lines.markeredgewidth": 0.9,
    "lines.scale_dashes": True,
    "savefig.dpi": 300,
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,  # TrueType: journals refuse the default, Type 3
    "svg.fonttype": "path",
    "svg.hashsalt": "mpi_ntkdfl",  # else ids are random
}

GUIDE: dict[str, Any] = {"color": "#606060", "linewidth": 0.8, "linestyle": (0, (1.0, 1.6))}
"""The line of a target."""


@dataclass(frozen=True)
class LineStyle:
    """How a line looks.

    Attributes:
        color: `#RRGGBB`.
        dashes: on and off, in line widths; empty for a solid line.
        marker: matplotlib's letter.
        fill: of the marker: full, none, left, bottom or top.
    """

    color: str
    dashes: tuple[float, ...]
    marker: str
    fill: str = "full"


BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
DARK_GREY, GREY = "#555555", "#999999"

METHODS = {
    "ntk-dfl": LineStyle(BLUE, (), "o"),
    "d-psgd": LineStyle(ORANGE, (4, 1.5), "s"),
    "dfedavg": LineStyle(GREEN, (6, 1.5, 1, 1.5), "^"),
    "dfedavgm": LineStyle(VERMILION, (2, 1), "D"),
    "dfedsam": LineStyle(PURPLE, (8, 2), "v"),
    "dispfl": LineStyle(SKY, (3, 1, 1, 1, 1, 1), "P"),
    "fedavg": LineStyle(BLACK, (5, 1, 2, 1), "X"),
    "ntk-fl": LineStyle(DARK_GREY, (10, 1.5, 1, 1.5), "*"),
    "average-gd": LineStyle(GREY, (1.2, 1.2), "<"),
    "local": LineStyle(BLACK, (1, 2.5), ">"),
}

# For methods that are not in the table, in this order.
SPARE = (
    LineStyle(DARK_GREY, (6, 3), "h"),
    LineStyle(VERMILION, (3, 3), "p"),
    LineStyle(GREEN, (12, 2), "8"),
    LineStyle(PURPLE, (6, 1, 1, 1, 1, 1, 1, 1), "d"),
    LineStyle(BLUE, (2, 2, 6, 2), "H"),
    LineStyle(ORANGE, (1, 1, 4, 1, 4, 1), "4"),
)

NAMES = {
    "ntk-dfl": "NTK-DFL",
    "d-psgd": "D-PSGD",
    "dfedavg": "DFedAvg",
    "dfedavgm": "DFedAvgM",
    "dfedsam": "DFedSAM",
    "dispfl": "DisPFL",
    "fedavg": "FedAvg",
    "ntk-fl": "NTK-FL",
    "average-gd": "Average-GD",
    "local": "Local",
}
"""What methods are called in print."""

# Further configurations of a method: its hue darker (< 0) or lighter, another fill and other dashes.
_VARIANTS: tuple[tuple[float, str, tuple[float, ...]], ...] = (
    (-0.55, "none", (5, 2)),
    (0.35, "left", (1.5, 1.5)),
    (-0.30, "bottom", (7, 1.2, 1.2, 1.2)),
    (-0.80, "top", (3, 2)),
)
VARIANTS = 1 + len(_VARIANTS)
"""Configurations of one method that a figure can tell apart."""


def arguments(look: LineStyle) -> dict[str, Any]:
    """What matplotlib's `plot` is told of a style."""
    hollow = look.fill == "none"
    return {
        "color": look.color,
        "linestyle": (0, look.dashes) if look.dashes else "-",
        "marker": look.marker,
        "fillstyle": "full" if hollow else look.fill,
        "markerfacecolor": "white" if hollow else look.color,
        "markerfacecoloralt": "white",
    }


def styles(methods: Iterable[str]) -> list[LineStyle]:
    """A style for every line of a figure, given its method; a method may come several times.

    Raises:
        InputError: if there are more lines than can be told apart.
    """
    methods = list(methods)
    unknown = sorted(set(methods) - set(METHODS))
    if len(unknown) > len(SPARE):
        raise InputError(
            f"at most {len(SPARE)} methods without a style of their own fit into a figure, got "
            f"{', '.join(unknown)}; add them to analysis/style.py"
        )
    table = METHODS | dict(zip(unknown, SPARE, strict=False))
    seen = dict.fromkeys(methods, 0)
    found = []
    for method in methods:
        found.append(_variant(table[method], seen[method], method))
        seen[method] += 1
    return found


def _variant(style: LineStyle, number: int, method: str) -> LineStyle:
    if number == 0:
        return style
    if number >= VARIANTS:
        raise InputError(
            f"at most {VARIANTS} configurations of one method fit into a figure, got more of "
            f"{method}; give fewer records"
        )
    shade, fill, dashes = _VARIANTS[number - 1]
    return replace(style, color=_shaded(style.color, shade), fill=fill, dashes=dashes)


def _shaded(color: str, shade: float) -> str:
    """Mixes `#RRGGBB` with white (`shade` > 0) or black."""
    end = 255 if shade > 0 else 0
    parts = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(part + abs(shade) * (end - part)):02X}" for part in parts)
