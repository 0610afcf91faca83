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
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
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
from mpi_ntkdfl.storage.outputs import Outputs
from mpi_ntkdfl.storage.whole import replacing

_log = logging.getLogger(__name__)

SCHEMA = 2

_BLOCK = 64 * 2**20
"""Number of bytes that are read at a time to verify a checkpoint."""


@dataclass(frozen=True)
class Rows:
    """An array `[client, ...]` of all clients that arrives in blocks.

    Attributes:
        shape: shape of the whole array.
        dtype: type of its entries.
        blocks: arrays of consecutive clients, in the order of ids.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: Iterable[np.ndarray]


def write(
    outputs: Outputs,
    config_yaml: str,
    layout: Layout,
    done: int,
    arrays: Mapping[str, Rows],
    run: str = "",
) -> None:
    """Writes a new checkpoint; the one before is kept.

    Args:
        outputs: the files of the run.
        config_yaml: the run's configuration.
        layout: names and shapes of the tensors in a row of `params`.
        done: number of rounds done.
        arrays: `params`, and `state/NAME` for each array of the method. They are written in the order of
            their names.
        run: id of the run.

    Raises:
        SimulationError: if it cannot be written. Both older checkpoints are unchanged then.
    """
    digest = hashlib.sha256(_header(config_yaml, layout, done, run))
    with (
        replacing(outputs.checkpoint, outputs.former_checkpoint) as path,
        writing(path, "w") as file,
    ):
        file.attrs["schema"] = SCHEMA
        file.attrs["config"] = config_yaml
        if run:
            file.attrs["run"] = run
        file.attrs["layout"] = json.dumps(list(layout.shapes.items()))
        if beside := _beside(layout):
            file.attrs["beside"] = json.dumps(beside)
        file.attrs["round"] = done
        for name, rows in sorted(arrays.items()):
            dataset, start = file.create_dataset(name, rows.shape, rows.dtype), 0
            digest.update(_describe(name, dataset))
            for block in rows.blocks:
                whole = np.ascontiguousarray(block, rows.dtype)
                dataset[start : start + len(whole)] = whole
                digest.update(whole.data)
                start += len(whole)
            assert start == rows.shape[0], (
                f"{name}: only {start} of {rows.shape[0]} clients arrived"
            )
        for place, tensor in enumerate(layout.constants.values()):
            name = f"constants/{place}"
            file[name] = _as_array(tensor)
            digest.update(_described(name, file[name]))
        file.attrs["sha256"] = digest.hexdigest()


def _header(config_yaml: str, layout: Layout, done: int, run: str) -> bytes:
    """The attributes as they enter the checksum; checkpoints of earlier versions have no id of a run."""
    header = [SCHEMA, config_yaml, list(layout.shapes.items()), done, *([run] if run else [])]
    if beside := _beside(layout):
        header.append(beside)
    return json.dumps(header).encode()


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
    return _describe(name, dataset) + np.ascontiguousarray(dataset[()]).tobytes()


def _describe(name: str, dataset: h5py.Dataset) -> bytes:
    return json.dumps([name, list(dataset.shape), dataset.dtype.str]).encode()


class Checkpoint:
    """An open checkpoint whose checksum was verified.

    Attributes:
        path: path of the file.
        round: number of rounds done.
        run: id of the run; empty in checkpoints of earlier versions.
        config: the run's configuration as YAML.
        layout: names and shapes of the tensors in a row of `params`.
        arrays: names of the arrays, `params` first.
    """

    def __init__(self, path: Path) -> None:
        """Opens and verifies a checkpoint. The caller must `close` it.

        Raises:
            InputError: if the file is missing, damaged, or not a checkpoint.
        """
        self.path = path
        try:
            self._file = reading(path)
        except FileNotFoundError as error:
            raise InputError(
                f"no checkpoint at {path}: has the run finished its first round?"
            ) from error
        except Exception as error:  # for a damaged file h5py can raise almost any exception
            raise InputError(f"{path} is not a readable checkpoint: {error}") from error
        try:
            self._read_header()
            self._verify()
        except Exception as error:
            self.close()
            raise InputError(f"{path} is not a readable checkpoint: {error}") from error

    def _read_header(self) -> None:
        file = self._file
        if int(file.attrs["schema"]) != SCHEMA:
            raise ValueError(f"it has schema {file.attrs['schema']}, this version reads {SCHEMA}")
        shapes = {name: tuple(size) for name, size in json.loads(file.attrs["layout"])}
        beside = json.loads(str(file.attrs.get("beside", "{}")))
        constants = {}
        for place, name in enumerate(beside.get("constants", ())):
            sane(file, f"constants/{place}")
            constants[name] = torch.from_numpy(np.array(file[f"constants/{place}"]))
        self.layout = Layout(shapes, beside.get("aliases", {}), constants)
        self.round = int(file.attrs["round"])
        self.config = str(file.attrs["config"])
        self.run = str(file.attrs.get("run", ""))
        self.arrays = ["params", *(f"state/{name}" for name in file.get("state", ()))]
        for name in self.arrays:
            sane(file, name)
        if file["params"].shape[1:] != (self.layout.size,):
            raise ValueError(
                f"its params have the shape {file['params'].shape}, unlike the model's"
            )
        if any(len(file[name]) != self.clients for name in self.arrays):
            raise ValueError("its arrays have different numbers of clients")

    def _verify(self) -> None:
        digest = hashlib.sha256(_header(self.config, self.layout, self.round, self.run))
        for name in self.arrays:
            dataset = self._file[name]
            digest.update(_describe(name, dataset))
            step = max(1, _BLOCK // max(1, dataset.nbytes // max(1, self.clients)))
            for start in range(0, self.clients, step):
                digest.update(np.ascontiguousarray(dataset[start : start + step]).data)
        for place in range(len(self.layout.constants)):
            name = f"constants/{place}"
            digest.update(_described(name, self._file[name]))
        if digest.hexdigest() != self._file.attrs["sha256"]:
            raise ValueError("its content does not match its checksum")

    @property
    def clients(self) -> int:
        """The number of clients in the checkpoint."""
        return len(self._file["params"])

    def rows(self, name: str, clients: range) -> np.ndarray:
        """The rows of consecutive `clients` in the array of that name, `[clients, ...]`."""
        return np.asarray(self._file[name][clients.start : clients.stop])

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


@contextlib.contextmanager
def newest(outputs: Outputs) -> Iterator[Checkpoint]:
    """Opens the newest checkpoint; if it is damaged, logs a warning and opens the one before.

    Raises:
        InputError: if there is no checkpoint, or none is readable.
    """
    try:
        checkpoint = Checkpoint(outputs.checkpoint)
    except InputError as error:
        if not outputs.former_checkpoint.exists():
            raise
        try:
            checkpoint = Checkpoint(outputs.former_checkpoint)
        except InputError as former:
            raise InputError(f"{error}; {former}") from error
        _log.warning(
            "%s; the checkpoint before, after round %d, is used instead", error, checkpoint.round
        )
    with contextlib.closing(checkpoint):
        yield checkpoint


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
