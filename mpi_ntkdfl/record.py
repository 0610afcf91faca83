"""The record of a run, `RUN.h5`: provenance, then one row an evaluation and one a round.

Rank 0 alone writes. The file is opened for each append and closed after it, so that a run that is
killed leaves every finished round readable and others can read it while it grows.

    /            attributes: schema, config (YAML), version, commit, created, seed, ranks, hosts, mpi,
                 torch, device
    /rounds      round [row]                               rounds done; row 0 is the start
    /clients     accuracy, loss, own_accuracy, tau [row, client]
                                                           what each client carries into the next round
    /model       accuracy, loss, gradient_norm [row]       of the average of all clients
    /deviation   [row]                                     mean over clients of ||w_i - mean w||_2
    /traffic     protocol_bytes, mpi_bytes [round, phase]  attribute phases
                 busiest_bytes [round]                     protocol bytes through the busiest node
    /time        seconds [round, rank, phase]              attribute phases
    /topology    edges [edge, 2], offsets [round + 1]      round k: edges[offsets[k]:offsets[k+1]]
    /partition   offsets [client + 1], indices             into the training set
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np

from mpi_ntkdfl import __version__
from mpi_ntkdfl.checkpoint import LIBVER, checkpoint_path
from mpi_ntkdfl.clock import PHASES
from mpi_ntkdfl.comm.ledger import TRAFFIC_PHASES
from mpi_ntkdfl.errors import InputError, SimulationError
from mpi_ntkdfl.evaluate import Evaluation

SCHEMA = 1

_PATIENCE = 60.0
"""Seconds an append waits for somebody who is reading the record."""


@dataclass(frozen=True)
class RoundRecord:
    """What one round adds, on rank 0.

    Attributes:
        edges: of the round's graph, `[edge, 2]`.
        traffic: protocol and MPI bytes, `[2, phase]`.
        seconds: by rank and phase, `[rank, phase]`.
        busiest: protocol bytes in plus out of the busiest node.
    """

    edges: np.ndarray
    traffic: np.ndarray
    seconds: np.ndarray
    busiest: int


def provenance(
    config_yaml: str, seed: int, hosts: Sequence[str], library: str, device: str, torch: str
) -> dict[str, str | int]:
    """The root attributes of a record: what ran, where, with which versions."""
    return {
        "schema": SCHEMA,
        "config": config_yaml,
        "version": __version__,
        "commit": _commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "ranks": len(hosts),
        "hosts": json.dumps(hosts),
        "mpi": library,
        "torch": torch,
        "device": device,
    }


def _commit() -> str:
    """Commit of the source tree the package runs from, `unknown` for an installed package."""
    package = Path(__file__).resolve().parent
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
            attributes: of the root, see `provenance`.
            clients: M.
            ranks: R.
            partition: offsets `[client + 1]` and indices.

        Raises:
            InputError: if the file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(self.path, "w", libver=LIBVER) as file:
                file.attrs.update(attributes)
                self._lay_out(file, clients, ranks)
                file["partition/offsets"], file["partition/indices"] = partition
        except OSError as error:
            raise InputError(unwritable(self.path, error)) from error

    def _lay_out(self, file: h5py.File, clients: int, ranks: int) -> None:
        def grows(name: str, dtype: str, *shape: int, rows: int = 0) -> None:
            file.create_dataset(name, (rows, *shape), dtype, maxshape=(None, *shape), chunks=True)

        grows("rounds/round", "i8")
        for name in ("accuracy", "loss", "own_accuracy"):
            grows(f"clients/{name}", "f8", clients)
        grows("clients/tau", "i8", clients)
        for name in ("model/accuracy", "model/loss", "model/gradient_norm", "deviation"):
            grows(name, "f8")
        for name in ("protocol_bytes", "mpi_bytes"):
            grows(f"traffic/{name}", "i8", len(TRAFFIC_PHASES))
        grows("traffic/busiest_bytes", "i8")
        grows("time/seconds", "f8", ranks, len(PHASES))
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
        """Adds what a round left behind, then closes the file.

        Args:
            done: rounds done so far.
            taus: tau of each client in the last round, `[client]`; zeros at the start.
            evaluation: a row, or None if this round was not evaluated.
            round_record: traffic, time and graph, or None at the start.
        """
        with self._open() as file:
            if round_record is not None:
                _extend(file["traffic/protocol_bytes"], round_record.traffic[:1])
                _extend(file["traffic/mpi_bytes"], round_record.traffic[1:])
                _extend(file["traffic/busiest_bytes"], [round_record.busiest])
                _extend(file["time/seconds"], round_record.seconds[None])
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

    def _open(self) -> h5py.File:
        """Opens the file for appending; waits for a reader that holds HDF5's lock to finish.

        Raises:
            SimulationError: if the file cannot be opened, or is still locked after a minute.
        """
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return h5py.File(self.path, "r+")
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise SimulationError(
                        f"{unwritable(self.path, error)}; it is locked"
                    ) from error
                time.sleep(0.1)
            except OSError as error:
                raise SimulationError(unwritable(self.path, error)) from error


def _extend(dataset: h5py.Dataset, rows: np.ndarray | Sequence[float]) -> None:
    start = len(dataset)
    dataset.resize(start + len(rows), axis=0)
    dataset[start:] = rows


def output_path(wanted: Path | None, name: str) -> Path:
    """Where the record goes: as wanted, else `NAME.h5`, or the first free `NAME-2.h5`, ..."""
    if wanted is not None:
        return wanted
    number, path = 1, Path(f"{name}.h5")
    while path.exists() or checkpoint_path(path).exists():
        number += 1
        path = Path(f"{name}-{number}.h5")
    return path


def refuse_output(path: Path, overwrite: bool) -> None:
    """Refuses an output that exists, or that could not be written, before anything is computed.

    The weights beside it count as well: a run would replace them.

    Raises:
        InputError: saying which, and the way out.
    """
    try:
        for file in (path, checkpoint_path(path)):
            if file.exists() and not (overwrite and file.is_file()):
                raise InputError(
                    f"{file} exists; choose another -o, or give --overwrite to replace it"
                )
        folder = path.parent
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(unwritable(path, error)) from error


def unwritable(path: Path, error: OSError) -> str:
    """The message for an output file that cannot be written."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return (
        f"cannot write {path}: {reason}; choose another -o, or, on a file system without locks, set "
        "HDF5_USE_FILE_LOCKING=FALSE"
    )
