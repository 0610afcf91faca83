"""What runs needed to reach an accuracy, and where they ended: one line a configuration or a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpi_ntkdfl.analysis.traces import Group, Trace


@dataclass(frozen=True)
class Spread:
    """A number over runs.

    Attributes:
        mean: over runs; NaN if a run has no such number.
        sd: sample standard deviation (divisor n - 1); NaN for one run.
    """

    mean: float
    sd: float


@dataclass(frozen=True)
class Cost:
    """What it took to reach a target; NaN where a run did not reach it.

    Attributes:
        target: accuracy of the average of all clients.
        reached: number of runs that reached it.
        rounds: to the first evaluated row at or above the target.
        protocol_bytes, busiest_bytes, mpi_bytes, seconds: up to there, see `traces.Trace`.
    """

    target: float
    reached: int
    rounds: Spread
    protocol_bytes: Spread
    busiest_bytes: Spread
    mpi_bytes: Spread
    seconds: Spread


@dataclass(frozen=True)
class Outcome:
    """One line of a comparison.

    Attributes:
        method, label: of the configuration.
        name: of the file, if this is one run of several or asked for; else empty.
        seeds: of the runs.
        costs: for every target.
        rounds, accuracy, client_accuracy, own_accuracy, deviation, protocol_bytes: at the last
            evaluated row, see `traces.Trace`.
    """

    method: str
    label: str
    name: str
    seeds: tuple[object, ...]
    costs: tuple[Cost, ...]
    rounds: Spread
    accuracy: Spread
    client_accuracy: Spread
    own_accuracy: Spread
    deviation: Spread
    protocol_bytes: Spread


def outcomes(
    groups: Sequence[Group], targets: Sequence[float], runs: bool = False
) -> list[Outcome]:
    """One outcome a group, each followed by one for every run if `runs`."""
    found = []
    for group in groups:
        found.append(_outcome(group, "", group.traces, targets))
        if runs:
            found += [_outcome(group, t.name, (t,), targets) for t in group.traces]
    return found


def _outcome(group: Group, name: str, traces: Sequence[Trace], targets: Sequence[float]) -> Outcome:
    ends = [len(trace.rounds) - 1 if len(trace.rounds) else None for trace in traces]
    return Outcome(
        method=group.method,
        label=group.label,
        name=name,
        seeds=tuple(trace.seed for trace in traces),
        costs=tuple(_cost(traces, target) for target in targets),
        rounds=_spread(traces, "rounds", ends),
        accuracy=_spread(traces, "accuracy", ends),
        client_accuracy=_spread(traces, "client_accuracy", ends),
        own_accuracy=_spread(traces, "own_accuracy", ends),
        deviation=_spread(traces, "deviation", ends),
        protocol_bytes=_spread(traces, "protocol_bytes", ends),
    )


def _cost(traces: Sequence[Trace], target: float) -> Cost:
    rows = [trace.first(target) for trace in traces]
    return Cost(
        target=target,
        reached=sum(row is not None for row in rows),
        rounds=_spread(traces, "rounds", rows),
        protocol_bytes=_spread(traces, "protocol_bytes", rows),
        busiest_bytes=_spread(traces, "busiest_bytes", rows),
        mpi_bytes=_spread(traces, "mpi_bytes", rows),
        seconds=_spread(traces, "seconds", rows),
    )


def _spread(traces: Sequence[Trace], field: str, rows: Sequence[int | None]) -> Spread:
    """Of a field at one row of every run; no number if a run has no such row.

    A mean over the runs that have one would flatter a method whose slow seeds never arrive.
    """
    values = [
        np.nan if row is None else float(getattr(trace, field)[row])
        for trace, row in zip(traces, rows, strict=True)
    ]
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
    return Spread(float(np.mean(values)), sd)
