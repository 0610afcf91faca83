"""Reader of federated EMNIST (FEMNIST) in the HDF5 layout that TensorFlow Federated publishes.

There are a training and a test file, each with one group per writer:

    /examples/<writer>/pixels   [n, 28, 28] float32 in [0, 1], white paper 1, black ink 0
    /examples/<writer>/label    [n] integer

Unlike in MNIST, the background has the larger value. The files with all 62 classes are
`fed_emnist_train.h5` and `fed_emnist_test.h5`. The files with only the ten digits are
`fed_emnist_digitsonly_train.h5` and `fed_emnist_digitsonly_test.h5`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from mpi_ntkdfl.data.dataset import Dataset, standardise
from mpi_ntkdfl.data.idx import MAX_INFLATION
from mpi_ntkdfl.data.source import NO_CACHE, FolderSettings, Size, Source
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.hdf5 import reading

PIXELS = 28 * 28

# Prefix of the file names, and number of classes. The first prefix with both files is used.
VARIANTS = {"fed_emnist": 62, "fed_emnist_digitsonly": 10}


class Femnist(Source[FolderSettings]):
    """Federated EMNIST (Caldas et al., LEAF): characters by 3,400 writers. The writers are its sites."""

    name = "femnist"
    Settings = FolderSettings
    size = Size(671_585, 77_483, (1, 28, 28), 62)
    licence = "NIST Special Database 19, a work of the US government"
    way_out = (
        "fed_emnist_train.h5 and fed_emnist_test.h5 (or fed_emnist_digitsonly_*.h5, ten classes) "
        "are in https://storage.googleapis.com/tff-datasets-public/fed_emnist.tar.bz2: unpack it "
        "and set dataset.root to the folder"
    )

    def locate(self, settings: FolderSettings) -> dict[str, Path]:
        """The training and the test file."""
        folder = settings.folder
        paths = None if folder is None else find(folder)
        if paths is None:
            raise InputError(f"data set femnist not found in {folder or NO_CACHE}: {self.way_out}")
        return paths

    def load(self, settings: FolderSettings) -> Dataset:
        """Reads both files."""
        paths = self.locate(settings)
        train, test = read(paths["train"]), read(paths["test"])
        parts = train.pixels, train.labels, test.pixels, test.labels
        if not len(train.labels):
            raise InputError("data set femnist must have training samples, got none")
        # With a value that is not finite the scaling is useless. The check of all samples reports it.
        with np.errstate(invalid="ignore", over="ignore"):
            scaling = standardise(train.pixels, divisor=1.0, per_feature=False)
        count = classes(paths["train"])
        return Dataset(self.name, *parts, count, scaling, train.writers, shape=(1, 28, 28))


@dataclass(frozen=True)
class Part:
    """The samples of one file, one writer after another, in the order of the writers' sorted names.

    Attributes:
        pixels: [n, 784] float32.
        labels: [n] int64.
        writers: [n] int64, number of the writer. Only writers with samples are counted, from 0.
    """

    pixels: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    writers: npt.NDArray[np.int64]


def find(folder: Path) -> dict[str, Path] | None:
    """The `train` and `test` file in `folder`, or None if there is no complete pair."""
    for prefix in VARIANTS:
        paths = {part: folder / f"{prefix}_{part}.h5" for part in ("train", "test")}
        if all(path.is_file() for path in paths.values()):
            return paths
    return None


def classes(path: Path) -> int:
    """Number of classes, which follows from the name of the file."""
    return VARIANTS[path.stem.rpartition("_")[0]]


def read(path: Path) -> Part:
    """Reads the training or the test file.

    Raises:
        InputError: if the file cannot be read, is damaged or has another layout.
    """
    try:
        with reading(path) as file:
            return _read_writers(file, path)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - h5py raises almost anything for a damaged file
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} is not a readable HDF5 file: {reason}; get the file again"
        ) from error


def _read_writers(file: h5py.File, path: Path) -> Part:
    examples = file.get("examples")
    if not isinstance(examples, h5py.Group):
        raise InputError(f"{path}: must have a group /examples with one group per writer, got none")
    names = sorted(examples)
    counts = [_count(examples.get(name), f"{path}: /examples/{name!r}") for name in names]
    total = sum(counts)
    # This is checked before memory is allocated, because a damaged shape may need too much memory.
    if total * PIXELS > MAX_INFLATION * path.stat().st_size:
        raise InputError(f"{path}: promises {total} images, more than its size allows")
    pixels = np.empty((total, PIXELS), np.float32)
    labels = np.empty(total, np.int64)
    stop = 0
    for name, count in zip(names, counts, strict=True):
        start, stop = stop, stop + count
        # A value beyond float32 becomes infinite here. The check of all samples refuses it.
        with np.errstate(over="ignore"):
            pixels[start:stop] = examples[name]["pixels"][()].reshape(count, PIXELS)
        labels[start:stop] = examples[name]["label"][()]
    filled = [count for count in counts if count]
    return Part(pixels, labels, np.repeat(np.arange(len(filled)), filled).astype(np.int64))


def _count(writer: Any, where: str) -> int:
    """Checks the layout of a writer's group, and returns the writer's number of samples."""
    members = writer if isinstance(writer, h5py.Group) else {}
    pixels, label = members.get("pixels"), members.get("label")
    if not (isinstance(pixels, h5py.Dataset) and isinstance(label, h5py.Dataset)):
        raise InputError(f"{where} must be a group with data sets pixels and label")
    if pixels.dtype.kind != "f" or pixels.shape[1:] != (28, 28):
        raise InputError(
            f"{where}/pixels must be [n, 28, 28] floats, got {pixels.shape} {pixels.dtype}"
        )
    if label.dtype.kind not in "iu" or label.shape != pixels.shape[:1]:
        raise InputError(
            f"{where}/label must be {pixels.shape[:1]} integers, one per image, "
            f"got {label.shape} {label.dtype}"
        )
    return int(pixels.shape[0])
