"""The record of a run, `RUN.h5`: provenance, and the metrics of the table `metrics.METRICS`.

Only rank 0 writes. Each append makes a new whole file and renames it over the record; see `growing`.
So whoever opens the file, while the run goes on or after it was killed, finds a whole one with every
finished round.

docs/output.md describes every dataset. What is no metric:

    /            attributes: schema, run (id of the run), config (YAML), seed, data (sha256), contents
                 (JSON, sha256 by the names in storage/identity.py); version, commit, sources (sha256
                 of the package's sources), versions (JSON: Python, libraries, processor; by host where
                 they differ), created, ranks, hosts, cores (of the first host), host_cores (JSON, of
                 all hosts), threads, memory (of rank 0), mpi, torch, device, choices (JSON), plugins
                 (JSON) of the first start; resumed (JSON, the same of later starts, and round);
                 method_label, method_look (JSON, see runtime/looks.py; absent if it has none),
                 method_central (1 if the method has a server); class_names, site_names (JSON; absent
                 where classes or sites are only numbered)
    /traffic     attribute phases
    /time        attribute phases
    /topology    edges [edge, 2], offsets [round + 1]      round k: edges[offsets[k]:offsets[k+1]]
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
from mpi_ntkdfl.storage.growing import Growing
from mpi_ntkdfl.storage.schema import describe, metrics_of, starts_of
from mpi_ntkdfl.storage.whole import replacing

SCHEMA = 2

_PHASES = {"traffic": TRAFFIC_PHASES, "time": PHASES}
"""The phases of the datasets of a group that have such an axis."""


_CHECKED = {"fletcher32": True}
"""Datasets carry checksums, which HDF5 compares whenever it reads."""

_CHUNK = 8192
"""Bytes of a chunk with several rows. HDF5 writes a chunk again for every row that is added to it."""


@dataclass(frozen=True)
class RoundRecord:
    """What one round adds, on rank 0.

    Attributes:
        edges: of the round's graph, `[edge, 2]`.
        traffic: protocol and MPI bytes, `[2, phase]`.
        seconds: by rank and phase, `[rank, phase]`.
        busiest: protocol bytes in plus out of the busiest node.
        flights: seconds of exchanges in flight, and waited for, `[rank, 2]`.
        more: values of further metrics, by name.
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
    """Where, with which versions and in which ways of computing a run starts: attributes of a record.

    Cores and memory are those that the run may use, by affinity and control groups.
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
        """Names the file; `create` makes it."""
        self.path = path
        self._growing = Growing(path)

    def create(
        self,
        attributes: Mapping[str, str | int],
        clients: int,
        ranks: int,
        partition: Mapping[str, np.ndarray],
    ) -> None:
        """Makes the file with empty datasets, replacing one that is there.

        Args:
            attributes: of the root: `run`, `config`, `seed`, `data`, `contents` and those of
                `provenance`.
            clients: M.
            ranks: R.
            partition: by name, `offsets` `[client + 1]`, `indices` and what `data.facts` adds.

        Raises:
            SimulationError: if the file cannot be written.
        """
        with replacing(self.path) as path, writing(path, "w") as file:
            file.attrs["schema"] = SCHEMA
            file.attrs.update({"resumed": "[]", **attributes})
            self._lay_out(file, clients, ranks)
            for name, values in partition.items():
                file.create_dataset(f"partition/{name}", data=values, chunks=True, **_CHECKED)

    def resume(
        self,
        done: int,
        every: int,
        config_yaml: str,
        start: Mapping[str, str | int],
        run: str = "",
    ) -> None:
        """Cuts what is beyond `done` rounds, and notes another start.

        Args:
            done: rounds done, at most those in the record.
            every: rounds between evaluations. A row between, from a run that was to end there, goes.
            config_yaml: the configuration the run goes on with.
            start: its `provenance`.
            run: id of the run, for records of earlier versions, which have none.

        Raises:
            SimulationError: if it cannot be written.
        """
        with self._changing() as file:
            _fit_phases(file)
            kept = [r for r in _of(file, ROUNDS)[:].tolist() if r <= done and r % every == 0]
            clients, ranks = _of(file, CLIENT_ACCURACY).shape[1], _of(file, SECONDS).shape[1]
            ranks = max(ranks, int(start["ranks"]))
            for metric in metrics_of(file):
                rows = done if metric.by_round else len(kept)
                if metric.dataset not in file:
                    _create(file, metric, clients, ranks)
                    _of(file, metric).resize(rows, axis=0)
                    _of(file, metric)[...] = np.nan
                describe(_of(file, metric), metric)
                _of(file, metric).resize(rows, axis=0)
                if metric.by_rank:
                    _widen(file, metric, ranks)
            offsets = file["topology/offsets"]
            offsets.resize(done + 1, axis=0)
            file["topology/edges"].resize(int(offsets[done]), axis=0)
            file.attrs["config"] = config_yaml
            if run and "run" not in file.attrs:
                file.attrs["run"] = run
            starts = [*json.loads(file.attrs["resumed"]), {"round": done, **start}]
            file.attrs["resumed"] = json.dumps(starts)

    def _lay_out(self, file: h5py.File, clients: int, ranks: int) -> None:
        for metric in recorded():
            _create(file, metric, clients, ranks)
        for name, dtype, rows, shape in (
            ("topology/edges", "i4", 0, (2,)),
            ("topology/offsets", "i8", 1, ()),
        ):
            limits = (None, *shape)
            chunks = _chunks(shape, np.dtype(dtype))
            file.create_dataset(
                name, (rows, *shape), dtype, maxshape=limits, chunks=chunks, **_CHECKED
            )
        for group, phases in _PHASES.items():
            file[group].attrs["phases"] = list(phases)

    def append(
        self,
        done: int,
        taus: np.ndarray,
        evaluation: Evaluation | None,
        round_record: RoundRecord | None,
    ) -> None:
        """Adds what a round left behind.

        Args:
            done: rounds done so far.
            taus: tau of each client in the last round, `[client]`; zeros at the start.
            evaluation: a row, or None if this round was not evaluated.
            round_record: traffic, time and graph, or None at the start.

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
        """A copy of the file, which takes its place at the end."""
        with replacing(self.path) as path:
            shutil.copyfile(self.path, path)
            with writing(path, "r+") as file:
                yield file


