"""The checkpoint of a run, `RUN.ckpt.h5`: everything that a resumed run needs, by client and not by rank.

    /             attributes: schema, run (id of the run), config (YAML), layout (JSON, names and
                  shapes of the state_dict), round, sha256
    /params       [client, param]
    /state/NAME   [client, ...]     arrays that the method carries from round to round, if any
    /constants/I  [...]             tensors of the state_dict that are not trained, such as buffers

The attribute `beside` (JSON) has the names of the constants, and other names of trained tensors. It is
absent for networks without such tensors.

`round` is the number of rounds done, which is also the number of the next round. `sha256` is the checksum
of everything else in the file. The checkpoint before is kept as `RUN.ckpt-1.h5`, in case the newest one
is damaged on the disk.

A large checkpoint consists of parts (`parts.py`). Then the attribute `parts` (JSON) names them with their
digests, schema is 3, and the arrays by client are virtual datasets, which show the rows of the parts.
`Checkpoint` does not read through them, because HDF5 shows zeros where a part is missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from mpi_ntkdfl.comm.reduce import exact_mean
from mpi_ntkdfl.comm.world import SoloWorld
from mpi_ntkdfl.model.params import Layout
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.hdf5 import reading, sane, writing
from mpi_ntkdfl.storage import whole
from mpi_ntkdfl.storage.outputs import Outputs
from mpi_ntkdfl.storage.parts import Part, as_json, clear, from_json, opened, show_together, verify
from mpi_ntkdfl.storage.rows import Rows, add_to, describe, store
from mpi_ntkdfl.storage.whole import replacing

_log = logging.getLogger(__name__)

SCHEMA, JOINED = 2, 3
"""The format of a checkpoint of one file, and of one that consists of parts."""


@dataclass(frozen=True)
class Header:
    """What a checkpoint says beside its arrays.

    Attributes:
        config: the run's configuration as YAML.
        layout: names and shapes of the tensors in a row of `params`.
        round: number of rounds done.
        run: id of the run; empty in checkpoints of earlier versions.
    """

    config: str
    layout: Layout
    round: int
    run: str = ""

    def digest(self, parts: str = "") -> hashlib._Hash:
        """The beginning of the checksum.

        Args:
            parts: the attribute of that name; empty for a checkpoint of one file.
        """
        shapes, schema = list(self.layout.shapes.items()), JOINED if parts else SCHEMA
        header = [schema, self.config, shapes, self.round, *([self.run] if self.run else [])]
        if beside := _beside(self.layout):
            header.append(beside)
        if parts:
            header.append(parts)
        return hashlib.sha256(json.dumps(header).encode())


def write(outputs: Outputs, header: Header, arrays: Mapping[str, Rows]) -> None:
    """Writes a new checkpoint of one file; the one before is kept.

    Args:
        outputs: the files of the run.
        header: what it says beside its arrays.
        arrays: `params`, and `state/NAME` for each array of the method. They are written in the order of
            their names.

    Raises:
        SimulationError: if it cannot be written. Both older checkpoints are unchanged then.
    """
    with _written(outputs, header, "") as (file, digest):
        store(file, arrays, digest)


def join(
    outputs: Outputs, header: Header, arrays: Mapping[str, Rows], parts: Sequence[Part]
) -> None:
    """Writes a new checkpoint that consists of parts, which are on the disk; the one before is kept.

    Args:
        outputs: the files of the run.
        header: what it says beside its arrays.
        arrays: shapes and types of the arrays of all clients.
        parts: in the order of clients.

    Raises:
        SimulationError: if it cannot be written. Both older checkpoints are unchanged then.
    """
    listed = as_json(parts)
    with _written(outputs, header, listed) as (file, _):
        file.attrs["parts"] = listed
        for name, rows in arrays.items():
            show_together(file, outputs.parts.name, name, rows, parts)


@contextlib.contextmanager
def _written(
    outputs: Outputs, header: Header, parts: str
) -> Iterator[tuple[h5py.File, hashlib._Hash]]:
    """Yields the file of a new checkpoint, to which arrays are added, and its digest.

    Afterwards the file replaces the checkpoint, and parts that no checkpoint names are removed.
    """
    digest, layout = header.digest(parts), header.layout
    with (
        replacing(outputs.checkpoint, outputs.former_checkpoint) as path,
        writing(path, "w") as file,
    ):
        file.attrs["schema"] = JOINED if parts else SCHEMA
        file.attrs["config"] = header.config
        if header.run:
            file.attrs["run"] = header.run
        file.attrs["layout"] = json.dumps(list(layout.shapes.items()))
        if beside := _beside(layout):
            file.attrs["beside"] = json.dumps(beside)
        file.attrs["round"] = header.round
        yield file, digest
        for place, tensor in enumerate(layout.constants.values()):
            name = f"constants/{place}"
            file[name] = _as_array(tensor)
            digest.update(_described(name, file[name]))
        file.attrs["sha256"] = digest.hexdigest()
    remove_spare_parts(outputs)


def remove_leftovers(outputs: Outputs) -> None:
    """Removes what killed runs left: temporary files, and parts of checkpoints.

    The caller must hold the lock.

    Raises:
        SimulationError: if another run has taken the outputs over.
    """
    whole.remove_leftovers(outputs)
    remove_spare_parts(outputs)


def remove_spare_parts(outputs: Outputs) -> None:
    """Removes the parts that no checkpoint of the run names. The caller must hold the lock.

    Raises:
        SimulationError: if another run has taken the outputs over.
    """

    def named(path: Path) -> set[str]:
        with reading(path) as file:
            return {part.name for part in _read_header(file)[1]}

    clear(outputs, named)


def _beside(layout: Layout) -> dict[str, Any]:
    """What the header says of the tensors of a state_dict that are not in the flat vector."""
    if not (layout.aliases or layout.constants):
        return {}
    return {"aliases": dict(layout.aliases), "constants": list(layout.constants)}


def _as_array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor in a type that HDF5 has."""
    array: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()
    return array


