"""The table of data sets: which there are, where their files are, and their samples as arrays.

Everything here is meant to run on one rank, which ships the arrays to the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpi_ntkdfl.config import DatasetSettings
from mpi_ntkdfl.data import image_sets
from mpi_ntkdfl.data.bundled import BreastCancer, Digits
from mpi_ntkdfl.data.dataset import Dataset
from mpi_ntkdfl.data.fashion_mnist import FASHION_MNIST
from mpi_ntkdfl.data.femnist import Femnist
from mpi_ntkdfl.data.mnist import MNIST
from mpi_ntkdfl.data.registered import Loader, Registered
from mpi_ntkdfl.data.source import Size, Source
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.registry import Registry

_OWN: list[Source[Any]] = [Digits(), BreastCancer(), MNIST, FASHION_MNIST, Femnist()]

DATASETS: Registry[Source[Any]] = Registry(
    "data set", {source.name: source for source in _OWN}, group="mpi_ntkdfl.datasets"
)
"""The only list of data sets."""

for _set in (MNIST, FASHION_MNIST):
    for _part, _hashes in _set.hashes.items():
        image_sets.PUBLISHED[_hashes.sha256] = _set.name, _part


def register_dataset(name: str, loader: Loader) -> None:
    """Adds a data set, to be used as `dataset: {name: NAME, options: {...}}`.

    The loader is called once per run, on rank 0. It returns a mapping:

    - `x_train`, `x_test`: numbers `[sample, ...]` of one sample shape. Bytes stay bytes, other numbers
      become float32. A network that takes vectors gets the samples flat.
    - `y_train`, `y_test`: one label per sample, a number or a text. Labels that are not 0..C-1 are
      mapped to classes in ascending order.
    - `site_train`, `site_test` (optional): one site per sample, a number or a text, such as the hospital
      it comes from. `partition: {kind: writer}` makes one client per site.
    - `classes` (optional): the number of classes, for labels 0..classes-1 that do not all occur in
      the training samples.

    Args:
        name: lower-case letters, digits and dashes.
        loader: `loader(**options) -> mapping`, with the `options` of the configuration.

    Raises:
        InputError: if the name is taken or is no such name. What the loader returns is checked when
            the data set is loaded.
    """
    DATASETS.register(name, Registered(name, loader))


DATASETS.adopt = register_dataset


@dataclass(frozen=True)
class Entry:
    """A line of the catalogue; `where` is a folder if `found`, otherwise how to get the set."""

    name: str
    train_samples: int
    test_samples: int
    features: int
    classes: int
    found: bool
    where: str
    licence: str


def catalogue() -> list[Entry]:
    """All data sets whose size is known, and where this machine has them."""
    return [
        Entry(
            name,
            *(source.size.train, source.size.test, source.size.features, source.size.classes),
            *_whereabouts(source),
            source.licence,
        )
        for name, source in DATASETS.items()
        if source.size is not None
    ]


def _whereabouts(source: Source[Any]) -> tuple[bool, str]:
    try:
        paths = source.locate(source.Settings(name=source.name))
    except InputError:
        fetch = f"python -m mpi_ntkdfl data fetch {source.name}"
        return False, fetch if source.fetchable else source.way_out
    return True, str(next(iter(paths.values())).parent) if paths else "inside scikit-learn"


def size(settings: DatasetSettings) -> Size:
    """How large a data set is: as published, or else as loaded.

    Raises:
        InputError: if it must be loaded and cannot be.
    """
    published: Size | None = DATASETS.find(settings.name).size
    if published is not None:
        return published
    data = load(settings)
    return Size(len(data.train_labels), len(data.test_labels), data.shape, data.classes)


def locate(settings: DatasetSettings) -> dict[str, Path]:
    """The files of a data set by part, without reading them; empty for sets without files.

    Raises:
        InputError: if a file is missing; the message lists the folders tried and the ways out.
    """
    paths: dict[str, Path] = DATASETS.find(settings.name).locate(settings)
    return paths


def content(settings: DatasetSettings) -> str | None:
    """What identifies the content of a data set; see `Source.content`.

    Raises:
        InputError: if a file is missing or unreadable.
    """
    told: str | None = DATASETS.find(settings.name).content(settings)
    return told


def fetch(name: str, root: str | None = None) -> Path:
    """Downloads the files of a data set that are not there yet or are damaged.

    Args:
        name: of the data set.
        root: folder for the files, by default the cache folder where `load` looks.

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
        InputError: if a file is missing, damaged or not what it should be, a part has no samples, a
            value is not finite or a label is no class.
    """
    dataset: Dataset = DATASETS.find(settings.name).load(settings)
    dataset.check()
    return dataset
