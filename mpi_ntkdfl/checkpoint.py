"""The checkpoint of a run, `RUN.ckpt.h5`: the weights of every client, by client and not by rank.

    /         attributes: schema, config (YAML), layout (JSON, names and shapes of the state_dict), round
    /params   [client, param]

`round` is the number of rounds done, which is the next round's number. The file is written under a
temporary name, flushed to disk, and renamed, so that under its own name it is always whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

from mpi_ntkdfl.comm.reduce import exact_mean
from mpi_ntkdfl.comm.world import SoloWorld
from mpi_ntkdfl.errors import InputError
from mpi_ntkdfl.model.params import Layout

SCHEMA = 1
LIBVER = ("v108", "latest")
"""The file format of HDF5 1.8: the oldest whose metadata carry checksums, so that damage is noticed
where the library could otherwise crash; a later one would lock out readers after a kill."""


def checkpoint_path(record: Path) -> Path:
    """Where the checkpoint of the run `record` lies: `RUN.h5` has `RUN.ckpt.h5`."""
    return record.parent / (record.name.removesuffix(".h5") + ".ckpt.h5")


def write(
    path: Path,
    rows: Iterable[np.ndarray],
    shape: tuple[int, int],
    dtype: np.dtype,
    config_yaml: str,
    layout: Layout,
    done: int,
) -> None:
    """Writes the checkpoint, replacing the one before only when it is complete.

    Args:
        path: its final name.
        rows: weights of consecutive clients, arrays `[some clients, param]` in id order.
        shape: clients and parameters.
        dtype: of the weights.
        config_yaml: the run's configuration.
        layout: names and shapes within a row.
        done: rounds done.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with h5py.File(temporary, "w", libver=LIBVER) as file:
            file.attrs["schema"] = SCHEMA
            file.attrs["config"] = config_yaml
            file.attrs["layout"] = json.dumps(list(layout.shapes.items()))
            file.attrs["round"] = done
            params = file.create_dataset("params", shape, dtype)
            start = 0
            for block in rows:
                params[start : start + len(block)] = block
                start += len(block)
            assert start == shape[0], f"{start} of {shape[0]} clients came"
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Flushes the rename itself to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        params: weights, `[client, param]`.
        layout: names and shapes within a row.
        round: rounds done.
        config: the run's configuration, YAML.
    """

    params: torch.Tensor
    layout: Layout
    round: int
    config: str


def read(path: Path) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
        InputError: if the file is missing, damaged, or no checkpoint.
    """
    try:
        with h5py.File(path, "r") as file:
            shapes = {name: tuple(size) for name, size in json.loads(file.attrs["layout"])}
            layout, params = Layout(shapes), file["params"]
            # Not compressed: a damaged shape could ask for any amount of memory.
            if params.nbytes > file.id.get_filesize() or params.shape[1:] != (layout.size,):
                raise ValueError(f"params of shape {params.shape} do not fit the file or the model")
            return Checkpoint(
                torch.from_numpy(params[:]),
                layout,
                int(file.attrs["round"]),
                str(file.attrs["config"]),
            )
    except FileNotFoundError as error:
        raise InputError(
            f"no checkpoint at {path}: has the run finished its first round?"
        ) from error
    except Exception as error:  # over a damaged file h5py raises almost anything
        raise InputError(f"{path} is no readable checkpoint: {error}") from error


def export_weights(checkpoint: Checkpoint, client: int | None, target: Path) -> None:
    """Writes a client's weights, or for None the average of all, as a torch state_dict.

    Raises:
        InputError: if there is no such client, or the file cannot be written.
    """
    clients = len(checkpoint.params)
    if client is not None and client >= clients:
        raise InputError(f"clients are 0 to {clients - 1} in this run, got {client}")
    if client is None:
        flat = exact_mean(SoloWorld(), checkpoint.params, clients)
    else:
        flat = checkpoint.params[client]
    state = {name: tensor.clone() for name, tensor in checkpoint.layout.unflatten(flat).items()}
    try:
        with target.open("wb") as file:
            torch.save(state, file)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}") from error
