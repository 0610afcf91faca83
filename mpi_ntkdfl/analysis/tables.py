"""Reads records and shows their content as text. MPI and torch are not needed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml

from mpi_ntkdfl.analysis.fingerprints import of_first_graph, of_partition
from mpi_ntkdfl.analysis.starts import Start, starts
from mpi_ntkdfl.analysis.words import said, tests_told
from mpi_ntkdfl.metrics import (
    ACCURACY,
    BYTES,
    IN_FLIGHT,
    METRICS,
    MPI_BYTES,
    ROUNDS,
    SECONDS,
    WAITED,
    About,
    Metric,
    at,
    missing_ranks,
)
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.hdf5 import reading, sane
from mpi_ntkdfl.runtime.metric import clients_tested
from mpi_ntkdfl.runtime.units import duration, readable
from mpi_ntkdfl.storage.schema import end_of_run, metrics_of


@dataclass(frozen=True)
class Run:
    """A record in memory.

    Attributes:
        attributes: attributes of the root.
        metrics: by name: those of the table that have a dataset or follow from one, and those that only
            this record has.
        values: values of the metrics in the record, by name; see `metrics.Metric.axes` for their axes.
        traffic_phases: phases of the traffic.
        time_phases: phases of the time.
        partition: fingerprint of the clients' samples, empty if the record has none.
        edges: fingerprint of the first round's graph, empty if the record has none.
    """

    attributes: dict[str, str]
    metrics: Mapping[str, Metric]
    values: Mapping[str, np.ndarray]
    traffic_phases: list[str]
    time_phases: list[str]
    partition: str = ""
    edges: str = ""

    def __getitem__(self, metric: Metric | str) -> np.ndarray:
        """The values of a metric, or those from which it is computed.

        Raises:
            KeyError: if the record lacks them.
        """
        row = self.metrics[metric] if isinstance(metric, str) else metric
        return self.values[row.source or row.name]

    @property
    def rounds(self) -> np.ndarray:
        """Rounds done at each row, `[row]`."""
        return self[ROUNDS]

    @property
    def done(self) -> int:
        """Number of rounds whose traffic and time are recorded."""
        return len(self[BYTES])

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration.

        Raises:
            Exception: of many kinds, if the record is damaged.
        """
        # The parser in C is five times faster; PyYAML may have been built without it.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        parsed: dict[str, Any] = yaml.load(self.attributes["config"], Loader=loader)  # noqa: S506 - safe
        return parsed

    @cached_property
    def starts(self) -> tuple[Start, ...]:
        """The starts that computed its rounds.

        Raises:
            Exception: of many kinds, if the record is damaged.
        """
        threads = self.config.get("compute", {}).get("threads")
        return starts(self.attributes, self.done, threads)

    @cached_property
    def contents(self) -> dict[str, str]:
        """What identifies the files on which a result depends, by name, without files that the run lacks.

        A static graph is identified by its edges, so comments and the format of its file do not matter.
        Records of earlier versions do not hold the content of other files, so their paths are used.

        Raises:
            Exception: of many kinds, if the record is damaged.
        """
        told = json.loads(self.attributes.get("contents", "{}"))
        kept = {"data": self.attributes.get("data", "")}
        graph = self.config.get("topology", {})
        if graph.get("kind") == "file":
            moving = graph.get("dynamic") or not self.edges
            kept["graph"] = told.get("graph", str(graph.get("path"))) if moving else self.edges
        if path := self.config.get("model", {}).get("weights"):
            kept["weights"] = told.get("weights", str(path))
        return kept | {name: told[name] for name in ("regions", "trace") if name in told}

    def has(self, metric: Metric) -> bool:
        """Whether the metric was measured; `evaluation.clients: false` leaves out clients' own models."""
        source = self.source(metric)
        if source.of_clients and self.config.get("evaluation", {}).get("clients") is False:
            return False
        return source.name in self.values

    def source(self, metric: Metric) -> Metric:
        """The metric whose dataset this one is computed from: its source, or itself."""
        return self.metrics[metric.source] if metric.source else metric

    def untested(self, metric: Metric) -> np.ndarray:
        """Rows without a metric of the clients' own models, by `evaluation.clients_every`, `[row]`."""
        every = self.config.get("evaluation", {}).get("clients_every", 1)
        last, of_clients = self.config["rounds"], self.source(metric).of_clients
        return np.array(
            [of_clients and not clients_tested(r, last, every) for r in self.rounds], bool
        )

    def curve(self, metric: Metric) -> np.ndarray:
        """One number per row, `[row]`: the state, or the total, after `rounds`.

        Rows after `done` rounds, of a killed run, must be cut off before (`finished`).

        Raises:
            KeyError: if the record lacks the metric.
        """
        rounds = np.minimum(self.rounds, self.done)
        return metric.curve(self[metric], About(rounds, self.time_phases))


