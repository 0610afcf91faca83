"""The identity of a run: its id, and the content of every file on which its result depends.

Runs are compared by their settings (`config.effect`) and by these contents; paths do not matter. A record
holds the contents of its files as the attribute `contents`, a JSON mapping of the names in `FILES` to
SHA-256. Each file of a run holds the run's id as the attribute `run`. The code that computed a run
(sources of the package and plugins) is recorded for each start; see `analysis.starts`.
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
from mpi_ntkdfl.storage.schema import FILES

if TYPE_CHECKING:
    from mpi_ntkdfl.storage.checkpoint import Checkpoint

# ------------------------------------------------------------------------------------------- the id


def new_run() -> str:
    """An id for a new run: 16 random hexadecimal digits."""
    return secrets.token_hex(8)


def run_of(file: h5py.File) -> str:
    """The id of the run to which a record or checkpoint belongs; empty in files of earlier versions."""
    return str(file.attrs.get("run", ""))


def require_one_run(outputs: Outputs, record: str, other: str, path: Path) -> None:
    """Checks that another file belongs to the same run as the record.

    Args:
        outputs: the files of the run.
        record: the id in the record; empty if an earlier version wrote it.
        other: the id in the other file; empty if an earlier version wrote it. A record of an earlier
            version gets its id when it is resumed, so its older checkpoint may still have none.
        path: path of the other file.

    Raises:
        InputError: if they belong to different runs.
    """
    if other and other != record:
        raise InputError(
            f"{outputs.record} (run {record or 'of an earlier version'}) and {path} (run {other}) are "
            "from different runs, so they do not belong together; put the files of one run back, or give "
            "--overwrite to start again"
        )


def require_record_of(outputs: Outputs, checkpoint: Checkpoint) -> None:
    """Checks that a checkpoint belongs to the same run as the record, which may be missing or damaged.

    Raises:
        InputError: if they belong to different runs.
    """
    try:
        with reading(outputs.record) as file:
            record = run_of(file)
    except Exception:  # of any kind for a damaged file; the checkpoint is whole
        return
    require_one_run(outputs, record, checkpoint.run, checkpoint.path)


# -------------------------------------------------------------------------------------- the content


def contents(config: Config, data: str) -> dict[str, str]:
    """SHA-256 of the files on which the result of a run depends, by the names in `FILES`.

    A record holds this mapping.

    Args:
        config: the run's configuration. Files that it does not name, or that do not exist, are left out.
        data: fingerprint of the samples (`Dataset.fingerprint`).
    """
    return {"data": data, **{name: digest for name, digest in of_files(config).items() if digest}}


def of_files(config: Config) -> dict[str, str]:
    """SHA-256 of the files that a configuration names, by the names in `FILES` without `data`.

    Returns:
        The hashes; an empty text for a file that cannot be read.
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
    """Contents of all files as far as they are known before samples are read. Studies name runs by them.

    Returns:
        The result of `of_files`, and `data` unless the samples are published ones; see
        `data.source.Source.content`. The mapping is empty for a configuration without own files.
    """
    try:
        data: str | None = sources.content(config.dataset)
    except InputError:
        data = ""
    return ({} if data is None else {"data": data}) | of_files(config)


def recorded(file: h5py.File) -> Mapping[str, str]:
    """The contents that a record holds; records of earlier versions have those of the data only."""
    others = json.loads(file.attrs.get("contents", "{}"))
    return {"data": str(file.attrs["data"]), **{str(k): str(v) for k, v in others.items()}}