def _described(name: str, dataset: h5py.Dataset) -> bytes:
    """Name, shape, type and content of a small dataset."""
    return describe(name, dataset) + np.ascontiguousarray(dataset[()]).tobytes()


def _read_header(file: h5py.File) -> tuple[Header, list[Part], hashlib._Hash]:
    """The header of a checkpoint, its parts (none if it is one file), and the digest of the header.

    Raises:
        Exception: of many kinds, if the file is damaged.
    """
    schema = int(file.attrs["schema"])
    if schema not in (SCHEMA, JOINED):
        raise ValueError(f"it has schema {schema}, this version reads {SCHEMA} and {JOINED}")
    shapes = {name: tuple(size) for name, size in json.loads(file.attrs["layout"])}
    beside = json.loads(str(file.attrs.get("beside", "{}")))
    names = {f"constants/{place}": name for place, name in enumerate(beside.get("constants", ()))}
    constants = {
        name: torch.from_numpy(np.array(sane(file, path)[()])) for path, name in names.items()
    }
    header = Header(
        str(file.attrs["config"]),
        Layout(shapes, beside.get("aliases", {}), constants),
        int(file.attrs["round"]),
        str(file.attrs.get("run", "")),
    )
    listed = str(file.attrs["parts"]) if schema == JOINED else ""
    return header, from_json(listed) if listed else [], header.digest(listed)


