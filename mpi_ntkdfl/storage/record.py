"""The record of a run, `RUN.h5`: provenance, then one row an evaluation and one a round.

Rank 0 alone writes. Each append makes a copy and renames it over the record, so that whoever opens
the file, while the run goes on or after it was killed, finds a whole one with every finished round.

    /            attributes: schema, config (YAML), version, commit, created, seed, ranks, hosts, cores,
                 mpi, torch, device, choices (JSON) of the first start; data (sha256); resumed
                 (JSON, later starts); method_label, method_look (JSON, see runtime/looks.py; absent
                 if it has none), method_central (1 if the method has a server)
    /rounds      round [row]                               rounds done; row 0 is the start
    /clients     accuracy, loss, own_accuracy, tau [row, client]
                                                           what each client carries into the next round
    /model       accuracy, loss, gradient_norm [row]       of the average of all clients
    /deviation   [row]                                     mean over clients of ||w_i - mean w||_2
    /traffic     protocol_bytes, mpi_bytes [round, phase]  attribute phases
                 busiest_bytes [round]                     protocol bytes through the busiest node
    /time        seconds [round, rank, phase]              attribute phases; NaN for ranks that were not
                 in_flight, waited [round, rank]           of exchanges; NaN likewise
    /topology    edges [edge, 2], offsets [round + 1]      round k: edges[offsets[k]:offsets[k+1]]
    /partition   offsets [client + 1], indices             into the training set
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np

from mpi_ntkdfl import __version__
from mpi_ntkdfl.comm.ledger import TRAFFIC_PHASES
from mpi_ntkdfl.comm.world import World
from mpi_ntkdfl.evaluate import Evaluation
from mpi_ntkdfl.runtime.clock import PHASES
from mpi_ntkdfl.runtime.hdf5 import sane, writing
from mpi_ntkdfl.storage.outputs import replacing

SCHEMA = 2

BY_EVALUATION = {
    "rounds/round": "i8",
    "clients/accuracy": "f8",
    "clients/loss": "f8",
    "clients/own_accuracy": "f8",
    "clients/tau": "i8",
    "model/accuracy": "f8",
    "model/loss": "f8",
    "model/gradient_norm": "f8",
    "deviation": "f8",
}
"""Datasets that grow by a row an evaluation, and their types; those in `clients` have a column each."""

BY_ROUND = {
    "traffic/protocol_bytes": "i8",
    "traffic/mpi_bytes": "i8",
    "traffic/busiest_bytes": "i8",
    "time/seconds": "f8",
    "time/in_flight": "f8",
    "time/waited": "f8",
}
"""Datasets that grow by a row a round."""

_BY_RANK = {"time/seconds": (len(PHASES),), "time/in_flight": (), "time/waited": ()}
"""Those of them with an axis of ranks, and their shape after it."""

_LATER = ("time/in_flight", "time/waited")
"""Those that records of earlier versions lack, which may still go on."""


@dataclass(frozen=True)
class RoundRecord:
    """What one round adds, on rank 0.

    Attributes:
        edges: of the round's graph, `[edge, 2]`.
        traffic: protocol and MPI bytes, `[2, phase]`.
        seconds: by rank and phase, `[rank, phase]`.
        busiest: protocol bytes in plus out of the busiest node.
        flights: seconds of exchanges in flight, and waited for, `[rank, 2]`.
    """

    edges: np.ndarray
    traffic: np.ndarray
    seconds: np.ndarray
    busiest: int
    flights: np.ndarray


def provenance(
    world: World, device: str, torch: str, choices: Mapping[str, str]
) -> dict[str, str | int]:
    """Where, with which versions and in which ways of computing a run starts: attributes of a record."""
    return {
        "version": __version__,
        "commit": _commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "ranks": world.size,
        "hosts": json.dumps(world.hosts),
        "cores": os.cpu_count() or 0,  # of rank 0's host
        "mpi": world.library,
        "torch": torch,
        "device": device,
        "choices": json.dumps(dict(choices)),
    }


def _commit() -> str:
    """Commit of the source tree the package runs from, `unknown` for an installed package."""
    package = Path(__file__).resolve().parent.parent
    if not (package.parent / ".git").exists():
        return "unknown"
    try:
        found = subprocess.run(
            ["git", "-C", str(package), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


class Record:
    """Writes one run's record."""

    def __init__(self, path: Path) -> None:
        """Names the file; `create` makes it."""
        self.path = path

    def create(
        self,
        attributes: Mapping[str, str | int],
        clients: int,
        ranks: int,
        partition: tuple[np.ndarray, np.ndarray],
    ) -> None:
        """Makes the file with empty datasets, replacing one that is there.

        Args:
            attributes: of the root: `config`, `seed`, `data` and those of `provenance`.
            clients: M.
            ranks: R.
            partition: offsets `[client + 1]` and indices.

        Raises:
            SimulationError: if the file cannot be written.
        """
        with replacing(self.path) as path, writing(path, "w") as file:
            file.attrs["schema"] = SCHEMA
            file.attrs.update({"resumed": "[]", **attributes})
            self._lay_out(file, clients, ranks)
            file["partition/offsets"], file["partition/indices"] = partition

    def resume(
        self, done: int, every: int, config_yaml: str, start: Mapping[str, str | int]
    ) -> None:
        """Cuts what is beyond `done` rounds, and notes another start.

        Args:
            done: rounds done, at most those in the record.
            every: rounds between evaluations. A row between, from a run that was to end there, goes.
            config_yaml: the configuration the run goes on with.
            start: its `provenance`.

        Raises:
            SimulationError: if it cannot be written.
        """
        with self._changing() as file:
            kept = [r for r in file["rounds/round"][:].tolist() if r <= done and r % every == 0]
            for name in BY_EVALUATION:
                file[name].resize(len(kept), axis=0)
            for name in _LATER:
                if name not in file:
                    _create_by_rank(file, name, 0)
            for name in BY_ROUND:
                file[name].resize(done, axis=0)
            offsets = file["topology/offsets"]
            offsets.resize(done + 1, axis=0)
            file["topology/edges"].resize(int(offsets[done]), axis=0)
            ranks = max(file["time/seconds"].shape[1], int(start["ranks"]))
            for name in _BY_RANK:
                _widen(file[name], ranks)
            file.attrs["config"] = config_yaml
            starts = [*json.loads(file.attrs["resumed"]), {"round": done, **start}]
            file.attrs["resumed"] = json.dumps(starts)

    def _lay_out(self, file: h5py.File, clients: int, ranks: int) -> None:
        def grows(name: str, dtype: str, *shape: int, rows: int = 0) -> None:
            file.create_dataset(name, (rows, *shape), dtype, maxshape=(None, *shape), chunks=True)

        for name, dtype in BY_EVALUATION.items():
            grows(name, dtype, *((clients,) if name.startswith("clients/") else ()))
        for name, dtype in BY_ROUND.items():
            if name in _BY_RANK:
                _create_by_rank(file, name, ranks)
            elif name == "traffic/busiest_bytes":
                grows(name, dtype)
            else:
                grows(name, dtype, len(TRAFFIC_PHASES))
        grows("topology/edges", "i4", 2)
        grows("topology/offsets", "i8", rows=1)
        file["traffic"].attrs["phases"] = list(TRAFFIC_PHASES)
        file["time"].attrs["phases"] = list(PHASES)

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
        with self._changing() as file:
            if round_record is not None:
                _extend(file["traffic/protocol_bytes"], round_record.traffic[:1])
                _extend(file["traffic/mpi_bytes"], round_record.traffic[1:])
                _extend(file["traffic/busiest_bytes"], [round_record.busiest])
                _extend_by_rank(file["time/seconds"], round_record.seconds)
                _extend_by_rank(file["time/in_flight"], round_record.flights[:, 0])
                _extend_by_rank(file["time/waited"], round_record.flights[:, 1])
                _extend(file["topology/edges"], round_record.edges)
                _extend(file["topology/offsets"], [len(file["topology/edges"])])
            if evaluation is not None:
                _extend(file["rounds/round"], [done])
                _extend(file["clients/accuracy"], evaluation.accuracy[None])
                _extend(file["clients/loss"], evaluation.loss[None])
                _extend(file["clients/own_accuracy"], evaluation.own_accuracy[None])
                _extend(file["clients/tau"], taus[None])
                _extend(file["model/accuracy"], [evaluation.model_accuracy])
                _extend(file["model/loss"], [evaluation.model_loss])
                _extend(file["model/gradient_norm"], [evaluation.gradient_norm])
                _extend(file["deviation"], [evaluation.deviation])

    @contextlib.contextmanager
    def _changing(self) -> Iterator[h5py.File]:
        """A copy of the file, which takes its place at the end."""
        with replacing(self.path) as path:
            shutil.copyfile(self.path, path)
            with writing(path, "r+") as file:
                yield file


