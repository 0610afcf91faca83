"""The report of a study: a table, figures with their numbers, published numbers, missing runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mpi_ntkdfl.analysis import compare, compare_text
from mpi_ntkdfl.analysis.files import replacing, write_table
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.studies import draw, maps, paired, published
from mpi_ntkdfl.studies.collect import Results, collect
from mpi_ntkdfl.studies.grid import Study
from mpi_ntkdfl.studies.paired import Paired
from mpi_ntkdfl.studies.series import Drawing, drawing

COLUMNS = ("panel", "line", "x_name", "x", "y_name", "y", "sd", "seeds", "source")


@dataclass(frozen=True)
class Report:
    """A study's results, ready to be written.

    Attributes:
        study: the study.
        results: the finished runs.
        outcomes: one line for every combination of variants.
        drawings: its figures.
        pairs: differences between the variants of the axis `compared`; None if the study has none.
    """

    study: Study
    results: Results
    outcomes: tuple[compare.Outcome, ...]
    drawings: tuple[Drawing, ...]
    pairs: Paired | None = None

    @property
    def text(self) -> str:
        """Title, tables, published numbers, missing runs, and runs that other code has computed."""
        definition = self.study.definition
        head = [
            f"{self.study.name}, scale {self.study.scale}: {definition.title}",
            definition.about,
        ]
        blocks = ["\n".join(head), compare_text.text(self.outcomes)]
        if self.pairs is not None:
            blocks.append(paired.text(self.pairs))
        blocks += [published.text(d.figure, d.panels) for d in self.drawings if d.figure.published]
        blocks += ["\n".join(maps.order_text(d)) for d in self.drawings if d.figure.links]
        for notes in (self.results.missing_text(), self.results.other_code_text()):
            if notes:
                blocks.append("\n".join(notes))
        return "\n\n".join(blocks)


def make(study: Study) -> Report:
    """Reads the finished runs of a study and computes its tables and figures.

    Raises:
        InputError: if no run is finished, or one is damaged.
    """
    results = collect(study)
    targets = study.definition.scale(study.scale).targets
    outcomes = compare.outcomes([cell.group() for cell in results.cells], targets)
    drawings = tuple(drawing(results, figure) for figure in study.definition.figures)
    compared = study.definition.compared
    pairs = paired.paired(results, compared) if compared else None
    return Report(study, results, tuple(outcomes), drawings, pairs)


def write(report: Report) -> list[Path]:
    """Writes `table.csv`, `report.txt`, and for each figure NAME.pdf, NAME.svg and NAME.csv.

    A study that compares an axis also has `paired.csv`.

    Returns:
        The files, in the study's folder of reports.

    Raises:
        InputError: if a file cannot be written.
    """
    folder = report.study.reports
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}; choose another -o") from error
    files = [folder / "table.csv", folder / "report.txt"]
    compare_text.write_csv(files[0], report.outcomes)
    with replacing(files[1]) as temporary:
        temporary.write_text(report.text + "\n", encoding="utf-8")
    if report.pairs is not None:
        files.append(folder / "paired.csv")
        paired.write_csv(files[-1], report.pairs)
    for each in report.drawings:
        made = [folder / f"{each.figure.name}.{suffix}" for suffix in ("pdf", "svg", "csv")]
        draw.write(made[0], each)
        draw.write(made[1], each)
        write_numbers(made[2], each)
        files += made
    return files


def numbers(drawn: Drawing) -> list[dict[str, object]]:
    """Every point of a figure in the order of drawing, by the names in `COLUMNS`.

    `sd` is empty for one seed. NaN and infinities are measured values.
    """
    theirs = drawn.figure.published
    rows: list[dict[str, object]] = []
    for panel in drawn.panels:
        for line in panel.lines:
            source = theirs.source if line.published and theirs else "runs"
            for x, mean, sd, seeds in zip(line.x, line.mean, line.sd, line.seeds, strict=True):
                spread = float(sd) if seeds > 1 else ""
                point = float(x), panel.y.name, float(mean), spread, int(seeds), source
                values = (panel.title, line.label, panel.x.name, *point)
                rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def write_numbers(path: Path, drawn: Drawing) -> None:
    """Writes the numbers of a figure as CSV.

    Raises:
        InputError: if the file cannot be written.
    """
    write_table(path, COLUMNS, (list(row.values()) for row in numbers(drawn)))
