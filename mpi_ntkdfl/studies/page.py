"""Reports as one HTML page that needs nothing else: inline pictures and styles, no scripts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from mpi_ntkdfl import __version__
from mpi_ntkdfl.analysis.files import replacing, require_suffix
from mpi_ntkdfl.studies import draw
from mpi_ntkdfl.studies.definition import Published
from mpi_ntkdfl.studies.report import COLUMNS, Report, numbers

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1rem; }
figure { margin: 1.5rem 0; } svg { max-width: 100%; height: auto; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.85rem; margin: 1rem 0; }
th, td { padding: 0.2rem 0.6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th.text, td.text { text-align: left; } caption { text-align: left; font-weight: 600; }
.missing { border-left: 4px solid #d55e00; padding-left: 1rem; } summary { cursor: pointer; }
nav li { margin: 0.2rem 0; } pre { white-space: pre-wrap; }
"""


def write(path: Path, reports: Sequence[Report]) -> None:
    """Writes a page of reports.

    Raises:
        InputError: if its name does not end in .html, or it cannot be written.
    """
    require_suffix(path, "html", "htm")
    with replacing(path) as temporary:
        temporary.write_text(html(reports), encoding="utf-8")


def html(reports: Sequence[Report]) -> str:
    """The page."""
    contents = "".join(
        f'<li><a href="#{escape(r.study.name)}">{escape(r.study.definition.title)}</a></li>'
        for r in reports
    )
    sections = "".join(_section(report, number) for number, report in enumerate(reports))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Studies</title><style>{_STYLE}</style></head><body>"
        f"<h1>Studies</h1><p>mpi_ntkdfl {escape(__version__)}. Lines are means over seeds, bands one "
        "standard deviation. Accuracy is that of the average of all clients on the test set "
        f"unless said otherwise.</p><nav><ul>{contents}</ul></nav>{sections}</body></html>\n"
    )


def _section(report: Report, number: int) -> str:
    study, definition = report.study, report.study.definition
    parts = [
        f'<section id="{escape(study.name)}"><h2>{escape(definition.title)}</h2>'
        f"<p>{escape(definition.about)}</p>"
        f"<p>Study {escape(study.name)}, scale {study.scale}, {study.seeds} seed(s).</p>"
    ]
    if missing := report.results.missing_text():
        lines = escape("\n".join(missing))
        parts.append(f'<div class="missing"><pre>{lines}</pre></div>')
    for place, drawing in enumerate(report.drawings):
        picture = _inline(draw.svg(drawing), f"s{number}f{place}-")
        title = escape(drawing.figure.title)
        parts.append(f'<figure role="img" aria-label="{title}">{picture}</figure>')
        if drawing.figure.published:
            parts.append(_published(drawing.figure.published))
        rows = [[_cell(row[name]) for name in COLUMNS] for row in numbers(drawing)]
        table = _table("", COLUMNS, rows)
        parts.append(f"<details><summary>Numbers of the figure</summary>{table}</details>")
    parts.append(_outcomes(report))
    parts.append("</section>")
    return "".join(parts)


def _inline(svg: str, prefix: str) -> str:
    """The svg element alone, its ids made unique on the page."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{prefix}', body)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", body)


def _published(published: Published) -> str:
    rows = [
        [line.panel, line.line, f"{x:g}", f"{y:.3f}"]
        for line in published.lines
        for x, y in zip(line.x, line.y, strict=True)
    ]
    caption = f"Published, at the paper's scale: {published.source}"
    return (
        "<details><summary>Published numbers</summary>"
        f"{_table(caption, ('panel', 'line', 'x', 'y'), rows)}</details>"
    )


def _outcomes(report: Report) -> str:
    """The end of every configuration, and its way to the targets."""
    targets = report.study.definition.scale(report.study.scale).targets
    header = ["configuration", "seeds", "average", "mean client", "deviation"]
    header += [f"rounds to {target:g}" for target in targets]
    header += [f"MB to {target:g}" for target in targets]
    rows = []
    for outcome in report.outcomes:
        row = [outcome.label or outcome.method, str(len(outcome.seeds))]
        row += [
            _spread(each.mean, each.sd, 4)
            for each in (outcome.accuracy, outcome.client_accuracy, outcome.deviation)
        ]
        row += [_spread(cost.rounds.mean, cost.rounds.sd, 1) for cost in outcome.costs]
        for cost in outcome.costs:
            row.append(_spread(cost.protocol_bytes.mean / 1e6, cost.protocol_bytes.sd / 1e6, 1))
        rows.append(row)
    caption = "At the end, and to target accuracies (-: not reached by every seed)"
    return _table(caption, header, rows)


def _spread(mean: float, sd: float, digits: int) -> str:
    if mean != mean:  # NaN
        return "-"
    return f"{mean:.{digits}f}" + ("" if sd != sd else f" ± {sd:.{digits}f}")


def _cell(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cell(tag: str, text: str) -> str:
        kind = "" if re.match(r"^[-\d]", text) else ' class="text"'
        return f"<{tag}{kind}>{escape(text)}</{tag}>"

    head = "".join(cell("th", name) for name in header)
    body = "".join(f"<tr>{''.join(cell('td', text) for text in row)}</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="table"><table>{title}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
