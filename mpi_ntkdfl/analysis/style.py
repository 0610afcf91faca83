"""The style of figures: sizes, fonts, and looks of lines for methods without a look.

The look of a method is in the method's file and is stored in the record of a run. In grey print, lines
differ by dashes and markers: no two methods of this package have the same, and no two spare styles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.looks import BLUE, DARK_GREY, GREEN, ORANGE, PURPLE, VERMILION, LineStyle

COLUMN, PAGE = 3.5, 7.2
"""Widths of one column and of two columns of a journal's page, in inches."""
HEIGHT = 2.2
"""Height of the axes with their labels, in inches."""
LEGEND_LINE, LEGEND_HANDLE, LEGEND_LETTER = 0.16, 0.6, 0.062
"""Height of a legend's line, and approximate widths of its handle and of a letter, in inches."""

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


# For methods without a look of their own, in this order.
SPARE = (
    LineStyle(DARK_GREY, (6, 3), "1"),
    LineStyle(VERMILION, (3, 3), "2"),
    LineStyle(GREEN, (12, 2), "8"),
    LineStyle(PURPLE, (6, 1, 1, 1, 1, 1, 1, 1), "3"),
    LineStyle(BLUE, (2, 2, 6, 2), "+"),
    LineStyle(ORANGE, (1, 1, 4, 1, 4, 1), "4"),
)

# Further configurations of a method: its hue darker (< 0) or lighter, another fill and other dashes.
_VARIANTS: tuple[tuple[float, str, tuple[float, ...]], ...] = (
    (-0.55, "none", (5, 2)),
    (0.35, "left", (1.5, 1.5)),
    (-0.30, "bottom", (7, 1.2, 1.2, 1.2)),
    (-0.80, "top", (3, 2)),
)
VARIANTS = 1 + len(_VARIANTS)
"""Number of configurations of one method that a figure can show as shades of the method's colour."""

# More configurations of a method: markers in this order, with colours and dashes that repeat later.
_MARKERS = "osD^v<>PXph*dH8"
_COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, DARK_GREY)
_DASHES: tuple[tuple[float, ...], ...] = ((), (4, 1.5), (1, 1), (6, 1.5, 1, 1.5))
MOST = 24
"""Number of configurations of one method that a figure can show at all."""


def arguments(look: LineStyle) -> dict[str, Any]:
    """A style as arguments of matplotlib's `plot`."""
    hollow = look.fill == "none"
    return {
        "color": look.color,
        "linestyle": (0, look.dashes) if look.dashes else "-",
        "marker": look.marker,
        "fillstyle": "full" if hollow else look.fill,
        "markerfacecolor": "white" if hollow else look.color,
        "markerfacecoloralt": "white",
    }


def styles(methods: Iterable[str], looks: Mapping[str, LineStyle]) -> list[LineStyle]:
    """A style for every line of a figure, different for each line.

    Up to `VARIANTS` lines of one method have shades of its colour. If there are more, all its lines have
    different colours, markers and dashes instead.

    Args:
        methods: the method of each line; several lines may have the same method.
        looks: the looks of methods that have one; other methods get spare styles.

    Raises:
        InputError: if there are more lines than can be told apart.
    """
    methods = list(methods)
    plain = sorted(set(methods) - set(looks))
    if len(plain) > len(SPARE):
        raise InputError(
            f"at most {len(SPARE)} methods without a look of their own fit into a figure, got "
            f"{', '.join(plain)}; give the methods a look, or draw fewer records"
        )
    table = {**looks, **dict(zip(plain, SPARE, strict=False))}
    counts, seen = Counter(methods), dict.fromkeys(methods, 0)
    if crowded := [method for method, count in counts.items() if count > MOST]:
        raise InputError(
            f"at most {MOST} configurations of one method fit into a figure, got "
            f"{counts[crowded[0]]} of {crowded[0]}; give fewer records"
        )
    drawn = []
    for method in methods:
        number = seen[method]
        many = counts[method] > VARIANTS
        drawn.append(_one_of_many(number) if many else _variant(table[method], number))
        seen[method] += 1
    return drawn


def _one_of_many(number: int) -> LineStyle:
    dashes = _DASHES[number // len(_COLORS) % len(_DASHES)]
    return LineStyle(
        _COLORS[number % len(_COLORS)], dashes, _MARKERS[number % len(_MARKERS)], "full"
    )


def _variant(style: LineStyle, number: int) -> LineStyle:
    if number == 0:
        return style
    shade, fill, dashes = _VARIANTS[number - 1]
    return replace(style, color=_shaded(style.color, shade), fill=fill, dashes=dashes)


def _shaded(color: str, shade: float) -> str:
    """Mixes `#RRGGBB` with white (`shade` > 0) or black."""
    end = 255 if shade > 0 else 0
    parts = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(part + abs(shade) * (end - part)):02X}" for part in parts)
