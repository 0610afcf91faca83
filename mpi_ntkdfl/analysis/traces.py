"""Runs as traces: what was reached, against what it had cost by then. Seeds of one configuration group.

Row r of a trace is the state after `rounds[r]` rounds; costs are totals up to there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mpi_ntkdfl.analysis import tables
from mpi_ntkdfl.analysis.tables import Run
from mpi_ntkdfl.metrics import ACCURACY, Metric
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.looks import LineStyle

if TYPE_CHECKING:
    from mpi_ntkdfl.runtime.settings import Effect

_CONTENT_RECORDED = ("dataset", "partition")
"""Sections whose content a record holds, so that where their files are says nothing."""


def _effect(setting: str) -> Effect:
    """What a setting affects. Asked only where runs differ, since it loads the classes of settings."""
    from mpi_ntkdfl.config import effect

    return effect(setting)


def apart(setting: str) -> bool:
    """Whether runs that differ in a setting are of two configurations, and not seeds of one.

    All settings of `compute` keep runs apart, because seconds depend on them. A path does, unless the
    record holds what was at the path.
    """
    section, affected = setting.partition(".")[0], _effect(setting)
    if section == "compute":
        return True
    if affected == "place":
        return section not in _CONTENT_RECORDED
    return affected not in ("seed", "nothing")


def minor(setting: str) -> bool:
    """Whether a label mentions a setting only if nothing else tells two configurations apart."""
    return setting.startswith("compute.") or _effect(setting) == "extent"


def must_agree(setting: str) -> bool:
    """Whether a comparison of runs that differ in a setting is unfair, unless methods are compared.

    The settings of a method may differ, since methods are what is compared. Of the extent, only how
    often a run is measured matters: it decides when a target is seen to be reached.
    """
    if setting == "evaluation.every":
        return True
    compared = _effect(setting) in ("result", "place") and not setting.startswith("algorithm.")
    return compared and apart(setting)


@dataclass(frozen=True)
class Trace:
    """A run, reduced to one number per row and metric.

    Attributes:
        name: of the file.
        settings: the configuration by dotted key.
        method_label: what figures call the method; its name in records that hold no label.
        look: of the method's lines, None in records that hold none.
        partition: fingerprint of the clients' samples.
        machine: what seconds depend on.
        rounds: rounds done, `[row]`.
        metrics: by name: those of the table, and those that only this record has.
        curves: by the metrics' names, `[row]`; absent where the record does not have the metric. NaN and
            infinities are those that were measured.
    """

    name: str
    settings: dict[str, object]
    method_label: str
    look: LineStyle | None
    partition: str
    machine: dict[str, object]
    rounds: np.ndarray
    metrics: Mapping[str, Metric]
    curves: Mapping[str, np.ndarray]

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
        rows = np.flatnonzero(self.curves[ACCURACY.name] >= target)
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

    def metrics(self) -> dict[str, Metric]:
        """The metrics that its runs know, by name: those of the table first."""
        return {name: metric for trace in self.traces for name, metric in trace.metrics.items()}

    def values(self, name: str) -> np.ndarray:
        """A metric of every run at the shared rounds, `[run, row]`; NaN where a run does not have it."""
        shared = self.shared_rounds()
        rows = [
            trace.curves[name][np.searchsorted(trace.rounds, shared)]
            if name in trace.curves
            else np.full(len(shared), np.nan)
            for trace in self.traces
        ]
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
    settings = flattened(run.config)
    for needed in ("algorithm.name", "seed", "rounds"):
        if needed not in settings:
            raise ValueError(f"its configuration lacks {needed}")
    finished = run.rounds <= run.done
    rounds = run.rounds[finished]
    if np.any(np.diff(rounds, prepend=-1) <= 0):
        raise ValueError("its rounds do not increase")
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
        metrics=run.metrics,
        curves={
            metric.name: run.curve(metric)[finished]
            for metric in run.metrics.values()
            if run.has(metric)
        },
    )


def flattened(section: Mapping[str, object], above: str = "") -> dict[str, object]:
    """`{"topology": {"degree": 5}}` as `{"topology.degree": 5}`."""
    flat: dict[str, object] = {}
    for key, value in section.items():
        flat |= (
            flattened(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
        )
    return flat


# ------------------------------------------------------------------------------------------ grouping


def grouped(traces: Sequence[Trace]) -> list[Group]:
    """Puts seeds of one configuration together, in order of first appearance, and labels them."""
    by_settings: dict[str, list[Trace]] = {}
    telling = [key for key in _differing([t.settings for t in traces], _exactly) if apart(key)]
    for each in traces:
        kept = {key: each.settings[key] for key in telling if key in each.settings}
        by_settings.setdefault(json.dumps(kept, sort_keys=True, default=str), []).append(each)
    groups = list(by_settings.values())
    labels = [""] * len(groups)
    for method in dict.fromkeys(group[0].method for group in groups):
        peers = [n for n, group in enumerate(groups) if group[0].method == method]
        for n, label in zip(peers, _labels([groups[n][0].settings for n in peers]), strict=True):
            labels[n] = label
    return [Group(g[0].method, label, tuple(g)) for g, label in zip(groups, labels, strict=True)]


def _labels(configurations: Sequence[dict[str, object]]) -> list[str]:
    """What sets each of some configurations of one method apart; a single one needs no label."""
    keys = [k for k in _differing(configurations) if apart(k)]
    major = [key for key in keys if not minor(key)]
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


def _differing(
    mappings: Sequence[Mapping[str, object]], as_text: Callable[[object], str] | None = None
) -> list[str]:
    """Keys whose values are not the same in all mappings; a missing key counts as a value.

    Args:
        mappings: to compare.
        as_text: how a value is compared; None for what it looks like in YAML.
    """
    text = as_text or _text
    keys = dict.fromkeys(key for mapping in mappings for key in mapping)
    return [key for key in keys if len({text(m.get(key, "none")) for m in mappings}) > 1]


def _exactly(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


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
    settings = [group.traces[0].settings for group in groups]
    differing = [key for key in _differing(settings) if must_agree(key)]
    reasons = _spelled([{k: each[k] for k in differing if k in each} for each in settings])
    seeds = [{trace.seed for trace in group.traces} for group in groups]
    if any(each != seeds[0] for each in seeds):
        reasons.append("seeds " + " / ".join(",".join(map(str, sorted(s, key=str))) for s in seeds))
    common = set.intersection(*seeds)

    def differ(what: Callable[[Trace], object]) -> bool:
        told = [{(t.seed, what(t)) for t in group.traces if t.seed in common} for group in groups]
        return any(each != told[0] for each in told)

    if differ(lambda trace: trace.partition):
        reasons.append("the clients' samples under the same seed")
    if differ(lambda trace: trace.curves[ACCURACY.name][:1].tobytes()):
        reasons.append("the accuracy at the start under the same seed")
    return reasons


def _spelled(mappings: Sequence[Mapping[str, object]]) -> list[str]:
    """`topology.degree 5 / 10` for every key that differs."""
    return [
        f"{key} " + " / ".join(dict.fromkeys(_text(m.get(key, "none")) for m in mappings))
        for key in _differing(mappings)
    ]
