"""Runs as traces: what was reached, against what it had cost by then. Seeds of one configuration group.

Row r of a trace is the state after `rounds[r]` rounds; costs are totals up to there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from mpi_ntkdfl.analysis import tables
from mpi_ntkdfl.analysis.tables import Run
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.looks import LineStyle

UNTIMED = ("evaluate", "record")
"""Phases that serve the experimenter; a real federation would not spend them."""

# Differences that make no other experiment: where data and results lie, and what a seed changes.
_INCIDENTAL = ("seed", "dataset.root", "partition.path", "output.")
# Differences that a label mentions only if nothing else tells two configurations apart.
_MINOR = ("rounds", "evaluation.", "compute.")
# What must agree for a comparison to be fair. `evaluation.clients` changes no number compared.
_FAIR = (
    *("clients", "dataset.", "partition.", "topology.", "model."),
    *("evaluation.every", "compute.dtype"),
)


@dataclass(frozen=True)
class Trace:
    """A run, reduced to what is compared; arrays are `[row]`, NaN where the record has no value.

    Attributes:
        name: of the file.
        settings: the configuration by dotted key.
        method_label: what figures call the method; its name in records that hold no label.
        look: of the method's lines, None in records that hold none.
        partition: fingerprint of the clients' samples.
        machine: what seconds depend on.
        rounds: rounds done.
        accuracy, loss: of the average of all clients, on the test set.
        client_accuracy: mean over clients of their own models' accuracy on the test set.
        own_accuracy: mean over clients of the accuracy on their own distribution.
        deviation: mean distance from the average.
        gradient_norm: at the average.
        protocol_bytes, mpi_bytes: sent so far, all clients together.
        busiest_bytes: sent so far by the busiest client of every round.
        seconds: spent so far by the slowest rank of every round, without `UNTIMED`.
    """

    name: str
    settings: dict[str, object]
    method_label: str
    look: LineStyle | None
    partition: str
    machine: dict[str, object]
    rounds: np.ndarray
    accuracy: np.ndarray
    loss: np.ndarray
    client_accuracy: np.ndarray
    own_accuracy: np.ndarray
    deviation: np.ndarray
    gradient_norm: np.ndarray
    protocol_bytes: np.ndarray
    mpi_bytes: np.ndarray
    busiest_bytes: np.ndarray
    seconds: np.ndarray

    @property
    def method(self) -> str:
        """The algorithm's name."""
        return str(self.settings["algorithm.name"])

    @property
    def seed(self) -> object:
        """The run's seed."""
        return self.settings["seed"]

    def first(self, target: float) -> int | None:
        """The first evaluated row whose accuracy is at least `target`, if any."""
        rows = np.flatnonzero(self.accuracy >= target)
        return int(rows[0]) if len(rows) else None


@dataclass(frozen=True)
class Group:
    """Runs that differ in seed and partition file only.

    Attributes:
        method: the algorithm's name.
        label: what sets the configuration apart from others of the method, empty if nothing needs to.
        traces: the runs, in the order given.
    """

    method: str
    label: str
    traces: tuple[Trace, ...]

    @property
    def method_label(self) -> str:
        """What figures call the method."""
        labels = [trace.method_label for trace in self.traces]
        return next((label for label in labels if label != self.method), self.method)

    def shared_rounds(self) -> np.ndarray:
        """The rounds that every run has evaluated, `[row]`."""
        rounds = self.traces[0].rounds
        for trace in self.traces[1:]:
            rounds = np.intersect1d(rounds, trace.rounds)
        return rounds

    def values(self, field: str) -> np.ndarray:
        """A field of every run at the shared rounds, `[run, row]`."""
        shared = self.shared_rounds()
        rows = [getattr(t, field)[np.searchsorted(t.rounds, shared)] for t in self.traces]
        return np.array(rows, dtype=np.float64)


# ------------------------------------------------------------------------------------------- reading


def read(paths: Iterable[Path]) -> list[Group]:
    """Reads records and groups them.

    Raises:
        InputError: if one is missing, damaged, or no record.
    """
    return grouped([trace(tables.read(path), str(path)) for path in paths])


def trace(run: Run, name: str) -> Trace:
    """Reduces a run to its trace; rows whose rounds a killed run had not finished are left out.

    Raises:
        InputError: if the record lacks what a run writes.
    """
    try:
        return _trace(run, name)
    except Exception as error:  # attributes and shapes of a damaged record can be anything
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{name} is damaged or no record of this program: {reason}") from error


def _trace(run: Run, name: str) -> Trace:
    settings = _flattened(yaml.safe_load(run.attributes["config"]))
    for needed in ("algorithm.name", "seed", "rounds"):
        if needed not in settings:
            raise ValueError(f"its configuration lacks {needed}")
    finished = run.rounds <= len(run.protocol_bytes)
    rounds = run.rounds[finished]
    if np.any(np.diff(rounds, prepend=-1) <= 0):
        raise ValueError("its rounds do not increase")
    timed = [phase not in UNTIMED for phase in run.time_phases]

    def clients(values: np.ndarray | None) -> np.ndarray:
        unknown = np.full((len(run.rounds), 1), np.nan)
        means: np.ndarray = (unknown if values is None else values)[finished].mean(axis=1)
        return means

    def total(by_round: np.ndarray) -> np.ndarray:
        totals: np.ndarray = np.concatenate([[0.0], np.cumsum(by_round)])[rounds]
        return totals

    nothing = np.full(len(run.protocol_bytes), np.nan)
    busiest = nothing if run.busiest_bytes is None else run.busiest_bytes
    machine = {
        "ranks": run.attributes["ranks"],
        "device": run.attributes["device"],
        "hosts": len(set(json.loads(run.attributes["hosts"]))),
        "threads": settings.get("compute.threads"),
    }
    return Trace(
        name=name,
        settings=settings,
        method_label=run.attributes.get("method_label", str(settings["algorithm.name"])),
        look=LineStyle.from_json(look) if (look := run.attributes.get("method_look")) else None,
        partition=run.partition,
        machine=machine,
        rounds=rounds,
        accuracy=run.model_accuracy[finished],
        loss=run.model_loss[finished],
        client_accuracy=clients(run.accuracy),
        own_accuracy=clients(run.own_accuracy),
        deviation=run.deviation[finished],
        gradient_norm=run.gradient_norm[finished],
        protocol_bytes=total(run.protocol_bytes.sum(axis=1)),
        mpi_bytes=total(run.mpi_bytes.sum(axis=1)),
        busiest_bytes=total(busiest),
        seconds=total(np.nansum(run.seconds[..., timed], axis=2).max(axis=1, initial=0)),
    )


