"""Reports as one HTML page without other files: it contains pictures and styles, and no scripts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader

from mpi_ntkdfl import __version__
from mpi_ntkdfl.analysis import traces
from mpi_ntkdfl.analysis.compare import Spread, columns
from mpi_ntkdfl.analysis.files import replacing, require_suffix
from mpi_ntkdfl.metrics import BYTES, ROUNDS
from mpi_ntkdfl.runtime.units import duration
from mpi_ntkdfl.studies import draw, paired, published
from mpi_ntkdfl.studies.collect import Results, core_seconds
from mpi_ntkdfl.studies.report import COLUMNS, Report, numbers
from mpi_ntkdfl.studies.series import Drawing

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""A table: caption, header and rows."""


@dataclass(frozen=True)
class _Figure:
    """The values of a figure that the template needs.

    Attributes:
        title: a text for readers who cannot see the picture.
        picture: the svg element; only this text is not escaped.
        differences: from published numbers, in words; empty if there are none.
        published: published numbers, or None.
        numbers: the numbers of the figure.
    """

    title: str
    picture: str
    differences: str
    published: Table | None
    numbers: Table


@dataclass(frozen=True)
class _Section:
    """The values of a study that the template needs."""

    name: str
    title: str
    about: str
    scale: str
    seeds: int
    missing: str
    figures: Sequence[_Figure]
    outcomes: Table
    paired: str
    origin: str
    runs: Table
    settings: Table


def write(path: Path, reports: Sequence[Report]) -> None:
    """Writes a page of reports.

    Raises:
        InputError: if its name does not end in .html, or it cannot be written.
    """
    require_suffix(path, "html", "htm")
    with replacing(path) as temporary:
        temporary.write_text(html(reports), encoding="utf-8")


def html(reports: Sequence[Report]) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("mpi_ntkdfl.studies"), autoescape=True, trim_blocks=True
    )
    environment.tests["words"] = lambda cell: not re.match(r"[-\d]|(nan|inf)\b", cell)
    sections = [_section(report, number) for number, report in enumerate(reports)]
    page = environment.get_template("page.html")
    return page.render(version=__version__, sections=sections).lstrip()


def _section(report: Report, number: int) -> _Section:
    study, definition = report.study, report.study.definition
    return _Section(
        name=study.name,
        title=definition.title,
        about=definition.about,
        scale=study.scale,
        seeds=study.seeds,
        missing="\n".join(report.results.missing_text()),
        figures=[
            _figure(drawing, f"s{number}f{place}-") for place, drawing in enumerate(report.drawings)
        ],
        outcomes=_outcomes(report),
        paired="" if report.pairs is None else paired.text(report.pairs),
        origin=_origin(report.results),
        runs=_runs(report.results),
        settings=_shared_settings(report.results),
    )


def _origin(results: Results) -> str:
    """What computed the runs, from which data, and how long that took, in one sentence each."""
    runs = results.distinct()
    told = [finished.record.attributes for finished in runs]
    data = sorted({finished.run.config.dataset.name for finished in runs})
    programs = sorted({f"mpi_ntkdfl {a['version']} (commit {a['commit'][:12]})" for a in told})
    starts = sorted(_when(a["created"]) for a in told)
    seconds = sum(core_seconds(finished.record) for finished in runs)
    return (
        f"Data: {', '.join(data)}. Computed by {', '.join(programs)}. {len(runs)} runs, started from "
        f"{starts[0]} to {starts[-1]}, took {duration(seconds)} on all their ranks together."
    )


def _when(created: str) -> str:
    """A time of the record, `2026-11-26T03:10:08+00:00`, for people."""
    return created.replace("T", " ").replace("+00:00", " UTC")


def _runs(results: Results) -> Table:
    header = ("run", "rounds", "core seconds", "ranks", "started", "commit", "record")
    rows = []
    for finished in results.distinct():
        a, record = finished.record.attributes, finished.record
        spent = f"{core_seconds(record):.1f}"
        row = [finished.run.label, str(record.done), spent, a["ranks"], _when(a["created"])]
        rows.append([*row, a["commit"][:12], finished.run.outputs.record.name])
    return "Runs", header, rows


def _shared_settings(results: Results) -> Table:
    """The settings in which all runs agree; the others are in the names of the runs."""
    settings = [finished.trace.settings for finished in results.distinct()]
    unlike = set(traces.differing(settings))
    rows = [[k, traces.as_yaml(v)] for k, v in settings[0].items() if k not in unlike]
    return "Settings of all runs", ("setting", "value"), rows


def _figure(drawing: Drawing, prefix: str) -> _Figure:
    theirs = drawing.figure.published
    rows = [[_cell(row[name]) for name in COLUMNS] for row in numbers(drawing)]
    return _Figure(
        title=drawing.figure.title,
        picture=_inline(draw.svg(drawing), prefix),
        differences=published.differences(theirs, drawing.panels) if theirs else "",
        published=published.table(theirs, drawing.panels) if theirs else None,
        numbers=("", COLUMNS, rows),
    )


def _inline(svg: str, prefix: str) -> str:
    """Only the svg element, with ids that are unique on the page."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{prefix}', body)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", body)


def _outcomes(report: Report) -> Table:
    """Tables of the last values of every configuration, and of the costs of each target."""
    targets = report.study.definition.scale(report.study.scale).targets
    ends = [m for m in columns(report.outcomes, "end") if "y" in m.places]
    header = ["configuration", "seeds", *(metric.head for metric in ends)]
    header += [f"rounds to {target:g}" for target in targets]
    header += [f"MB to {target:g}" for target in targets]
    rows = []
    for outcome in report.outcomes:
        row = [outcome.label or outcome.method, str(len(outcome.seeds))]
        row += [_spread(outcome.ends.get(metric.name), 4) for metric in ends]
        row += [_spread(cost.spreads[ROUNDS.name], 1) for cost in outcome.costs]
        row += [_spread(cost.spreads[BYTES.name], 1, 1e6) for cost in outcome.costs]
        rows.append(row)
    return "At the end, and to target accuracies (-: not reached by every seed)", header, rows


def _spread(spread: Spread | None, digits: int, unit: float = 1) -> str:
    if spread is None:
        return "-"
    sd = "" if spread.sd is None else f" ± {spread.sd / unit:.{digits}f}"
    return f"{spread.mean / unit:.{digits}f}{sd}"


def _cell(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
