"""The table of data sets, with functions to locate, download and load them.

The functions are meant to run on one rank, which sends the arrays to the other ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mpi_ntkdfl.config import DatasetSettings
from mpi_ntkdfl.data import image_sets
from mpi_ntkdfl.data.arrays import Arrays
from mpi_ntkdfl.data.bundled import BreastCancer, Digits
from mpi_ntkdfl.data.cifar10 import Cifar10
from mpi_ntkdfl.data.dataset import Dataset
from mpi_ntkdfl.data.fashion_mnist import FASHION_MNIST
from mpi_ntkdfl.data.femnist import Femnist
from mpi_ntkdfl.data.heart_disease import HeartDisease
from mpi_ntkdfl.data.medmnist import Medmnist
from mpi_ntkdfl.data.mnist import MNIST
from mpi_ntkdfl.data.plays import Plays
from mpi_ntkdfl.data.registered import Loader, Registered
from mpi_ntkdfl.data.source import Size, Source
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.registry import Registry

_OWN: list[Source[Any]] = [
    *(Digits(), BreastCancer(), HeartDisease()),
    *(MNIST, FASHION_MNIST, Femnist()),
    *(Cifar10(), Plays(), Medmnist()),
    Arrays(),
]

DATASETS: Registry[Source[Any]] = Registry(
    "data set", {source.name: source for source in _OWN}, group="mpi_ntkdfl.datasets"
)
"""The only list of data sets."""

for _set in (MNIST, FASHION_MNIST):
    for _part, _hashes in _set.hashes.items():
        image_sets.PUBLISHED[_hashes.sha256] = _set.name, _part


def register_dataset(name: str, loader: Loader) -> None:
    """Adds a data set; a configuration uses it as `dataset: {name: NAME, options: {...}}`.

    The loader is called once per run, on rank 0. It returns a mapping:

    - `x_train`, `x_test`: numbers `[sample, ...]` with the same sample shape. Bytes stay bytes, other
      numbers become float32. A network that takes vectors gets flattened samples.
    - `y_train`, `y_test`: one label per sample, a number or a text. Labels that are not 0..C-1 are
      mapped to classes in ascending order.
    - `site_train`, `site_test` (optional): one site per sample, a number or a text, such as the hospital
      from which it comes. `partition: {kind: site}` makes one client per site.
    - `classes` (optional): the number of classes, for labels 0..classes-1 that do not all occur in
      the training samples.

    Args:
        name: lower-case letters, digits and dashes.
        loader: `loader(**options) -> mapping`, with the `options` of the configuration.

    Raises:
        InputError: if the name is taken or has other characters. The arrays of the loader are checked
            when the data set is loaded.
    """
    DATASETS.register(name, Registered(name, loader))


DATASETS.adopt = register_dataset


@dataclass(frozen=True)
class Entry:
    """A line of the catalogue. `where` is the folder of the files if `found`, otherwise the way out.

    `size` is None if it depends on the user's files.
    """

    name: str
    size: Size | None
    bundled: bool
    found: bool
    where: str
    licence: str


def catalogue() -> list[Entry]:
    """All data sets, with their folders on this machine."""
    return [
        Entry(name, source.size, source.bundled, *_whereabouts(source), source.licence)
        for name, source in DATASETS.items()
    ]


def _whereabouts(source: Source[Any]) -> tuple[bool, str]:
    try:
        paths = source.locate(source.Settings(name=source.name))
    except (InputError, ValidationError):  # the latter if a setting must be given, such as a path
        fetch = f"python -m mpi_ntkdfl data fetch {source.name}"
        return False, fetch if source.fetchable else source.way_out
    return True, str(next(iter(paths.values())).parent) if paths else f"inside {source.inside}"


def size(settings: DatasetSettings) -> Size:
    """The size of a data set: the published size if there is one, otherwise that of the loaded samples.

    Raises:
        InputError: if the data set must be loaded and this fails.
    """
    published: Size | None = DATASETS.find(settings.name).size
    if published is not None:
        return published
    data = load(settings)
    return Size(len(data.train_labels), len(data.test_labels), data.shape, data.classes)


def locate(settings: DatasetSettings) -> dict[str, Path]:
    """The files of a data set by part, without reading them; empty for sets without files.

    Raises:
        InputError: if a file is missing; the message lists the searched folders and the way out.
    """
    paths: dict[str, Path] = DATASETS.find(settings.name).locate(settings)
    return paths


def content(settings: DatasetSettings) -> str | None:
    """A hash that identifies the content of a data set; see `Source.content`.

    Raises:
        InputError: if a file is missing or cannot be read.
    """
    digest: str | None = DATASETS.find(settings.name).content(settings)
    return digest


def fetch(name: str, root: str | None = None) -> Path:
    """Downloads the files of a data set that are missing or damaged.

    Args:
        name: name of the data set.
        root: folder for the files; by default the cache folder, which `load` searches.

    Returns:
        The folder.

    Raises:
        InputError: if the data set cannot be fetched, the server cannot be reached, a hash is wrong
            or the folder cannot be written.
    """
    source = DATASETS.find(name)
    if not source.fetchable:
        able = " and ".join(each.name for each in DATASETS.values() if each.fetchable)
        raise InputError(f"fetch can download {able}, got {name}: {source.way_out}")
    return source.fetch(root)


def load(settings: DatasetSettings) -> Dataset:
    """Reads a data set and checks it.

    Raises:
        InputError: if a file is missing or damaged or has other content than it should have, a part has
            no samples, a value is not finite, a label is not a class, or all test samples occur in
            training.
    """
    dataset: Dataset = DATASETS.find(settings.name).load(settings)
    dataset.check(settings.train_as_test)
    return dataset
