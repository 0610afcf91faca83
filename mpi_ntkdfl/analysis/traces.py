"""Runs as traces: metrics after each row with the costs so far; seeds of one configuration are a group.

Row r of a trace is the state after `rounds[r]` rounds; its costs are totals up to this round.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mpi_ntkdfl.analysis import tables
from mpi_ntkdfl.analysis.completed import completed
from mpi_ntkdfl.analysis.starts import Start, over_time
from mpi_ntkdfl.analysis.tables import Run
from mpi_ntkdfl.analysis.words import said
from mpi_ntkdfl.metrics import ACCURACY, Metric
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.looks import LineStyle
from mpi_ntkdfl.storage.schema import FILES

if TYPE_CHECKING:
    from mpi_ntkdfl.runtime.settings import Effect

PATHS = {name: setting for name, setting in FILES.items() if name != "partition"}
"""The contents (`tables.Run.contents`) that keep runs apart, and the settings with their paths.

A partition does not keep runs apart, because each seed may have its own.
"""


def _effect(setting: str) -> Effect:
    """What a setting affects. Call it only if runs differ, because it loads the classes of settings."""
    from mpi_ntkdfl.config import effect

    return effect(setting)


def apart(setting: str) -> bool:
    """Whether runs that differ in a setting have two configurations and are not seeds of one.

    All settings of `compute` keep runs apart, because seconds depend on them. A path does not, but the
    content at the path does.
    """
    if setting.startswith("compute."):
        return True
    return _effect(setting) not in ("place", "seed", "nothing")


def minor(setting: str) -> bool:
    """Whether a label mentions a setting only if two configurations differ in nothing else."""
    return setting.startswith("compute.") or _effect(setting) == "extent"


def must_agree(setting: str) -> bool:
    """Whether a comparison of runs that differ in a setting is unfair, unless methods are compared.

    The settings of a method may differ, because methods are compared. Of the settings of the extent, only
    the interval between evaluations matters: it decides when a target is seen to be reached.
    """
    if setting == "evaluation.every":
        return True
    return _effect(setting) == "result" and not setting.startswith("algorithm.")


@dataclass(frozen=True)
class Trace:
    """A run, reduced to one number per row and metric.

    Attributes:
        name: name of the file.
        settings: the configuration by dotted key.
        method_label: the method's name in figures; the plain name if the record has no label.
        look: how the method's lines look; None if the record does not say it.
        partition: fingerprint of the clients' samples.
        contents: what identifies data, graph file and starting weights, by name.
        starts: the starts that computed its rounds.
        rounds: rounds done, `[row]`.
        metrics: by name: those of the table, and those that only this record has.
        untested: rows without a metric of the clients' own models, by `evaluation.clients_every`: by the
            metric's name, `[row]`; absent where every row has it.
        by_client: metrics of each client's own model, by name, `[row, client]`.
        curves: by the metrics' names, `[row]`; absent where the record does not have the metric. NaN and
            infinities are those that were measured.
    """

    name: str
    settings: dict[str, object]
    method_label: str
    look: LineStyle | None
    partition: str
    contents: Mapping[str, str]
    starts: tuple[Start, ...]
    rounds: np.ndarray
    metrics: Mapping[str, Metric]
    curves: Mapping[str, np.ndarray]
    untested: Mapping[str, np.ndarray] = field(default_factory=dict)
    by_client: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """The algorithm's name."""
        return str(self.settings["algorithm.name"])

    @property
    def machine(self) -> dict[str, str]:
        """The facts on which seconds depend, over all starts."""
        return over_time([start.machine for start in self.starts])

    @property
    def code(self) -> dict[str, str]:
        """The code that computed it, over all starts."""
        return over_time([start.code for start in self.starts])

    @property
    def seed(self) -> object:
        """The run's seed."""
        return self.settings["seed"]

    @property
    def stopped(self) -> bool:
        """Whether the run ended before its last round because its average reached `stop_at`."""
        target = self.settings.get("stop_at")
        return isinstance(target, float | int) and self.first(target) is not None

    def first(self, target: float) -> int | None:
        """The first evaluated row whose accuracy is at least `target`, if any."""
        rows = np.flatnonzero(self.curves[ACCURACY.name] >= target)
        return int(rows[0]) if len(rows) else None


@dataclass(frozen=True)
class Group:
    """Runs that differ in seed and partition file only.

    Attributes:
        method: the algorithm's name.
        label: how the configuration differs from others of the method; empty for a single one.
        traces: the runs, in the given order.
    """

    method: str
    label: str
    traces: tuple[Trace, ...]

    @property
    def method_label(self) -> str:
        """The name of the method in figures."""
        labels = [trace.method_label for trace in self.traces]
        return next((label for label in labels if label != self.method), self.method)

    def shared_rounds(self) -> np.ndarray:
        """The rounds that every run has evaluated, `[row]`."""
        rounds = self.traces[0].rounds
        for trace in self.traces[1:]:
            rounds = np.intersect1d(rounds, trace.rounds)
        return rounds

    def metrics(self) -> dict[str, Metric]:
        """The metrics of its runs by name, those of the table first."""
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

    def untested(self, name: str) -> np.ndarray:
        """Shared rounds without a metric of clients' own models (`clients_every`), `[row]`."""
        shared = self.shared_rounds()
        missing = np.full(len(shared), False)
        for trace in self.traces:
            if name in trace.untested:
                missing |= trace.untested[name][np.searchsorted(trace.rounds, shared)]
        return missing

    def percentiles(self, name: str, shares: Sequence[float]) -> np.ndarray | None:
        """Percentiles over clients at the shared rounds, `[percentile, row]`; means over the runs.

        Args:
            name: name of a metric that is measured on each client's own model.
            shares: percentiles, 0 to 100.

        Returns:
            None if a run does not have the metric by client.
        """
        if not all(name in trace.by_client for trace in self.traces):
            return None
        shared = self.shared_rounds()
        each = [
            np.percentile(t.by_client[name][np.searchsorted(t.rounds, shared)], shares, axis=1)
            for t in self.traces
        ]
        means: np.ndarray = np.mean(each, axis=0)
        return means


