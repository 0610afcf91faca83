"""Comparisons as text for people and as CSV for programs."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from mpi_ntkdfl.analysis.compare import Cost, Outcome, Spread
from mpi_ntkdfl.analysis.files import replacing, require_suffix
from mpi_ntkdfl.runtime.units import readable

_NOTES = (
    "rounds, bytes and seconds up to the first evaluated round at or above the target; -: not reached",
    "seconds: of each round's slowest rank, without evaluating and recording",
)
_SPREAD_NOTE = "a +- b: mean and standard deviation over the seeds; no mean unless all reached it"


def text(outcomes: Sequence[Outcome]) -> str:
    """A table for every target, one of how the runs ended, and what the columns mean."""
    blocks = [_to_target(outcomes, n) for n in range(len(outcomes[0].costs))]
    notes = [*_NOTES, *([_SPREAD_NOTE] if any(len(o.seeds) > 1 for o in outcomes) else [])]
    return "\n\n".join("\n".join(block) for block in (*blocks, _at_the_end(outcomes), notes))


def _to_target(outcomes: Sequence[Outcome], n: int) -> list[str]:
    def column(name: str, form: Callable[[float], str]) -> list[str]:
        return [_cell(getattr(o.costs[n], name), form) for o in outcomes]

    columns = {
        "rounds": [_rounds(o.costs[n], len(o.seeds)) for o in outcomes],
        "protocol": column("protocol_bytes", readable),
        "busiest client": column("busiest_bytes", readable),
        "MPI": column("mpi_bytes", readable),
        "seconds": column("seconds", _three_digits),
    }
    _drop_if_empty(columns, "busiest client")
    title = f"to accuracy {outcomes[0].costs[n].target:g} of the average of all clients"
    return [title, *_table(_who(outcomes), columns)]


def _at_the_end(outcomes: Sequence[Outcome]) -> list[str]:
    def column(name: str, form: Callable[[float], str]) -> list[str]:
        return [_cell(getattr(o, name), form) for o in outcomes]

    columns = {
        "rounds": column("rounds", _count),
        "average": column("accuracy", "{:.4f}".format),
        "mean client": column("client_accuracy", "{:.4f}".format),
        "own data": column("own_accuracy", "{:.4f}".format),
        "deviation": column("deviation", "{:.4f}".format),
        "protocol": column("protocol_bytes", readable),
    }
    _drop_if_empty(columns, "own data")
    return ["at the last evaluated round", *_table(_who(outcomes), columns)]


def _drop_if_empty(columns: dict[str, list[str]], name: str) -> None:
    """Not every record has these numbers."""
    if set(columns[name]) == {"-"}:
        del columns[name]


def _who(outcomes: Sequence[Outcome]) -> dict[str, list[str]]:
    """The columns on the left; runs of a group are indented and called by their file."""
    who = {
        "method": ["" if o.name else o.method for o in outcomes],
        "label": [f"  {o.name}" if o.name else o.label for o in outcomes],
        "seed": [",".join(map(str, o.seeds)) for o in outcomes],
    }
    if not any(who["label"]):
        del who["label"]
    return who


def _table(left: dict[str, list[str]], right: dict[str, list[str]]) -> list[str]:
    """Lines of a table with a header; text to the left, numbers to the right."""
    columns = []
    for align, named in (("<", left), (">", right)):
        for name, cells in named.items():
            width = max(map(len, (name, *cells)))
            columns.append([f"{cell:{align}{width}}" for cell in (name, *cells)])
    return ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]


def _rounds(cost: Cost, runs: int) -> str:
    """Rounds to a target; if some seeds did not reach it, how many did."""
    if 0 < cost.reached < runs:
        return f"- ({cost.reached} of {runs})"
    return _cell(cost.rounds, _count)


def _count(number: float) -> str:
    """At most one digit after the point: 27, 24.5."""
    return f"{number:.1f}".removesuffix(".0")


def _cell(spread: Spread, form: Callable[[float], str]) -> str:
    if math.isnan(spread.mean):
        return "-"
    return form(spread.mean) + ("" if math.isnan(spread.sd) else f" +- {form(spread.sd)}")


def _three_digits(seconds: float) -> str:
    """Three digits at least, and no exponent: 0.123, 1.23, 12.3, 1234."""
    digits = 2 - math.floor(math.log10(seconds)) if seconds > 0 else 0
    return f"{seconds:.{min(max(digits, 0), 3)}f}"


# ----------------------------------------------------------------------------------------------- CSV


def write_csv(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Writes one line an outcome and target; unknown or unreached numbers are empty.

    Columns: `method`, `label`, `file` (empty for a mean over runs), `seeds`, `runs`, `target`,
    `reached`; then `NAME` and its standard deviation `NAME_sd` for every number of `Cost`, called
    `NAME_to_target`, and of `Outcome`, called `final_NAME`.

    Raises:
        InputError: if the name does not end in .csv, or the file cannot be written.
    """
    require_suffix(path, "csv")
    lines = [_record(outcome, cost) for outcome in outcomes for cost in outcome.costs]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def _record(outcome: Outcome, cost: Cost) -> dict[str, object]:
    line: dict[str, object] = {
        "method": outcome.method,
        "label": outcome.label,
        "file": outcome.name,
        "seeds": " ".join(map(str, outcome.seeds)),
        "runs": len(outcome.seeds),
        "target": cost.target,
        "reached": cost.reached,
    }
    for source, pattern in ((cost, "{}_to_target"), (outcome, "final_{}")):
        for field in fields(source):
            value = getattr(source, field.name)
            if isinstance(value, Spread):
                name = pattern.format(field.name)
                line[name], line[f"{name}_sd"] = map(_number, (value.mean, value.sd))
    return line


def _number(value: float) -> float | str:
    return "" if math.isnan(value) else value