def read(path: Path) -> Run:
    """Reads a record; rows that a killed run had not finished are left out.

    Raises:
        InputError: if it is missing, damaged, or no record.
    """
    try:
        with reading(path) as file:
            if is_checkpoint(file):
                raise ValueError(_told_of_checkpoint(path, file))
            held = metrics_of(file)
            return Run(
                attributes={key: str(value) for key, value in file.attrs.items()},
                metrics={**METRICS, **{metric.name: metric for metric in held}},
                values={
                    **_series(file, [metric for metric in held if not metric.by_round]),
                    **_series(file, [metric for metric in held if metric.by_round]),
                },
                traffic_phases=[str(phase) for phase in file["traffic"].attrs["phases"]],
                time_phases=[str(phase) for phase in file["time"].attrs["phases"]],
                partition=of_partition(file),
                edges=of_first_graph(file),
            )
    except FileNotFoundError as error:
        raise InputError(f"no record at {path}") from error
    except Exception as error:  # over a damaged file h5py raises almost anything
        reason = str(error)
        if "filter returned failure" in reason:
            reason = "damaged: some of its numbers do not fit their checksum"
        raise InputError(f"{path} is not a readable record: {reason}") from error


def without_checkpoints(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """The paths that are records, and one line about those that were left out, if there are any.

    A shell's `*.h5` in a folder of runs also names their checkpoints.

    Raises:
        InputError: if nothing else is left.
    """
    records, left_out = list[Path](), list[Path]()
    for path in paths:
        try:
            with reading(path) as file:
                checkpoint = is_checkpoint(file)
        except Exception:  # whoever reads it as a record says what is wrong
            checkpoint = False
        (left_out if checkpoint else records).append(path)
    line = (
        f"left out, because they are checkpoints and not records: {', '.join(map(str, left_out))}"
    )
    if not records:
        raise InputError(f"a record (RUN.h5) is needed; {line}")
    return records, [line] if left_out else []


def is_checkpoint(file: h5py.File) -> bool:
    """Whether a file holds weights, and not a record."""
    return {"layout", "sha256"} <= set(file.attrs) and "params" in file


def _told_of_checkpoint(path: Path, file: h5py.File) -> str:
    name = re.sub(r"\.ckpt(-1)?\.h5$", ".h5", path.name)
    return (
        f"it is a checkpoint, the weights of {len(file['params'])} clients after "
        f"{file.attrs['round']} rounds; its record is {path.with_name(name)}"
    )


def _series(file: h5py.File, metrics: Sequence[Metric]) -> dict[str, np.ndarray]:
    """Datasets that grow together, cut to the rows that all of them have."""
    datasets = {
        metric.name: sane(file, metric.dataset)
        for metric in metrics
        if not metric.optional or metric.dataset in file
    }
    rows = min(len(dataset) for dataset in datasets.values())
    return {name: dataset[:rows] for name, dataset in datasets.items()}


def rounds_of(run: Run) -> tuple[int, int]:
    """Rounds in the record, and the round after which the run is finished, as far as the record tells.

    Raises:
        InputError: if the record lacks what a run writes.
    """
    try:
        rows = run.rounds <= run.done
        return run.done, end_of_run(
            int(run.config["rounds"]),
            run.config.get("stop_at"),
            run.rounds[rows],
            run[ACCURACY][rows],
        )
    except Exception as error:  # attributes of a damaged record can hold anything
        raise InputError(f"the record is damaged or none of this program: {error}") from error


def summary(run: Run) -> str:
    """The configuration, the final numbers, traffic per round, and time by phase, as text.

    Raises:
        InputError: if the record lacks what a run writes.
    """
    try:
        with np.errstate(invalid="ignore"):  # of infinities
            parts = [_what_ran(run), _numbers(run), _traffic(run), _time(run)]
    except Exception as error:  # attributes of a damaged record can hold anything
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"the record is damaged or none of this program: {reason}") from error
    return "\n\n".join("\n".join(part) for part in parts if part)


def _what_ran(run: Run) -> list[str]:
    a, config = run.attributes, run.config
    hosts, commit = len(set(json.loads(a["hosts"]))), a["commit"]
    commit = commit if commit.endswith("-dirty") else commit[:12]
    return [
        f"{config['algorithm']['name']} on {config['dataset']['name']}, {config['clients']} clients, "
        f"seed {config['seed']}",
        f"partition: {_section(config, 'partition')}",
        f"topology:  {_section(config, 'topology')}",
        f"{a['ranks']} ranks on {hosts} host(s), {a['device']}, torch {a['torch']}, {a['mpi']}",
        f"mpi_ntkdfl {a['version']} ({commit}), started {a['created']}",
        *filter(None, (a.get("method_learned"), *tests_told(config))),
        *(f"{name}: {choice}" for name, choice in json.loads(a.get("choices", "{}")).items()),
        *_again(a),
    ]


