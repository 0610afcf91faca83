"""Arrays by client in HDF5 files: written as their blocks arrive, read in blocks, and hashed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import h5py
import numpy as np

_BLOCK = 64 * 2**20
"""Number of bytes that are read at a time to verify an array."""


@dataclass(frozen=True)
class Rows:
    """An array `[client, ...]` of consecutive clients that arrives in blocks.

    Attributes:
        shape: shape of the whole array.
        dtype: type of its entries.
        blocks: arrays of consecutive clients, in the order of ids.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: Iterable[np.ndarray]


def store(file: h5py.File, arrays: Mapping[str, Rows], digest: hashlib._Hash) -> None:
    """Writes arrays, in the order of their names, and adds them to `digest`."""
    for name, rows in sorted(arrays.items()):
        dataset, start = file.create_dataset(name, rows.shape, rows.dtype), 0
        digest.update(describe(name, dataset))
        for block in rows.blocks:
            whole = np.ascontiguousarray(block, rows.dtype)
            dataset[start : start + len(whole)] = whole
            digest.update(whole.data)
            start += len(whole)
            del block, whole  # before the next block is received
        assert start == rows.shape[0], f"{name}: only {start} of {rows.shape[0]} clients arrived"


def add_to(digest: hashlib._Hash, file: h5py.File, names: Iterable[str]) -> None:
    """Adds arrays of a file to `digest`, as `store` does; `names` are in the order of `store`."""
    for name in names:
        dataset = file[name]
        digest.update(describe(name, dataset))
        step = max(1, _BLOCK // max(1, dataset.nbytes // max(1, len(dataset))))
        for start in range(0, len(dataset), step):
            digest.update(np.ascontiguousarray(dataset[start : start + step]).data)


def describe(name: str, dataset: h5py.Dataset) -> bytes:
    """Name, shape and type of a dataset, as they enter a digest."""
    return json.dumps([name, list(dataset.shape), dataset.dtype.str]).encode()