# ------------------------------------------------------------------------------------------- reading


def read(paths: Iterable[Path]) -> list[Group]:
    """Reads records and groups them.

    Raises:
        InputError: if one is missing, damaged, or no record.
    """
    every = [trace(tables.read(path), str(path)) for path in paths]
    settings = completed([each.settings for each in every])
    return grouped([replace(each, settings=s) for each, s in zip(every, settings, strict=True)])


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
    for start in run.starts:
        dict(start.machine, **start.code)  # raises here if the record is damaged
    return Trace(
        name=name,
        settings=settings,
        method_label=run.attributes.get("method_label", str(settings["algorithm.name"])),
        look=LineStyle.from_json(look) if (look := run.attributes.get("method_look")) else None,
        partition=run.partition,
        contents=run.contents,
        starts=run.starts,
        rounds=rounds,
        metrics=run.metrics,
        curves={
            metric.name: run.curve(metric)[finished]
            for metric in run.metrics.values()
            if run.has(metric)
        },
        untested={
            metric.name: rows
            for metric in run.metrics.values()
            if run.has(metric) and (rows := run.untested(metric)[finished]).any()
        },
        by_client={
            metric.name: run[metric][: len(rounds)]
            for metric in run.metrics.values()
            if metric.of_clients and not metric.source and run.has(metric)
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
    """Groups the seeds of each configuration, in the order of first appearance, and labels the groups."""
    by_settings: dict[str, list[Trace]] = {}
    telling = [key for key in differing([t.settings for t in traces], exactly) if apart(key)]
    for each in traces:
        kept = {key: each.settings[key] for key in telling if key in each.settings}
        alike = json.dumps([kept, each.contents], sort_keys=True, default=str)
        by_settings.setdefault(alike, []).append(each)
    groups = list(by_settings.values())
    labels = [""] * len(groups)
    for method in dict.fromkeys(group[0].method for group in groups):
        peers = [n for n, group in enumerate(groups) if group[0].method == method]
        for n, label in zip(peers, _labels([groups[n][0] for n in peers]), strict=True):
            labels[n] = label
    return [Group(g[0].method, label, tuple(g)) for g, label in zip(groups, labels, strict=True)]


def _labels(traces: Sequence[Trace]) -> list[str]:
    """Labels by which configurations of one method differ; empty for a single one.

    Content is mentioned only if the settings of some are equal, and small differences only if the content
    is equal as well.
    """
    content = named_contents(traces)
    whole = [{**trace.settings, **named} for trace, named in zip(traces, content, strict=True)]
    keys = [k for k in differing(whole) if k in PATHS or apart(k)]
    major = [key for key in keys if key not in PATHS and not minor(key)]
    with_content = [key for key in keys if key in PATHS or not minor(key)]
    labels: list[str] = []
    for chosen in (major, with_content, keys):
        labels = [_label(settings, chosen) for settings in whole]
        if len(set(labels)) == len(labels):
            break
    return labels


def named_contents(traces: Sequence[Trace]) -> list[dict[str, str]]:
    """The contents of each run in words: paths if they differ, otherwise hashes."""
    named: list[dict[str, str]] = [{} for _ in traces]
    for name, setting in PATHS.items():
        pairs = [(trace.contents.get(name, ""), trace.settings.get(setting)) for trace in traces]
        contents = {content for content, _ in pairs}
        # Equal contents at two paths get the first of the paths.
        paths = dict(reversed(pairs))
        by_path = None not in paths.values() and len(set(paths.values())) == len(contents)
        for each, (content, _) in zip(named, pairs, strict=True):
            each[name] = str(paths[content]) if by_path else content[:12]
    return named


def _label(settings: Mapping[str, object], keys: Iterable[str]) -> str:
    """`regular graph, degree 5`; what is not set is left out."""
    return ", ".join(said(key, settings[key]) for key in keys if settings.get(key) is not None)


def differing(
    mappings: Sequence[Mapping[str, object]], as_text: Callable[[object], str] | None = None
) -> list[str]:
    """Keys whose values are not the same in all mappings; a missing key counts as a value.

    Args:
        mappings: the mappings to compare.
        as_text: how a value is compared; None for what it looks like in YAML.
    """
    text = as_text or as_yaml
    keys = dict.fromkeys(key for mapping in mappings for key in mapping)
    return [key for key in keys if len({text(m.get(key, "none")) for m in mappings}) > 1]


def exactly(value: object) -> str:
    """A value as text that is equal for equal values only."""
    return json.dumps(value, sort_keys=True, default=str)


def as_yaml(value: object) -> str:
    """A value as YAML writes it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
