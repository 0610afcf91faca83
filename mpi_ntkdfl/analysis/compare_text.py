"""Comparisons as text for people and as CSV for programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mpi_ntkdfl.analysis.compare import Cost, Outcome, Spread, Spreads, columns
from mpi_ntkdfl.metrics import ROUNDS, Metric, Place

_NOTES = (
    "rounds, bytes and seconds up to the first evaluated round at or above the target; -: not reached",
    "seconds: of each round's slowest rank, without evaluating and recording",
)
_SPREAD_NOTE = "a +- b: mean and standard deviation over the seeds; no mean unless all reached it"


def text(outcomes: Sequence[Outcome]) -> str:
    """One table per target, one table of the last values, and the meaning of the columns."""
    blocks = [_to_target(outcomes, n) for n in range(len(outcomes[0].costs))]
    notes = [*_NOTES, *([_SPREAD_NOTE] if any(len(o.seeds) > 1 for o in outcomes) else [])]
    return "\n\n".join("\n".join(block) for block in (*blocks, _at_the_end(outcomes), notes))


def _to_target(outcomes: Sequence[Outcome], n: int) -> list[str]:
    costs = [outcome.costs[n] for outcome in outcomes]
    numbers = _numbers(outcomes, "target", [cost.spreads for cost in costs])
    title = f"to accuracy {costs[0].target:g} of the average of all clients"
    return [title, *_table(_who(outcomes), [_rounds(outcomes, n), *numbers])]


def _at_the_end(outcomes: Sequence[Outcome]) -> list[str]:
    numbers = _numbers(outcomes, "end", [outcome.ends for outcome in outcomes])
    rounds = [_cell(ROUNDS, outcome.ends[ROUNDS.name]) for outcome in outcomes]
    title = "at the last evaluated round"
    return [title, *_table(_who(outcomes), [[ROUNDS.head, *rounds], *numbers])]


def _numbers(
    outcomes: Sequence[Outcome], place: Place, spreads: Sequence[Spreads]
) -> list[list[str]]:
    """Columns with their headings, without that of the rounds, and without metrics that no run has."""
    return [
        [metric.head, *(_cell(metric, each.get(metric.name)) for each in spreads)]
        for metric in columns(outcomes, place)
        if metric is not ROUNDS and any(metric.name in outcome.metrics for outcome in outcomes)
    ]


def _rounds(outcomes: Sequence[Outcome], n: int) -> list[str]:
    """The column of rounds to a target; it says how many seeds reached the target if not all did."""
    cells = [ROUNDS.head]
    for outcome in outcomes:
        cost, runs = outcome.costs[n], len(outcome.seeds)
        some = 0 < cost.reached < runs
        cell = _cell(ROUNDS, cost.spreads[ROUNDS.name])
        cells.append(f"- ({cost.reached} of {runs})" if some else cell)
    return cells


def _who(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """The columns on the left; the runs of a group are indented and have the names of their files."""
    methods = ["" if o.name else o.method for o in outcomes]
    labels = [f"  {o.name}" if o.name else o.label for o in outcomes]
    seeds = [",".join(map(str, o.seeds)) for o in outcomes]
    middle = [["label", *labels]] if any(labels) else []
    return [["method", *methods], *middle, ["seed", *seeds]]


def _table(left: Sequence[Sequence[str]], right: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table from its columns; texts are aligned left, numbers right."""
    padded = []
    for align, several in (("<", left), (">", right)):
        for column in several:
            width = max(map(len, column))
            padded.append([f"{cell:{align}{width}}" for cell in column])
    return ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]


def _cell(metric: Metric, spread: Spread | None) -> str:
    if spread is None:
        return "-"
    sd = "" if spread.sd is None else f" +- {metric.text(spread.sd)}"
    return metric.text(spread.mean) + sd


# ----------------------------------------------------------------------------------------------- CSV


def write_csv(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Writes one line per outcome and target.

    Columns: `method`, `label`, `file` (empty for a mean over runs), `seeds`, `runs`, `target`,
    `reached`; then for every metric `NAME_to_target` and `final_NAME` with their standard deviations
    `..._sd`. A field is empty if the target was not reached, if the metric was not recorded, and for the
    deviation of one run. `nan`, `inf` and `-inf` are measured values.

    Raises:
        InputError: if the name does not end in .csv, or the file cannot be written.
    """
    from mpi_ntkdfl.analysis.files import require_suffix, write_table

    require_suffix(path, "csv")
    costs, ends = columns(outcomes, "target"), columns(outcomes, "end")
    lines = [_record(outcome, cost, costs, ends) for outcome in outcomes for cost in outcome.costs]
    write_table(path, list(lines[0]), (list(line.values()) for line in lines))


def _record(
    outcome: Outcome, cost: Cost, costs: Sequence[Metric], ends: Sequence[Metric]
) -> dict[str, object]:
    line: dict[str, object] = {
        "method": outcome.method,
        "label": outcome.label,
        "file": outcome.name,
        "seeds": " ".join(map(str, outcome.seeds)),
        "runs": len(outcome.seeds),
        "target": cost.target,
        "reached": cost.reached,
    }
    for metrics, spreads, pattern in (
        (costs, cost.spreads, "{}_to_target"),
        (ends, outcome.ends, "final_{}"),
    ):
        for metric in metrics:
            name, spread = pattern.format(metric.column), spreads.get(metric.name)
            line[name] = "" if spread is None else spread.mean
            line[f"{name}_sd"] = "" if spread is None or spread.sd is None else spread.sd
    return line
