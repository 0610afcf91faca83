"""The numbers of heat maps: a metric over two axes of a study, and seconds to a target over links."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import yaml

from mpi_ntkdfl.analysis.panels import Axis, Panel, Series, at_points, over_seeds
from mpi_ntkdfl.assembly import Problem, prepare
from mpi_ntkdfl.config import Config, parse
from mpi_ntkdfl.environment.links import Floats, Links
from mpi_ntkdfl.metrics import METRICS
from mpi_ntkdfl.planning.forecast import Rounds
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.units import parse_time, three_digits
from mpi_ntkdfl.studies.collect import Cell, Results
from mpi_ntkdfl.studies.definition import Figure, LinkGrid, Messages, Variant

if TYPE_CHECKING:
    from mpi_ntkdfl.studies.series import Drawing


def over_axes(results: Results, figure: Figure) -> list[Panel]:
    """`map`: a metric at the end over two axes, with a panel for all other variants."""
    axes = results.study.definition.axes
    across, up = (results.place(name) for name in figure.x)
    columns, rows = (axes[place].at(results.study.scale) for place in (across, up))
    labels = tuple(variant.label for variant in columns)
    x = Axis(axes[across].name, axes[across].label or axes[across].name, ticks=labels)
    by_title: dict[str, list[Cell]] = {}
    for cell in results.cells:
        by_title.setdefault(cell.label_without([across, up]), []).append(cell)
    panels = []
    for title, cells in by_title.items():
        for name in figure.y:
            place = {(cell.variants[across].label, cell.variants[up].label): cell for cell in cells}
            lines = [
                _row(row.label, [(v, place.get((v.label, row.label))) for v in columns], name)
                for row in rows
            ]
            vertical = Axis(axes[up].name, axes[up].label or axes[up].name)
            panels.append(Panel(title, x, Axis.of(METRICS[name]), tuple(lines), vertical))
    return panels


def _row(label: str, cells: Sequence[tuple[Variant, Cell | None]], name: str) -> Series:
    """One row of a map; NaN where no run is finished or none has the metric."""
    return at_points(
        label,
        "",
        [
            (
                n if variant.value is None else variant.value,
                cell.ends(name) if cell and cell.has(name) else np.array([np.nan]),
            )
            for n, (variant, cell) in enumerate(cells)
        ],
    )


# ------------------------------------------------------------------------------------------ over links


@dataclass(frozen=True)
class Race:
    """Rounds of one run to a target, as the model of simulated time needs them.

    Attributes:
        problem: of the run.
        rounds: to the target; None if the run did not reach it.
    """

    problem: Problem
    rounds: int | None

    def seconds(self, links: LinkGrid, settings: Mapping[str, object]) -> Floats:
        """Simulated seconds to the target, `[rate, latency]`; NaN if it was not reached.

        Args:
            links: latencies and rates.
            settings: over those of the run, such as another form of messages.

        Raises:
            InputError: if clients can be absent, so that other links would have given other rounds.
        """
        shape = len(links.rate), len(links.latency)
        if not self.rounds:
            return np.full(shape, np.nan if self.rounds is None else 0.0)
        config, conditions = self.problem.first.config, self.problem.conditions
        environment = config.environment
        if environment is None or conditions is None or not environment.always:
            raise InputError(
                "figures of the kind fastest need runs with an environment, availability=always and no "
                "deadline, because links must not change who takes part"
            )
        config = parse([yaml.safe_load(config.to_yaml()), settings])
        first = dataclasses.replace(self.problem.first, config=config)
        graphs = (self.problem.schedule.graph(number) for number in range(self.rounds))
        rounds = Rounds.of(first, conditions.speeds, graphs)

        def end(latency: str, rate: str) -> float:
            changed = {
                "latency": latency,
                "up": rate,
                "down": rate,
                "server": None,
                "regions": None,
            }
            each = Links.of(
                environment.links.model_copy(update=changed), config.clients, config.seed
            )
            return rounds.timings(each, environment.waiting)[-1].end

        ends = [[end(latency, rate) for latency in links.latency] for rate in links.rate]
        return np.array(ends).reshape(shape)


def over_links(results: Results, figure: Figure) -> list[Panel]:
    """`fastest`: seconds to the highest target over links, one panel per combination and form."""
    target = max(results.study.definition.scale(results.study.scale).targets)
    races = {}
    for cell in results.cells:
        races[cell.label] = (
            cell.method,
            [_race(f.run.config, f.trace.first(target), f.trace.rounds) for f in cell.finished],
        )
    return race_panels(races, figure, target)


def _race(config: Config, row: int | None, rounds: np.ndarray) -> Race:
    return Race(prepare(config, 1, going_on=True), None if row is None else int(rounds[row]))


def race_panels(
    races: Mapping[str, tuple[str, Sequence[Race]]], figure: Figure, target: float
) -> list[Panel]:
    """The panels of `over_links`.

    Args:
        races: method, and one race per seed, by the label of the combination.
        figure: with links.
        target: accuracy that the rounds of the races belong to.
    """
    assert figure.links is not None
    x = Axis("latency", "latency of a message", ticks=figure.links.latency)
    y = Axis("seconds", f"simulated seconds to {target:g}")
    places = np.array([parse_time(latency) for latency in figure.links.latency], dtype=float)
    panels = []
    for label, (method, runs) in races.items():
        forms: list[Messages | None] = [each for each in figure.messages if each.of == label]
        for form in forms or [None]:
            settings = form.settings if form else {}
            seconds = np.array([run.seconds(figure.links, settings) for run in runs])
            lines = [
                over_seeds(rate, method, places, seconds[:, row])
                for row, rate in enumerate(figure.links.rate)
            ]
            rows = Axis("rate", "rate of a link")
            panels.append(Panel(_rival(label, form), x, y, tuple(lines), rows))
    return panels


def _rival(label: str, form: Messages | None) -> str:
    return f"{label}, {form.label}" if form else label


def fields(drawn: Drawing) -> dict[str, list[Panel]]:
    """Who competes with whom in a figure of the kind fastest: panels by the title of the comparison."""
    forms = [_rival(form.of, form) for form in drawn.figure.messages]
    others = [panel for panel in drawn.panels if panel.title not in forms]
    if not forms:
        return {"": others}
    first = {panel.title: panel for panel in drawn.panels}
    return {title: [first[title], *others] for title in forms if title in first}


def seconds(panels: Sequence[Panel]) -> Floats:
    """Seconds of competitors, `[panel, rate, latency]`; infinite where the target was not reached."""
    taken = np.array([[line.mean for line in panel.lines] for panel in panels])
    return np.where(np.isnan(taken), np.inf, taken)


def order_text(drawn: Drawing) -> list[str]:
    """From which latency on which competitor is first, one line per rate.

    Between two latencies of the figure the seconds are interpolated, which is exact for a barrier.
    """
    lines = [f"{drawn.figure.name}: who is first, by the latency of a message"]
    for title, panels in fields(drawn).items():
        lines.append(f"  {title or 'all'}:")
        taken, latencies = seconds(panels), panels[0].lines[0].x
        for row, line in enumerate(panels[0].lines):
            steps = _leaders(latencies, taken[:, row])
            words = [panels[steps[0][1]].title]
            words += [f"from {three_digits(at)} s on {panels[who].title}" for at, who in steps[1:]]
            lines.append(f"    {line.label:>10}: {', '.join(words)}")
    return lines


def _leaders(latencies: Floats, seconds: Floats) -> list[tuple[float, int]]:
    """The first competitor and where the lead changes: latency and competitor.

    Args:
        latencies: ascending, `[latency]`.
        seconds: `[competitor, latency]`.
    """
    first = seconds.argmin(axis=0)
    steps = [(float(latencies[0]), int(first[0]))]
    for place in range(1, len(latencies)):
        before, after = first[place - 1], first[place]
        if before != after:
            lead, behind = (
                seconds[after, each] - seconds[before, each] for each in (place - 1, place)
            )
            share = lead / (lead - behind)
            low, high = latencies[place - 1 : place + 1]
            steps.append((float(low + share * (high - low)), int(after)))
    return steps