def _again(attributes: Mapping[str, str]) -> Iterator[str]:
    """One line per later start, which says if the package's sources have changed."""
    sources = attributes.get("sources", "")
    for start in json.loads(attributes.get("resumed", "[]")):
        line = f"resumed after round {start['round']} by {start['ranks']} ranks, {start['created']}"
        changed = start.get("sources", sources) != sources
        sources = start.get("sources", sources)
        yield f"{line}, with other sources ({start['commit'][:12]})" if changed else line


def _section(config: Mapping[str, Any], name: str) -> str:
    """`regular, degree 5, dynamic graph` of a section with a kind; what is not set is left out."""
    section = config[name]
    keys = {key: value for key, value in section.items() if key != "kind" and value is not None}
    return ", ".join([str(section["kind"]), *(said(f"{name}.{k}", v) for k, v in keys.items())])


def _numbers(run: Run) -> list[str]:
    if not len(run.rounds):
        return ["not a single evaluation is finished"]
    last = len(run.rounds) - 1
    shown = sorted({*range(0, last + 1, -(-(last + 1) // 10)), last})
    columns = []
    for metric in at("show", list(run.metrics.values())):
        if run.has(metric):
            curve = run.curve(metric)
            # A count that is NaN does not exist, such as steps that nobody has chosen.
            missing = run.untested(metric) | (np.isnan(curve) & metric.counts)
            cells = ["-" if missing[row] else metric.text(curve[row]) for row in shown]
            width = max(map(len, [metric.head, *cells]))
            columns.append([f"{cell:>{width}}" for cell in [metric.head, *cells]])
    return ["  ".join(line) for line in zip(*columns, strict=True)]


def _traffic(run: Run) -> list[str]:
    if not run.done:
        return ["no round is finished"]
    protocol, moved = run[BYTES], run[MPI_BYTES]
    lines = [f"{'bytes per round':16}{'protocol':>12}{'MPI':>12}"]
    for phase, name in enumerate(run.traffic_phases):
        means = protocol[:, phase].mean(), moved[:, phase].mean()
        if any(means):
            lines.append(f"{name:16}{readable(means[0]):>12}{readable(means[1]):>12}")
    totals = readable(protocol.sum()), readable(moved.sum())
    return [*lines, f"{'whole run':16}{totals[0]:>12}{totals[1]:>12}"]


def _time(run: Run) -> list[str]:
    if not run.done:
        return []
    seconds = run[SECONDS]
    by_phase = _mean_over_ranks(seconds).sum(axis=0)
    lines = [
        f"{name:12}{spent:9.1f} s {100 * spent / by_phase.sum():5.1f} %"
        for name, spent in zip(run.time_phases, by_phase, strict=True)
        if spent
    ]
    by_rank = np.where(missing_ranks(seconds), 0, seconds.sum(axis=2))
    total = by_rank.max(axis=1).sum()
    return [
        f"time, mean over ranks (slowest ranks {duration(total)}, {run.done} rounds)",
        *lines,
        *_hidden(run),
    ]


def _mean_over_ranks(by_rank: np.ndarray) -> np.ndarray:
    """Mean `[round, ...]` of `by_rank` `[round, rank, ...]` over the ranks that a round had."""
    missing = missing_ranks(by_rank)
    missing = missing.reshape(*missing.shape, *[1] * (by_rank.ndim - 2))
    present: np.ndarray = np.where(missing, 0, by_rank).sum(axis=1) / (~missing).sum(axis=1)
    return present


def _hidden(run: Run) -> list[str]:
    """How much of the exchanges overlapped with computation; empty if ranks exchanged nothing."""
    if not (run.has(IN_FLIGHT) and run.has(WAITED) and run[MPI_BYTES].any()):
        return []
    recorded = ~np.isnan(run[IN_FLIGHT]).all(axis=1)  # not of rounds of an earlier version
    flown, waited = (
        _mean_over_ranks(run[metric][recorded]).sum() for metric in (IN_FLIGHT, WAITED)
    )
    if not flown:
        return []
    hidden = flown - waited
    return [
        f"exchange: {waited:.1f} s waited for, {hidden:.1f} s in flight beneath computation "
        f"({100 * hidden / flown:.0f} % hidden at most)"
    ]
