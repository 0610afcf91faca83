"""The record of a run, `RUN.h5`: provenance, and the metrics of the table `metrics.METRICS`.

Only rank 0 writes. Each append makes a new whole file and renames it over the record; see `growing`. A
reader who opens the file during a run, or after the run was killed, therefore reads a complete file with
all finished rounds.

docs/output.md describes every dataset. The record holds these things beside the metrics:

    /            attributes: schema, run (id of the run), config (YAML), seed, data (sha256), contents
                 (JSON, sha256 by the names in storage/identity.py); version, commit, sources (sha256
                 of the package's sources), versions (JSON: Python, libraries, processor; by host where
                 they differ), created, ranks, hosts, cores (of the first host), host_cores (JSON, of
                 all hosts), threads, memory (of rank 0), mpi, torch, device, choices (JSON), plugins
                 (JSON) of the first start; resumed (JSON: for each later start these attributes and
                 round); method_label, method_look (JSON, see runtime/looks.py; absent if the method
                 has none), method_central (1: has a server), method_learned (what a receiver learns);
                 class_names, site_names (JSON; absent where classes or sites have numbers only)
    /traffic     attribute phases
    /time        attribute phases
    /topology    edges [edge, 2], offsets [round + 1]      round k: edges[offsets[k]:offsets[k+1]]
                 nodes [client]                           names, if the file of the graph has names
    /simulated   only in runs with an environment          metrics of the federation's clock
    /partition   offsets [client + 1], indices             into the training set
                 labels, sites (if there are sites)        of the samples `indices`
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np

from mpi_ntkdfl import __version__
from mpi_ntkdfl.comm.ledger import TRAFFIC_PHASES
from mpi_ntkdfl.comm.world import World
from mpi_ntkdfl.config import Config
from mpi_ntkdfl.evaluate import Evaluation
from mpi_ntkdfl.metrics import (
    BUSIEST_BYTES,
    BYTES,
    CLIENT_ACCURACY,
    IN_FLIGHT,
    MEAN_TAU,
    MPI_BYTES,
    ROUNDS,
    SECONDS,
    WAITED,
    Metric,
    recorded,
)
from mpi_ntkdfl.runtime import identity, limits
from mpi_ntkdfl.runtime.clock import PHASES
from mpi_ntkdfl.runtime.hdf5 import sane, writing
from mpi_ntkdfl.runtime.metric import Condition
from mpi_ntkdfl.storage.growing import Growing
from mpi_ntkdfl.storage.schema import describe, metrics_of, starts_of
from mpi_ntkdfl.storage.whole import replacing

SCHEMA = 2

_PHASES = {"traffic": TRAFFIC_PHASES, "time": PHASES}
"""The phases along the axis `phase` of datasets, by their group."""

_CHECKED = {"fletcher32": True}
"""Options by which datasets have checksums; HDF5 verifies them whenever it reads."""

_CHUNK = 8192
"""Bytes of a chunk with several rows. HDF5 writes a chunk again for every row that is added to it."""


@dataclass(frozen=True)
class RoundRecord:
    """The values of one round, on rank 0.

    Attributes:
        edges: edges of the round's graph, `[edge, 2]`.
        traffic: protocol bytes and MPI bytes, `[2, phase]`.
        seconds: seconds by rank and phase, `[rank, phase]`.
        busiest: protocol bytes into and out of the busiest node.
        flights: seconds that exchanges were in flight, and seconds that ranks waited for them,
            `[rank, 2]`.
        more: values of other metrics by name.
    """

    edges: np.ndarray
    traffic: np.ndarray
    seconds: np.ndarray
    busiest: int
    flights: np.ndarray
    more: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, np.ndarray]:
        """The round's values by the metrics' names."""
        return {
            BYTES.name: self.traffic[0],
            MPI_BYTES.name: self.traffic[1],
            BUSIEST_BYTES.name: np.array(self.busiest),
            SECONDS.name: self.seconds,
            IN_FLIGHT.name: self.flights[:, 0],
            WAITED.name: self.flights[:, 1],
            **self.more,
        }


def provenance(
    world: World, device: str, torch: str, choices: Mapping[str, str]
) -> dict[str, str | int]:
    """The attributes of a record that describe a start: its machine, versions and ways of computing.

    Cores and memory are those that the run is allowed to use (affinity and control groups).
    """
    cores = identity.cores(world.hosts, [i or {} for i in world.identities])
    return {
        "version": __version__,
        "commit": identity.commit(),
        "sources": identity.own()["sources"],
        "versions": json.dumps(identity.versions(world.hosts, [i for i in world.identities if i])),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "ranks": world.size,
        "hosts": json.dumps(world.hosts),
        "cores": cores[world.hosts[0]],
        "host_cores": json.dumps(cores),
        "memory": limits.memory(),
        "mpi": world.library,
        "torch": torch,
        "device": device,
        "choices": json.dumps(dict(choices)),
    }


class Record:
    """Writes one run's record."""

    def __init__(self, path: Path) -> None:
        """Stores the path; `create` makes the file."""
        self.path, self._growing = path, Growing(path)

    def create(
        self,
        attributes: Mapping[str, str | int],
        clients: int,
        ranks: int,
        partition: Mapping[str, np.ndarray],
        sites: int = 0,
        fulfilled: frozenset[Condition] = frozenset(),
        names: Sequence[str] = (),
    ) -> None:
        """Makes the file with empty datasets, and replaces an existing file.

        Args:
            attributes: attributes of the root: `run`, `config`, `seed`, `data`, `contents` and those of
                `provenance`.
            clients: M, the number of clients.
            ranks: R, the number of ranks.
            partition: arrays by name: `offsets` `[client + 1]`, `indices`, and those of `data.facts`.
            sites: number of sites; 0 if the test samples have none.
            fulfilled: conditions that the run fulfils; metrics that need others are left out.
            names: of the clients, `[client]`, if the file of the graph has names.

        Raises:
            SimulationError: if the file cannot be written.
        """
        with replacing(self.path) as path, writing(path, "w") as file:
            file.attrs["schema"] = SCHEMA
            file.attrs.update({"resumed": "[]", **attributes})
            metrics = [metric for metric in recorded() if metric.when <= fulfilled]
            self._lay_out(file, metrics, {"client": clients, "rank": ranks, "site": sites})
            for name, values in partition.items():
                file.create_dataset(f"partition/{name}", data=values, chunks=True, **_CHECKED)
            if names:
                file.create_dataset("topology/nodes", data=list(names), dtype=h5py.string_dtype())

    def resume(
        self, done: int, config: Config, start: Mapping[str, str | int], run: str = ""
    ) -> None:
        """Removes the rounds after `done`, and adds the attributes of another start.

        Args:
            done: number of rounds done; the record has at least as many.
            config: of the resumed run. A former run may have ended before. Then a row at a round that is
                not evaluated is removed, and tests of clients that are not due become NaN.
            start: the `provenance` of this start.
            run: id of the run, for records of earlier versions, which have none.

        Raises:
            SimulationError: if the file cannot be written.
        """
        due = config.evaluation
        with self._changing() as file:
            _fit_phases(file)
            kept = [r for r in _of(file, ROUNDS)[:].tolist() if r <= done and r % due.every == 0]
            untested = [n for n, r in enumerate(kept) if not due.tests_clients(r, config.rounds)]
            ranks = max(_of(file, SECONDS).shape[1], int(start["ranks"]))
            sizes = {"client": _of(file, CLIENT_ACCURACY).shape[1], "rank": ranks}
            for metric in metrics_of(file):
                rows = done if metric.by_round else len(kept)
                if metric.dataset not in file:
                    _create(file, metric, sizes)
                    _of(file, metric).resize(rows, axis=0)
                    _of(file, metric)[...] = np.nan
                describe(_of(file, metric), metric)
                _of(file, metric).resize(rows, axis=0)
                # h5py does not fill several rows at once where they are longer than a chunk.
                for row in untested if metric.of_clients else ():
                    _of(file, metric)[row] = np.nan
                if metric.by_rank:
                    _widen(file, metric, ranks)
            offsets = file["topology/offsets"]
            offsets.resize(done + 1, axis=0)
            file["topology/edges"].resize(int(offsets[done]), axis=0)
            file.attrs["config"] = config.to_yaml()
            file.attrs.setdefault("run", run)
            starts = [*json.loads(file.attrs["resumed"]), {"round": done, **start}]
            file.attrs["resumed"] = json.dumps(starts)

    def _lay_out(
        self, file: h5py.File, metrics: Sequence[Metric], sizes: Mapping[str, int]
    ) -> None:
        for metric in metrics:
            _create(file, metric, sizes)
        for name, dtype, rows, shape in (
            ("topology/edges", "i4", 0, (2,)),
            ("topology/offsets", "i8", 1, ()),
        ):
            growing = {"maxshape": (None, *shape), "chunks": _chunks(shape, np.dtype(dtype))}
            file.create_dataset(name, (rows, *shape), dtype, **growing, **_CHECKED)
        for group, phases in _PHASES.items():
            file[group].attrs["phases"] = list(phases)

    def append(
        self,
        done: int,
        taus: np.ndarray,
        evaluation: Evaluation | None,
        round_record: RoundRecord | None,
    ) -> None:
        """Appends the values of a round.

        Args:
            done: number of rounds done.
            taus: tau of each client in the last round, `[client]`; zeros at the start.
            evaluation: values of a row; None if this round was not evaluated.
            round_record: traffic, time and graph; None at the start.

        Raises:
            SimulationError: if the file cannot be written.
        """
        rows: dict[str, np.ndarray] = {}
        if round_record is not None:
            rows |= round_record.values
        if evaluation is not None:
            rows |= {**evaluation, ROUNDS.name: np.array(done), MEAN_TAU.name: taus}
        # Copies, because the change is applied once more at the next append.
        rows = {name: np.array(values) for name, values in rows.items()}

        def add(file: h5py.File) -> None:
            if round_record is not None:
                _extend(file["topology/edges"], round_record.edges)
                _extend(file["topology/offsets"], [len(file["topology/edges"])])
            for metric in metrics_of(file):
                if (round_record if metric.by_round else evaluation) is not None:
                    _append(_of(file, metric), rows.get(metric.name))

        self._growing.append(add)

    def close(self) -> None:
        """Removes what only the next append would need."""
        self._growing.close()

    @contextlib.contextmanager
    def _changing(self) -> Iterator[h5py.File]:
        """Yields an open copy of the file, which replaces the file at the end."""
        with replacing(self.path) as path:
            shutil.copyfile(self.path, path)
            with writing(path, "r+") as file:
                yield file


