"""Draws heat maps: a metric over two axes, and who is first over links. matplotlib is imported late."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mpi_ntkdfl.analysis import drawing, style
from mpi_ntkdfl.analysis.panels import Panel
from mpi_ntkdfl.runtime.units import three_digits
from mpi_ntkdfl.studies import maps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mpi_ntkdfl.studies.series import Drawing

_MOST_CELLS = 120
"""Cells of a map in which numbers can be read."""
_PALEST, _FULL = 0.25, 1.5
"""Share of colour where the first two are equal; the lead, in powers of two, with the full colour."""


def figure(drawn: Drawing) -> Figure:
    """All maps of a figure."""
    if drawn.figure.links is None:
        return _metrics(drawn)
    return _fastest(drawn)


def _metrics(drawn: Drawing) -> Figure:
    """A map per panel; maps of one metric have one range of colours."""
    made, axes = drawing.canvas(len(drawn.panels), min(len(drawn.panels), 3))
    ranges = {}
    for panel in drawn.panels:
        every = [line.mean for each in drawn.panels if each.y == panel.y for line in each.lines]
        finite = np.concatenate(every)[np.isfinite(np.concatenate(every))]
        ranges[panel.y.name] = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    for ax, panel in zip(axes, drawn.panels, strict=True):
        values = np.array([line.mean for line in panel.lines])
        low, high = ranges[panel.y.name]
        shown = ax.imshow(
            values, origin="lower", aspect="auto", cmap="cividis", vmin=low, vmax=high
        )
        bright = (values - low) / max(high - low, 1e-300) > 0.5
        _cells(ax, panel, [[f"{v:.3g}" for v in row] for row in values], bright)
        ax.set_title(panel.title)
        bar = made.colorbar(shown, ax=ax, label=panel.y.label)
        bar.outline.set_linewidth(0.6)
    for ax, panel, before in zip(axes[1:], drawn.panels[1:], drawn.panels, strict=False):
        if [x.label for x in panel.lines] == [x.label for x in before.lines]:
            ax.set_ylabel("")
    made.suptitle(drawn.figure.title)
    return made


def _fastest(drawn: Drawing) -> Figure:
    """A map per comparison: the colour is that of the first, and the number its lead over the second."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    comparisons = maps.fields(drawn)
    titles = list(dict.fromkeys(panel.title for panel in drawn.panels))
    methods = {panel.title: panel.lines[0].method for panel in drawn.panels}
    looks = style.styles((methods[title] for title in titles), drawn.looks)
    colors = {title: to_rgb(look.color) for title, look in zip(titles, looks, strict=True)}
    if drawn.figure.messages:  # one form of messages per map, so all have their method's colour
        plain = {method: to_rgb(look.color) for method, look in drawn.looks.items()}
        colors = {title: plain.get(methods[title], colors[title]) for title in titles}
    made, axes = drawing.canvas(len(comparisons), len(comparisons))
    used = {}
    for ax, (title, panels) in zip(axes, comparisons.items(), strict=True):
        seconds = maps.seconds(panels)
        first, ordered = seconds.argmin(axis=0), np.sort(seconds, axis=0)
        with np.errstate(invalid="ignore"):
            lead = ordered[1] / ordered[0] if len(panels) > 1 else np.full(first.shape, np.inf)
            strength = np.nan_to_num(np.log2(lead) / _FULL, nan=0.0, posinf=1.0)
        strength = _PALEST + (1 - _PALEST) * np.clip(strength, 0, 1)
        hues = np.array([colors[panel.title] for panel in panels])[first]
        ax.imshow(1 - strength[..., None] * (1 - hues), origin="lower", aspect="auto")
        texts = [[three_digits(v)[:4].rstrip(".") for v in row] for row in lead]
        _cells(ax, panels[0], texts, strength < 0.75)
        ax.set_title(title)
        for panel in (panels[each] for each in np.unique(first)):
            name = panel.title if len(comparisons) == 1 else panel.title.partition(",")[0]
            used[name] = Patch(color=colors[panel.title])
    for ax in axes[1:]:
        ax.set_ylabel("")
    made.suptitle(drawn.figure.title)
    drawing.legend(made, [(f"{name} first", patch) for name, patch in used.items()], spread=False)
    return made


def _cells(ax: Axes, panel: Panel, texts: Sequence[Sequence[str]], bright: np.ndarray) -> None:
    """Ticks and numbers of a map.

    Args:
        ax: where.
        panel: the map.
        texts: of the cells, `[row, column]`.
        bright: whether a cell is bright, so that its number is black, `[row, column]`.
    """
    assert panel.rows is not None
    ax.grid(visible=False)
    ax.set_xticks(range(len(panel.x.ticks)), panel.x.ticks, rotation=45)
    ax.set_yticks(range(len(panel.lines)), [line.label for line in panel.lines])
    ax.set_xlabel(panel.x.label)
    ax.set_ylabel(panel.rows.label)
    if bright.size > _MOST_CELLS:
        return
    for (row, column), black in np.ndenumerate(bright):
        color = "black" if black else "white"
        ax.text(column, row, texts[row][column], ha="center", va="center", fontsize=5, color=color)
