"""The checkpoint of a run, `RUN.ckpt.h5`: all it takes to go on, by client and not by rank.

    /             attributes: schema, run (id of the run), config (YAML), layout (JSON, names and
                  shapes of the state_dict), round, sha256
    /params       [client, param]
    /state/NAME   [client, ...]     what the method carries beside the weights, if anything
    /constants/I  [...]             tensors of the state_dict that are not trained, such as buffers

The attribute `beside` (JSON) has the names of the constants, and further names of trained tensors. It is
absent for networks without such tensors.

`round` is the number of rounds done, which is the next round's number. `sha256` is over everything
else in the file. The checkpoint before is kept as `RUN.ckpt-1.h5`, for the case that a disk damages
the newest.
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
from mpi_ntkdfl.storage.whole import made_whole, replacing, temporary

_log = logging.getLogger(__name__)

SCHEMA = 2

_BLOCK = 64 * 2**20
"""Bytes read at once to verify a checkpoint."""


@dataclass(frozen=True)
class Rows:
    """An array by client that arrives in blocks.

    Attributes:
        shape: `[client, ...]`, of all clients.
        dtype: of its entries.
        blocks: arrays of consecutive clients, in id order.
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
    """Writes the newest checkpoint; the one before is kept.

    Args:
        outputs: of the run.
        config_yaml: the run's configuration.
        layout: names and shapes within a row of `params`.
        done: rounds done.
        arrays: `params`, and `state/NAME` for each array of the method; their blocks are taken in
            the order of the names.
        run: id of the run.

    Raises:
        SimulationError: if it cannot be written; both older checkpoints are as before.
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
            assert start == rows.shape[0], f"{name}: {start} of {rows.shape[0]} clients came"
        for place, tensor in enumerate(layout.constants.values()):
            name = f"constants/{place}"
            file[name] = _as_array(tensor)
            digest.update(_described(name, file[name]))
        file.attrs["sha256"] = digest.hexdigest()


def _header(config_yaml: str, layout: Layout, done: int, run: str) -> bytes:
    """The attributes as the checksum covers them; checkpoints of earlier versions name no run."""
    told = [SCHEMA, config_yaml, list(layout.shapes.items()), done, *([run] if run else [])]
    if beside := _beside(layout):
        told.append(beside)
    return json.dumps(told).encode()


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
    """An open checkpoint, verified.

    Attributes:
        path: of the file.
        round: rounds done.
        run: id of the run, empty in checkpoints of earlier versions.
        config: the run's configuration, YAML.
        layout: names and shapes within a row of `params`.
        arrays: names of what it holds, `params` first.
    """

    def __init__(self, path: Path) -> None:
        """Opens and verifies a checkpoint; `close` it.

        Raises:
            InputError: if the file is missing, damaged, or no checkpoint.
        """
        self.path = path
        try:
            self._file = reading(path)
        except FileNotFoundError as error:
            raise InputError(
                f"no checkpoint at {path}: has the run finished its first round?"
            ) from error
        except Exception as error:  # over a damaged file h5py raises almost anything
            raise InputError(f"{path} is no readable checkpoint: {error}") from error
        try:
            self._read_header()
            self._verify()
        except Exception as error:
            self.close()
            raise InputError(f"{path} is no readable checkpoint: {error}") from error

    def _read_header(self) -> None:
        file = self._file
        if int(file.attrs["schema"]) != SCHEMA:
            raise ValueError(f"schema {file.attrs['schema']}, this version reads {SCHEMA}")
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
            raise ValueError(f"params of shape {file['params'].shape} do not fit the model")
        if any(len(file[name]) != self.clients for name in self.arrays):
            raise ValueError("its arrays are of different numbers of clients")

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
            raise ValueError("its content does not fit its checksum")

    @property
    def clients(self) -> int:
        """Clients it holds."""
        return len(self._file["params"])

    def rows(self, name: str, clients: range) -> np.ndarray:
        """Rows of consecutive `clients` of an array, `[clients, ...]`."""
        return np.asarray(self._file[name][clients.start : clients.stop])

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


@contextlib.contextmanager
def newest(outputs: Outputs) -> Iterator[Checkpoint]:
    """Opens the newest whole checkpoint; says so if that is not the newest file.

    Raises:
        InputError: if there is none, or none is readable.
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
        _log.warning("%s; the one before, after round %d, is whole", error, checkpoint.round)
    with contextlib.closing(checkpoint):
        yield checkpoint


def state_dict(checkpoint: Checkpoint, client: int | None) -> dict[str, torch.Tensor]:
    """A client's weights, or for None the average of all, as a state_dict of torch.

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


def export_weights(checkpoint: Checkpoint, client: int | None, target: Path) -> None:
    """Writes what `state_dict` returns as a file of torch.

    Raises:
        InputError: if there is no such client, or the file cannot be written.
    """
    state = state_dict(checkpoint, client)
    try:
        with made_whole(target, temporary(target)) as made, made.open("wb") as file:
            torch.save(state, file)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}") from error