def last_choices(file: h5py.File) -> dict[str, str]:
    """The ways of computing at the last start of a run; empty for records that do not have them."""
    last = starts_of(file.attrs)[-1]
    return {str(k): str(v) for k, v in json.loads(last.get("choices", "{}")).items()}


def read_all(file: h5py.File) -> None:
    """Reads everything that a resumed run will change, so that damage is noticed before it computes.

    Raises:
        Exception: of many kinds, if the file is damaged.
    """
    for metric in metrics_of(file):
        # A missing metric is filled with NaN, but a count, which is an integer, has no NaN.
        if metric.dataset in file or not metric.optional or metric.counts:
            sane(file, metric.dataset)[...]
    for name in ("topology/edges", "topology/offsets"):
        sane(file, name)[...]
    for group, phases in _PHASES.items():
        if unknown := set(file[group].attrs["phases"].tolist()) - set(phases):
            raise ValueError(f"/{group} has unknown phases: {sorted(unknown)}")


def _of(file: h5py.File, metric: Metric) -> h5py.Dataset:
    return file[metric.dataset]


def _create(file: h5py.File, metric: Metric, sizes: Mapping[str, int]) -> None:
    """Makes the empty dataset of a metric and describes it in attributes.

    Only the first axis can grow. With a second such axis HDF5 would keep the chunks in a B-tree, and the
    library crashes over a damaged one.

    Args:
        file: the record.
        metric: the metric.
        sizes: sizes of the axes `client`, `rank` and `site`, as far as the metric has them.
    """
    phases = _PHASES.get(metric.dataset.partition("/")[0], ())
    sizes = {**sizes, "phase": len(phases)}
    shape = tuple(sizes[name] for name in metric.axes.split(",")[1:])
    fill = {"fillvalue": np.nan} if metric.by_rank else {}
    dataset = file.create_dataset(
        metric.dataset,
        (0, *shape),
        metric.dtype,
        maxshape=(None, *shape),
        chunks=_chunks(shape, np.dtype(metric.dtype)),
        **_CHECKED,
        **fill,
    )
    describe(dataset, metric)


