"""Reads records and tells what is in them, as text. No MPI, no torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import yaml

from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.hdf5 import reading, sane
from mpi_ntkdfl.runtime.units import duration, readable


@dataclass(frozen=True)
class Run:
    """A record in memory; see `record` for the axes.

    Attributes:
        attributes: of the root.
        rounds: rounds done at each row.
        accuracy, loss, tau: `[row, client]`.
        model_accuracy, model_loss, gradient_norm, deviation: `[row]`.
        protocol_bytes, mpi_bytes: `[round, phase]`.
        traffic_phases: their phases.
        seconds: `[round, rank, phase]`, NaN for ranks that a round did not have.
        time_phases: its phases.
        partition: fingerprint of the clients' samples, empty if the record has none.
        own_accuracy: `[row, client]`, on each client's own distribution; None in records without it.
        busiest_bytes: protocol bytes of the busiest client, `[round]`; None likewise.
        in_flight, waited: seconds of exchanges, `[round, rank]`, NaN like `seconds`; None likewise.
    """

    attributes: dict[str, str]
    rounds: np.ndarray
    accuracy: np.ndarray
    loss: np.ndarray
    tau: np.ndarray
    model_accuracy: np.ndarray
    model_loss: np.ndarray
    gradient_norm: np.ndarray
    deviation: np.ndarray
    protocol_bytes: np.ndarray
    mpi_bytes: np.ndarray
    traffic_phases: list[str]
    seconds: np.ndarray
    time_phases: list[str]
    partition: str = ""
    own_accuracy: np.ndarray | None = None
    busiest_bytes: np.ndarray | None = None
    in_flight: np.ndarray | None = None
    waited: np.ndarray | None = None


_BY_EVALUATION = {
    "rounds": "rounds/round",
    "accuracy": "clients/accuracy",
    "loss": "clients/loss",
    "tau": "clients/tau",
    "model_accuracy": "model/accuracy",
    "model_loss": "model/loss",
    "gradient_norm": "model/gradient_norm",
    "deviation": "deviation",
    "own_accuracy": "clients/own_accuracy",
}
_BY_ROUND = {
    "protocol_bytes": "traffic/protocol_bytes",
    "mpi_bytes": "traffic/mpi_bytes",
    "seconds": "time/seconds",
    "busiest_bytes": "traffic/busiest_bytes",
    "in_flight": "time/in_flight",
    "waited": "time/waited",
}
_OPTIONAL = {"own_accuracy", "busiest_bytes", "in_flight", "waited"}


def read(path: Path) -> Run:
    """Reads a record; rows that a killed run had not finished are left out.

    Raises:
        InputError: if it is missing, damaged, or no record.
    """
    try:
        with reading(path) as file:
            return Run(
                attributes={key: str(value) for key, value in file.attrs.items()},
                traffic_phases=[str(phase) for phase in file["traffic"].attrs["phases"]],
                time_phases=[str(phase) for phase in file["time"].attrs["phases"]],
                partition=_fingerprint(file),
                **_series(file, _BY_EVALUATION),
                **_series(file, _BY_ROUND),
            )
    except FileNotFoundError as error:
        raise InputError(f"no record at {path}") from error
    except Exception as error:  # over a damaged file h5py raises almost anything
        raise InputError(f"{path} is no readable record: {error}") from error


def _series(file: h5py.File, names: dict[str, str]) -> dict[str, np.ndarray]:
    """Datasets that grow together, cut to the rows that all of them have."""
    datasets = {
        field: sane(file, name)
        for field, name in names.items()
        if field not in _OPTIONAL or name in file
    }
    rows = min(len(dataset) for dataset in datasets.values())
    return {field: dataset[:rows] for field, dataset in datasets.items()}


def _fingerprint(file: h5py.File) -> str:
    """Hash of the partition: equal for equal samples in every client."""
    if "partition" not in file:
        return ""
    parts = [sane(file, f"partition/{name}")[:] for name in ("offsets", "indices")]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part, dtype=np.int64).tobytes())
    return digest.hexdigest()


def rounds_of(run: Run) -> tuple[int, int]:
    """Rounds in the record, and rounds the run is to have.

    Raises:
        InputError: if the record lacks what a run writes.
    """
    try:
        return len(run.seconds), int(yaml.safe_load(run.attributes["config"])["rounds"])
    except Exception as error:  # attributes of a damaged record can hold anything
        raise InputError(f"the record is damaged or none of this program: {error}") from error


def summary(run: Run) -> str:
    """What ran, the final numbers, traffic a round, and time by phase.

    Raises:
        InputError: if the record lacks what a run writes.
    """
    try:
        parts = [_what_ran(run), _numbers(run), _traffic(run), _time(run)]
    except Exception as error:  # attributes of a damaged record can hold anything
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"the record is damaged or none of this program: {reason}") from error
    return "\n\n".join("\n".join(part) for part in parts if part)


def _what_ran(run: Run) -> list[str]:
    a = run.attributes
    config = yaml.safe_load(a["config"])
    hosts = len(set(json.loads(a["hosts"])))
    again = [
        f"resumed after round {start['round']} by {start['ranks']} ranks, {start['created']}"
        for start in json.loads(a.get("resumed", "[]"))
    ]
    return [
        f"{config['algorithm']['name']} on {config['dataset']['name']}, {config['clients']} clients, "
        f"seed {config['seed']}",
        f"partition: {_section(config['partition'])}",
        f"topology:  {_section(config['topology'])}",
        f"{a['ranks']} ranks on {hosts} host(s), {a['device']}, torch {a['torch']}, {a['mpi']}",
        f"mpi_ntkdfl {a['version']} ({a['commit'][:12]}), started {a['created']}",
        *(f"{name}: {choice}" for name, choice in json.loads(a.get("choices", "{}")).items()),
        *again,
    ]


def _section(section: dict[str, object]) -> str:
    """`regular, degree 5, dynamic true` of a section with a kind; what is not set is left out."""
    keys = {key: value for key, value in section.items() if key != "kind" and value is not None}
    said = (
        f"{key} {str(value).lower() if isinstance(value, bool) else value}"
        for key, value in keys.items()
    )
    return ", ".join([str(section["kind"]), *said])


def _numbers(run: Run) -> list[str]:
    if not len(run.rounds):
        return ["not a single evaluation is finished"]
    lines = ["round  average  mean client  worst client   loss  deviation  mean tau"]
    shown = sorted({0, *range(0, len(run.rounds), -(-len(run.rounds) // 10)), len(run.rounds) - 1})
    for row in shown:
        lines.append(
            f"{run.rounds[row]:5d}  {run.model_accuracy[row]:7.4f}  {run.accuracy[row].mean():11.4f}"
            f"  {run.accuracy[row].min():12.4f}  {run.model_loss[row]:5.3f}"
            f"  {run.deviation[row]:9.4f}  {run.tau[row].mean():8.0f}"
        )
    return lines


def _traffic(run: Run) -> list[str]:
    if not len(run.mpi_bytes):
        return ["no round is finished"]
    lines = [f"{'bytes a round':16}{'protocol':>12}{'MPI':>12}"]
    for phase, name in enumerate(run.traffic_phases):
        protocol, moved = run.protocol_bytes[:, phase].mean(), run.mpi_bytes[:, phase].mean()
        if protocol or moved:
            lines.append(f"{name:16}{readable(protocol):>12}{readable(moved):>12}")
    protocol, moved = run.protocol_bytes.sum(), run.mpi_bytes.sum()
    return [*lines, f"{'whole run':16}{readable(protocol):>12}{readable(moved):>12}"]


def _time(run: Run) -> list[str]:
    if not len(run.seconds):
        return []
    by_phase = np.nanmean(run.seconds, axis=1).sum(axis=0)
    lines = [
        f"{name:12}{seconds:9.1f} s {100 * seconds / by_phase.sum():5.1f} %"
        for name, seconds in zip(run.time_phases, by_phase, strict=True)
        if seconds
    ]
    total = np.nansum(run.seconds, axis=2).max(axis=1).sum()
    return [
        f"time, mean over ranks (slowest ranks {duration(total)}, {len(run.seconds)} rounds)",
        *lines,
        *_hidden(run),
    ]


def _hidden(run: Run) -> list[str]:
    """How much of the exchanges passed beneath computation; nothing where ranks exchanged nothing."""
    if run.in_flight is None or run.waited is None or not run.mpi_bytes.any():
        return []
    known = ~np.isnan(run.in_flight).all(axis=1)  # not of rounds of an earlier version
    flown, waited = (np.nanmean(each[known], axis=1).sum() for each in (run.in_flight, run.waited))
    if not flown:
        return []
    hidden = flown - waited
    return [
        f"exchange: {waited:.1f} s waited for, {hidden:.1f} s in flight beneath computation "
        f"({100 * hidden / flown:.0f} % hidden at most)"
    ]