def last_choices(file: h5py.File) -> dict[str, str]:
    """The ways of computing that the last start of a run took; empty in records without them."""
    last = starts_of(file.attrs)[-1]
    return {str(k): str(v) for k, v in json.loads(last.get("choices", "{}")).items()}


def read_all(file: h5py.File) -> None:
    """Reads everything that a run which goes on will change, so that damage shows before it computes.

    Raises:
        Exception: of many kinds, over a damaged file.
    """
    for metric in metrics_of(file):
        # Of a count there is no value for the rounds that are done.
        if metric.dataset in file or not metric.optional or metric.counts:
            sane(file, metric.dataset)[...]
    for name in ("topology/edges", "topology/offsets"):
        sane(file, name)[...]
    for group, known in _PHASES.items():
        if unknown := set(file[group].attrs["phases"].tolist()) - set(known):
            raise ValueError(f"/{group} has unknown phases: {sorted(unknown)}")


def _of(file: h5py.File, metric: Metric) -> h5py.Dataset:
    return file[metric.dataset]


def _create(file: h5py.File, metric: Metric, clients: int, ranks: int) -> None:
    """An empty dataset that says what it holds.

    Only the first axis may grow. With a second such axis HDF5 would keep the chunks in a B-tree, and the
    library crashes over a damaged one.
    """
    phases = _PHASES.get(metric.dataset.partition("/")[0], ())
    sizes = {"client": clients, "rank": ranks, "phase": len(phases)}
    names = metric.axes.split(",")[1:]
    shape = tuple(sizes[name] for name in names)
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
    """Gives a record of an earlier version the phases of today; what it did not tell apart is 0."""
    former = file["time"].attrs["phases"].tolist()
    if former == list(PHASES):
        return
    seconds = _of(file, SECONDS)[:]
    fitted = np.zeros((*seconds.shape[:2], len(PHASES)))
    fitted[np.isnan(seconds).all(axis=2)] = np.nan  # a rank that was not there
    for place, phase in enumerate(former):
        fitted[..., PHASES.index(phase)] = seconds[..., place]
    _replace(file, SECONDS, fitted)
    file["time"].attrs["phases"] = list(PHASES)


def _widen(file: h5py.File, metric: Metric, ranks: int) -> None:
    """Makes room for `ranks` ranks, which former rounds did not have."""
    former = _of(file, metric)
    if former.maxshape[1] != ranks:  # None in records of earlier versions
        values = np.full((len(former), ranks, *former.shape[2:]), np.nan)
        values[:, : former.shape[1]] = former[:]
        _replace(file, metric, values)


def _replace(file: h5py.File, metric: Metric, values: np.ndarray) -> None:
    """A new dataset of a metric by rank, with other sizes than the former one."""
    del file[metric.dataset]
    _create(file, metric, clients=0, ranks=values.shape[1])
    _of(file, metric).resize(len(values), axis=0)
    _of(file, metric)[...] = values


def _append(dataset: h5py.Dataset, values: np.ndarray | None) -> None:
    """Appends an entry; NaN where there are no values, and for ranks that a round did not have."""
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