def _chunks(shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
    """Shape of the chunks of a dataset whose rows have the shape `shape`."""
    sides = tuple(max(1, size) for size in shape)
    return (max(1, _CHUNK // (math.prod(sides) * dtype.itemsize)), *sides)


def _fit_phases(file: h5py.File) -> None:
    """Gives a record of an earlier version today's phases; phases that it did not have are 0."""
    former = file["time"].attrs["phases"].tolist()
    if former == list(PHASES):
        return
    seconds = _of(file, SECONDS)[:]
    fitted = np.zeros((*seconds.shape[:2], len(PHASES)))
    fitted[np.isnan(seconds).all(axis=2)] = np.nan  # ranks that did not exist in a round
    for place, phase in enumerate(former):
        fitted[..., PHASES.index(phase)] = seconds[..., place]
    _replace(file, SECONDS, fitted)
    file["time"].attrs["phases"] = list(PHASES)


def _widen(file: h5py.File, metric: Metric, ranks: int) -> None:
    """Extends the axis of ranks to `ranks`; former rounds have NaN for the new ranks."""
    former = _of(file, metric)
    if former.maxshape[1] != ranks:  # None in records of earlier versions
        values = np.full((len(former), ranks, *former.shape[2:]), np.nan)
        values[:, : former.shape[1]] = former[:]
        _replace(file, metric, values)


def _replace(file: h5py.File, metric: Metric, values: np.ndarray) -> None:
    """Replaces the dataset of a metric by rank by one of another number of ranks or phases."""
    del file[metric.dataset]
    _create(file, metric, {"rank": values.shape[1]})
    _of(file, metric).resize(len(values), axis=0)
    _of(file, metric)[...] = values


def _append(dataset: h5py.Dataset, values: np.ndarray | None) -> None:
    """Appends an entry: NaN if there are no values, and for ranks that did not exist in this round."""
    shape = dataset.shape[1:]
    if values is None:
        assert dataset.dtype.kind == "f", f"no values of the count {dataset.name}"
        values = np.full(shape, np.nan)
    elif values.shape != shape:  # fewer ranks than an earlier start had
        fewer, values = values, np.full(shape, np.nan)
        values[: len(fewer)] = fewer
    _extend(dataset, values[None])


def _extend(dataset: h5py.Dataset, rows: np.ndarray | Sequence[float]) -> None:
    start = len(dataset)
    dataset.resize(start + len(rows), axis=0)
    dataset[start:] = rows
