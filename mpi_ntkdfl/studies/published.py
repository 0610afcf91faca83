"""Published numbers beside those of the runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mpi_ntkdfl.analysis.panels import Panel, over_seeds
from mpi_ntkdfl.studies.definition import Figure, Published, PublishedLine


@dataclass(frozen=True)
class Beside:
    """A published line, and the runs at its points.

    Attributes:
        line: the published line.
        ours: means of the runs at its points, `[point]`; NaN where no run has such a point.
    """

    line: PublishedLine
    ours: np.ndarray

    @property
    def name(self) -> str:
        """Its panel and its label."""
        return ", ".join(part for part in (self.line.panel, self.line.line) if part)

    @property
    def largest(self) -> str:
        """The largest absolute difference and where it is; empty if no point can be compared."""
        differences = np.abs(self.ours - np.array(self.line.y))
        if np.isnan(differences).all():
            return ""
        place = int(np.nanargmax(differences))
        return f"{differences[place]:.3f} at {self.line.x[place]:g}"


def with_published(panel: Panel, figure: Figure) -> Panel:
    """The panel with the published lines that belong to it."""
    if figure.published is None:
        return panel
    methods = {line.label: line.method for line in panel.lines}
    added = [
        replace(
            over_seeds(line.line, methods.get(line.line, ""), np.array(line.x), np.array([line.y])),
            seeds=np.zeros(len(line.x), dtype=int),
            published=True,
        )
        for line in figure.published.lines
        if _belongs(line, panel)
    ]
    return replace(panel, lines=(*panel.lines, *added))


def beside(published: Published, panels: Sequence[Panel]) -> Iterator[Beside]:
    """Every published line with the runs at its points.

    The runs are those of panels to which published lines were added; others are of another scale.
    """
    for line in published.lines:
        ours = np.full(len(line.x), np.nan)
        for panel in panels:
            if not _belongs(line, panel) or not any(own.published for own in panel.lines):
                continue
            for own in panel.lines:
                if own.label == line.line and not own.published:
                    for place, x in enumerate(line.x):
                        if (at := np.isclose(own.x, x)).any():
                            ours[place] = own.mean[at][0]
        yield Beside(line, ours)


def text(figure: Figure, panels: Sequence[Panel]) -> str:
    """The published numbers of a figure, our numbers below them, and the largest difference."""
    assert figure.published is not None
    rows = [f"published, at the paper's scale ({figure.published.source}): {figure.name}"]
    for each in beside(figure.published, panels):
        rows.append(f"  {each.name}")
        numbers = {"at": each.line.x, "published": each.line.y}
        if each.largest:
            numbers["runs"] = tuple(each.ours)
        for name, values in numbers.items():
            form = "g" if name == "at" else ".3f"
            shown = ["-" if np.isnan(value) else f"{value:{form}}" for value in values]
            rows.append(f"    {name:<10}" + "".join(f"{each:>8}" for each in shown))
        if each.largest:
            rows.append(f"    largest difference: {each.largest}")
    return "\n".join(rows)


def table(
    published: Published, panels: Sequence[Panel]
) -> tuple[str, Sequence[str], Sequence[Sequence[str]]]:
    """The same as a table: caption, header and rows."""
    rows = [
        [
            each.line.panel,
            each.line.line,
            f"{x:g}",
            f"{y:.3f}",
            "" if np.isnan(own) else f"{own:.3f}",
        ]
        for each in beside(published, panels)
        for x, y, own in zip(each.line.x, each.line.y, each.ours, strict=True)
    ]
    caption = f"Published, at the paper's scale: {published.source}"
    return caption, ("panel", "line", "x", "published", "runs"), rows


def differences(published: Published, panels: Sequence[Panel]) -> str:
    """The largest difference of every line in one sentence; empty if no point can be compared."""
    found = [f"{each.name} {each.largest}" for each in beside(published, panels) if each.largest]
    return f"Largest differences from the published numbers: {'; '.join(found)}." if found else ""


def _belongs(line: PublishedLine, panel: Panel) -> bool:
    return line.panel in (panel.title, panel.y.name)
