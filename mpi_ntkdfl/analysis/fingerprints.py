"""Fingerprints of what a record holds of its partition and graph, by which runs are compared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import h5py
import numpy as np

from mpi_ntkdfl.runtime.hdf5 import sane


def of_partition(file: h5py.File) -> str:
    """Fingerprint of the partition: equal for equal samples in every client."""
    if "partition" not in file:
        return ""
    return _fingerprint([sane(file, f"partition/{name}")[:] for name in ("offsets", "indices")])


def of_first_graph(file: h5py.File) -> str:
    """Fingerprint of the first round's edges; empty before the first round."""
    if "topology" not in file:
        return ""
    offsets = sane(file, "topology/offsets")[:2]
    if len(offsets) < 2:
        return ""
    return _fingerprint([sane(file, "topology/edges")[offsets[0] : offsets[1]]])


def _fingerprint(parts: Sequence[np.ndarray]) -> str:
    """SHA-256 over whole numbers, as hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part, dtype=np.int64).tobytes())
    return digest.hexdigest()