def last_choices(file: h5py.File) -> dict[str, str]:
    """The ways of computing that the last start of a run took; empty in records without them."""
    starts = [dict(file.attrs), *json.loads(file.attrs["resumed"])]
    return {str(k): str(v) for k, v in json.loads(starts[-1].get("choices", "{}")).items()}


def read_all(file: h5py.File) -> None:
    """Reads everything that a run which goes on will change, so that damage shows before it computes.

    Raises:
        Exception: of many kinds, over a damaged file.
    """
    for name in (*BY_EVALUATION, *BY_ROUND, "topology/edges", "topology/offsets"):
        if name in file or name not in _LATER:
            sane(file, name)[...]
    for group in ("traffic", "time"):
        file[group].attrs["phases"]


def _create_by_rank(file: h5py.File, name: str, ranks: int) -> None:
    """An empty dataset with a column a rank; another number of ranks may go on with it."""
    after = _BY_RANK[name]
    shapes = {"shape": (0, ranks, *after), "maxshape": (None, None, *after)}
    file.create_dataset(name, dtype=BY_ROUND[name], chunks=True, fillvalue=np.nan, **shapes)


def _widen(dataset: h5py.Dataset, ranks: int) -> None:
    """Makes room for `ranks` ranks, which former rounds did not have."""
    former = dataset.shape[1]
    dataset.resize(ranks, axis=1)
    dataset[:, former:] = np.nan  # stored: readers take what is larger than its file for damaged


def _extend_by_rank(dataset: h5py.Dataset, ranks: np.ndarray) -> None:
    """Appends a row of values `[rank, ...]`, NaN for ranks that a round did not have."""
    row = np.full((1, *dataset.shape[1:]), np.nan)
    row[0, : len(ranks)] = ranks
    _extend(dataset, row)


def _extend(dataset: h5py.Dataset, rows: np.ndarray | Sequence[float]) -> None:
    start = len(dataset)
    dataset.resize(start + len(rows), axis=0)
    dataset[start:] = rows