def _flattened(section: Mapping[str, object], above: str = "") -> dict[str, object]:
    """`{"topology": {"degree": 5}}` as `{"topology.degree": 5}`."""
    flat: dict[str, object] = {}
    for key, value in section.items():
        flat |= (
            _flattened(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
        )
    return flat


# ------------------------------------------------------------------------------------------ grouping


def grouped(traces: Sequence[Trace]) -> list[Group]:
    """Puts seeds of one configuration together, in order of first appearance, and labels them."""
    by_settings: dict[str, list[Trace]] = {}
    for each in traces:
        kept = {k: v for k, v in each.settings.items() if not k.startswith(_INCIDENTAL)}
        by_settings.setdefault(json.dumps(kept, sort_keys=True, default=str), []).append(each)
    groups = list(by_settings.values())
    labels = [""] * len(groups)
    for method in dict.fromkeys(group[0].method for group in groups):
        peers = [n for n, group in enumerate(groups) if group[0].method == method]
        found = _labels([groups[n][0].settings for n in peers])
        for n, label in zip(peers, found, strict=True):
            labels[n] = label
    return [Group(g[0].method, label, tuple(g)) for g, label in zip(groups, labels, strict=True)]


def _labels(configurations: Sequence[dict[str, object]]) -> list[str]:
    """What sets each of some configurations of one method apart; one alone needs no label."""
    keys = [k for k in _differing(configurations) if not k.startswith(_INCIDENTAL)]
    major = [key for key in keys if not key.startswith(_MINOR)]
    labels = [_label(settings, major) for settings in configurations]
    if len(set(labels)) < len(labels):
        labels = [_label(settings, keys) for settings in configurations]
    return labels


def _label(settings: Mapping[str, object], keys: Iterable[str]) -> str:
    """`topology regular, degree 5`; what is not set is left out."""
    said = []
    for key in keys:
        if settings.get(key) is not None:
            section, _, last = key.rpartition(".")
            said.append(f"{section if last in ('kind', 'name') else last} {_text(settings[key])}")
    return ", ".join(said)


def _differing(mappings: Sequence[Mapping[str, object]]) -> list[str]:
    """Keys whose values are not the same in all mappings; a missing key counts as a value."""
    keys = dict.fromkeys(key for mapping in mappings for key in mapping)
    return [key for key in keys if len({_text(m.get(key, "none")) for m in mappings}) > 1]


def _text(value: object) -> str:
    """A value as YAML writes it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


# ------------------------------------------------------------------------------------------- warnings


def warnings(groups: Sequence[Group]) -> list[str]:
    """What speaks against comparing these runs, one line each; empty if nothing does."""
    lines = []
    if unfair := _unfair(groups):
        lines.append(f"no fair comparison, the runs differ in: {'; '.join(unfair)}")
    traces = [trace for group in groups for trace in group.traces]
    if machines := _spelled([trace.machine for trace in traces]):
        lines.append(f"seconds were not measured alike: {'; '.join(machines)}")
    for each in traces:
        done = int(each.rounds[-1]) if len(each.rounds) else 0
        if done != each.settings["rounds"]:
            lines.append(f"{each.name} has {done} of {each.settings['rounds']} rounds")
    for group in groups:
        again = Counter((trace.seed, trace.partition) for trace in group.traces)
        twice = [trace.name for trace in group.traces if again[trace.seed, trace.partition] > 1]
        if twice:
            lines.append(f"{', '.join(twice)} are one seed, and count as several")
    return lines


def _unfair(groups: Sequence[Group]) -> list[str]:
    """What differs between groups that should not: settings, seeds, samples, start."""
    settings = [
        {k: v for k, v in group.traces[0].settings.items() if k.startswith(_FAIR)}
        for group in groups
    ]
    for each in settings:
        each.pop("dataset.root", None)
        each.pop("partition.path", None)
    found = _spelled(settings)
    seeds = [{trace.seed for trace in group.traces} for group in groups]
    if any(each != seeds[0] for each in seeds):
        found.append("seeds " + " / ".join(",".join(map(str, sorted(s, key=str))) for s in seeds))
    common = set.intersection(*seeds)

    def differ(what: Callable[[Trace], object]) -> bool:
        known = [{(t.seed, what(t)) for t in group.traces if t.seed in common} for group in groups]
        return any(each != known[0] for each in known)

    if differ(lambda trace: trace.partition):
        found.append("the clients' samples under the same seed")
    if differ(lambda trace: float(trace.accuracy[0]) if len(trace.accuracy) else None):
        found.append("the accuracy at the start under the same seed")
    return found


def _spelled(mappings: Sequence[Mapping[str, object]]) -> list[str]:
    """`topology.degree 5 / 10` for every key that differs."""
    return [
        f"{key} " + " / ".join(dict.fromkeys(_text(m.get(key, "none")) for m in mappings))
        for key in _differing(mappings)
    ]
