"""What makes a run the run that it is: its id, and the content of every file that decides its result.

Settings are compared by `config.effect`. Here is the rest: paths say nothing, the content at a path
decides. A record holds the content of its files as the attribute `contents`, a JSON mapping of the
names in `FILES` to SHA-256; each file of a run holds the run's id as the attribute `run`. The code that
computed a run (package sources and plugins) is recorded per start; see `analysis.starts`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py

from mpi_ntkdfl.config import Config
from mpi_ntkdfl.data import sources
from mpi_ntkdfl.runtime import identity
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.hdf5 import reading
from mpi_ntkdfl.runtime.paths import user_path
from mpi_ntkdfl.storage.outputs import Outputs

if TYPE_CHECKING:
    from mpi_ntkdfl.storage.checkpoint import Checkpoint

FILES = {
    "data": "dataset.root",
    "partition": "partition.path",
    "graph": "topology.path",
    "weights": "model.weights",
    "regions": "environment.links.regions",
    "trace": "environment.availability.path",
}
"""Every kind of file whose content decides a result, and the setting that says where it is."""


# ------------------------------------------------------------------------------------------- the id


def new_run() -> str:
    """An id for a run that begins: 16 random hexadecimal digits."""
    return secrets.token_hex(8)


def run_of(file: h5py.File) -> str:
    """The id of the run that a record or checkpoint is of; empty in files of earlier versions."""
    return str(file.attrs.get("run", ""))


def require_one_run(outputs: Outputs, record: str, other: str, path: Path) -> None:
    """Refuses files of two runs.

    Args:
        outputs: of the run.
        record: the id in its record; empty if an earlier version wrote it.
        other: the id in another of its files; empty if an earlier version wrote that file. A record gets
            its id when it goes on, so an older checkpoint may lie beside it.
        path: of that file.

    Raises:
        InputError: if they differ.
    """
    if other and other != record:
        raise InputError(
            f"{outputs.record} (run {record or 'of an earlier version'}) and {path} (run {other}) are "
            "of two runs, so they do not belong together; put the files of one run back, or give "
            "--overwrite to start again"
        )


def require_record_of(outputs: Outputs, checkpoint: Checkpoint) -> None:
    """Refuses a checkpoint that lies beside the record of another run; a record may be missing.

    Raises:
        InputError: if they are of two runs.
    """
    try:
        with reading(outputs.record) as file:
            record = run_of(file)
    except Exception:  # over a damaged file h5py raises almost anything; the weights are whole
        return
    require_one_run(outputs, record, checkpoint.run, checkpoint.path)


# -------------------------------------------------------------------------------------- the content


def contents(config: Config, data: str) -> dict[str, str]:
    """SHA-256 of what decides the result of a run, by the names in `FILES`: what a record holds.

    Args:
        config: of the run. Files that it does not name, or that do not exist, are left out.
        data: fingerprint of the samples (`Dataset.fingerprint`).
    """
    return {"data": data, **{name: digest for name, digest in of_files(config).items() if digest}}


def of_files(config: Config) -> dict[str, str]:
    """SHA-256 of the files that a configuration names, by the names in `FILES` without `data`.

    Returns:
        Empty text for a file that cannot be read.
    """
    digests = {}
    for name, setting in FILES.items():
        written: Any = config
        for key in setting.split("."):
            written = getattr(written, key, None)
        if name != "data" and written is not None:
            try:
                digests[name] = identity.of_file(user_path(written, setting))
            except (OSError, InputError):
                digests[name] = ""
    return digests


def before_reading(config: Config) -> dict[str, str]:
    """What is known of the content of all files without reading samples: for the names of studies' runs.

    Returns:
        As `of_files`, and `data` if the samples are no published ones; see `data.source.Source.content`.
        So it is empty for a configuration without files of the user's own.
    """
    try:
        data: str | None = sources.content(config.dataset)
    except InputError:
        data = ""
    return ({} if data is None else {"data": data}) | of_files(config)


def recorded(file: h5py.File) -> Mapping[str, str]:
    """The contents in a record; of earlier versions only the data."""
    told = json.loads(file.attrs.get("contents", "{}"))
    return {"data": str(file.attrs["data"]), **{str(k): str(v) for k, v in told.items()}}
