"""The costs of reaching an accuracy, and the last values of runs: one line per configuration or run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpi_ntkdfl.analysis.traces import Group, Trace
from mpi_ntkdfl.metrics import METRICS, Metric, Place, at


@dataclass(frozen=True)
class Spread:
    """Mean and deviation of a number over runs. NaN and infinities are measured values.

    Attributes:
        mean: mean over runs.
        sd: sample standard deviation (divisor n - 1); None for one run.
    """

    mean: float
    sd: float | None


Spreads = Mapping[str, Spread | None]
"""Numbers by the metrics' names; None if a run lacks the number."""


@dataclass(frozen=True)
class Cost:
    """The costs of reaching a target.

    Attributes:
        target: accuracy of the average of all clients.
        reached: number of runs that reached it.
        spreads: means and deviations of the metrics `target`, up to the first evaluated row that reaches
            the target.
    """

    target: float
    reached: int
    spreads: Spreads


@dataclass(frozen=True)
class Outcome:
    """One line of a comparison.

    Attributes:
        method, label: method and label of the configuration.
        name: name of the file if the line is one run; empty for a line over several runs.
        seeds: seeds of the runs.
        costs: the costs of every target.
        ends: means and deviations of the metrics `end`, at the last evaluated row.
        metrics: metrics that were measured in every run, by name.
    """

    method: str
    label: str
    name: str
    seeds: tuple[object, ...]
    costs: tuple[Cost, ...]
    ends: Spreads
    metrics: Mapping[str, Metric]


def outcomes(
    groups: Sequence[Group], targets: Sequence[float], runs: bool = False
) -> list[Outcome]:
    """One outcome per group; if `runs`, one outcome for every run of the group follows it."""
    lines = []
    for group in groups:
        lines.append(_outcome(group, "", group.traces, targets))
        if runs:
            lines += [_outcome(group, t.name, (t,), targets) for t in group.traces]
    return lines


def columns(outcomes: Sequence[Outcome], place: Place) -> list[Metric]:
    """The metrics that are shown at a place: those of the table, and those that only the records have.

    A metric with conditions is shown if it was measured.
    """
    metrics = dict(METRICS)
    for outcome in outcomes:
        metrics.update(outcome.metrics)
    return [
        metric
        for metric in at(place, list(metrics.values()))
        if not metric.when or any(metric.name in outcome.metrics for outcome in outcomes)
    ]


def _outcome(group: Group, name: str, traces: Sequence[Trace], targets: Sequence[float]) -> Outcome:
    ends = [len(trace.rounds) - 1 if len(trace.rounds) else None for trace in traces]
    metrics = list(group.metrics().values())
    return Outcome(
        method=group.method,
        label=group.label,
        name=name,
        seeds=tuple(trace.seed for trace in traces),
        costs=tuple(_cost(traces, metrics, target) for target in targets),
        ends={m.name: _spread(traces, m, ends) for m in at("end", metrics)},
        metrics={m.name: m for m in metrics if all(m.name in trace.curves for trace in traces)},
    )


def _cost(traces: Sequence[Trace], metrics: Sequence[Metric], target: float) -> Cost:
    rows = [trace.first(target) for trace in traces]
    return Cost(
        target=target,
        reached=sum(row is not None for row in rows),
        spreads={m.name: _spread(traces, m, rows) for m in at("target", metrics)},
    )


def _spread(traces: Sequence[Trace], metric: Metric, rows: Sequence[int | None]) -> Spread | None:
    """Mean and deviation of a metric at one row of every run; None if a run lacks the row or the metric.

    A mean over the other runs would favour a method whose slow runs never reach the target.
    """
    values = []
    for trace, row in zip(traces, rows, strict=True):
        if row is None or metric.name not in trace.curves:
            return None
        values.append(float(trace.curves[metric.name][row]))
    if metric.counts and np.isnan(values).any():
        return None
    with np.errstate(invalid="ignore"):  # infinities have no deviation: NaN
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return Spread(float(np.mean(values)), sd)