class Checkpoint:
    """An open checkpoint whose checksums were verified.

    Attributes:
        path: path of the file.
        round: number of rounds done.
        run: id of the run; empty in checkpoints of earlier versions.
        config: the run's configuration as YAML.
        layout: names and shapes of the tensors in a row of `params`.
        arrays: names of the arrays, `params` first.
        clients: number of clients.
    """

    def __init__(self, path: Path) -> None:
        """Opens and verifies a checkpoint. The caller must `close` it.

        Raises:
            InputError: if the file is missing, damaged, or not a checkpoint, or if a part of it is
                missing or damaged.
        """
        self.path = path
        self._held = contextlib.ExitStack()
        try:
            file = self._held.enter_context(reading(path))
        except FileNotFoundError as error:
            raise InputError(
                f"no checkpoint at {path}: has the run finished its first round?"
            ) from error
        except Exception as error:  # for a damaged file h5py can raise almost any exception
            raise InputError(f"{path} is not a readable checkpoint: {error}") from error
        try:
            self._read(file)
        except Exception as error:
            self.close()
            raise InputError(f"{path} is not a readable checkpoint: {error}") from error

    def _read(self, file: h5py.File) -> None:
        header, parts, digest = _read_header(file)
        self.layout, self.round = header.layout, header.round
        self.config, self.run = header.config, header.run
        files = opened(self.path, parts, self._held) if parts else [file]
        self.arrays = ["params", *(f"state/{name}" for name in files[0].get("state", ()))]
        for each in files:
            self._check_shapes(each)
        ends = [part.stop for part in parts] or [len(file["params"])]
        self.clients = ends[-1]
        self._pieces = [
            (range(start, stop), each)
            for start, stop, each in zip([0, *ends], ends, files, strict=False)
        ]
        if not parts:
            add_to(digest, file, self.arrays)
        for place in range(len(self.layout.constants)):
            name = f"constants/{place}"
            digest.update(_described(name, file[name]))
        if digest.hexdigest() != file.attrs["sha256"]:
            raise ValueError("its content does not match its checksum")
        for part, each in zip(parts, files, strict=bool(parts)):
            verify(self.path, part, each, self.arrays)

    def _check_shapes(self, file: h5py.File) -> None:
        """Checks the arrays of the file, or of a part.

        Raises:
            ValueError: if they do not fit the model or each other.
        """
        for name in self.arrays:
            sane(file, name)
        if file["params"].shape[1:] != (self.layout.size,):
            raise ValueError(
                f"its params have the shape {file['params'].shape}, unlike the model's"
            )
        if any(len(file[name]) != len(file["params"]) for name in self.arrays):
            raise ValueError("its arrays have different numbers of clients")

    def rows(self, name: str, clients: range) -> np.ndarray:
        """The rows of consecutive `clients` in the array of that name, `[clients, ...]`."""
        dataset = self._pieces[0][1][name]
        rows = np.empty((len(clients), *dataset.shape[1:]), dataset.dtype)
        for own, file in self._pieces:
            start, stop = max(clients.start, own.start), min(clients.stop, own.stop)
            if start < stop and rows.size:
                source = np.s_[start - own.start : stop - own.start]
                target = np.s_[start - clients.start : stop - clients.start]
                file[name].read_direct(rows, source, target)
        return rows

    def close(self) -> None:
        """Closes the file and its parts."""
        self._held.close()


@contextlib.contextmanager
def newest(outputs: Outputs) -> Iterator[Checkpoint]:
    """Opens the newest checkpoint; if it is damaged, logs a warning and opens the one before.

    Raises:
        InputError: if there is no checkpoint, or none is readable.
    """
    while True:
        before = _identity(outputs.checkpoint)
        try:
            checkpoint = Checkpoint(outputs.checkpoint)
        except InputError as error:
            if _identity(outputs.checkpoint) != before:
                continue  # a run has replaced it, and removed its parts before they were opened
            checkpoint = _former(outputs, error)
        break
    with contextlib.closing(checkpoint):
        yield checkpoint


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and number of a file; None if it does not exist."""
    with contextlib.suppress(OSError):
        told = path.stat()
        return told.st_dev, told.st_ino
    return None


def _former(outputs: Outputs, error: InputError) -> Checkpoint:
    """The checkpoint before, because the newest one raised `error`.

    Raises:
        InputError: if there is none, or it is not readable either.
    """
    if not outputs.former_checkpoint.exists():
        raise error
    try:
        checkpoint = Checkpoint(outputs.former_checkpoint)
    except InputError as former:
        raise InputError(f"{error}; {former}") from error
    _log.warning(
        "%s; the checkpoint before, after round %d, is used instead", error, checkpoint.round
    )
    return checkpoint


def state_dict(checkpoint: Checkpoint, client: int | None) -> dict[str, torch.Tensor]:
    """A client's weights, or the average of all clients' weights for None, as a state_dict of torch.

    Raises:
        InputError: if there is no such client.
    """
    clients = checkpoint.clients
    if client is not None and not 0 <= client < clients:
        raise InputError(f"clients are 0 to {clients - 1} in this run, got {client}")
    wanted = range(clients) if client is None else range(client, client + 1)
    rows = torch.from_numpy(checkpoint.rows("params", wanted))
    flat = exact_mean(SoloWorld(), rows, clients) if client is None else rows[0]
    return checkpoint.layout.state_dict(flat)
