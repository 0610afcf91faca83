"""What an entry in the table of data sets is."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from mpi_ntkdfl.config import DatasetSettings
from mpi_ntkdfl.data.dataset import Dataset
from mpi_ntkdfl.runtime import identity
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.settings import affects

SettingsT = TypeVar("SettingsT", bound=DatasetSettings)


class FolderSettings(DatasetSettings):
    """Settings of a data set of files: `root` is their folder, null for the usual places.

    Data sets inside scikit-learn have the key as well and do not use it.
    """

    root: str | None = affects("place", default=None)


@dataclass(frozen=True)
class Size:
    """How large a data set is.

    Attributes:
        train: training samples.
        test: test samples.
        shape: of one sample.
        classes: number of classes.
    """

    train: int
    test: int
    shape: tuple[int, ...]
    classes: int

    @property
    def features(self) -> int:
        """Numbers per sample."""
        return math.prod(self.shape)


class Source(ABC, Generic[SettingsT]):
    """A data set: its settings, and how its samples are found and read.

    Attributes:
        name: as in the configuration.
        Settings: the class of its `dataset:` section.
        size: as published; None if it is known only once the samples are read.
        licence: of the samples.
        bundled: whether it comes with the required packages.
        fetchable: whether `data fetch` can download it.
        way_out: what a user can do who does not have it, as the end of a message.
    """

    name: str
    Settings: type[SettingsT]
    size: Size | None = None
    licence: str
    bundled: bool = False
    fetchable: bool = False
    way_out: str

    def locate(self, settings: SettingsT) -> dict[str, Path]:
        """The files by part, without reading them; empty for a data set without files of its own.

        Raises:
            InputError: if a file is missing; the message lists the folders tried and the way out.
        """
        return {}

    def content(self, settings: SettingsT) -> str | None:
        """What identifies the content of the files, without reading samples where that can be avoided.

        Returns:
            None for samples that everybody has under this name; else SHA-256, by default over the bytes
            of the files. A file is read once per process and state.

        Raises:
            InputError: if a file is missing or unreadable.
        """
        paths = self.locate(settings)
        try:
            digests = {part: identity.of_file(path) for part, path in sorted(paths.items())}
        except OSError as error:
            raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error
        return hashlib.sha256(json.dumps(digests).encode()).hexdigest() if digests else None

    @abstractmethod
    def load(self, settings: SettingsT) -> Dataset:
        """Reads the samples.

        Raises:
            InputError: if a file is missing, damaged or not what it should be.
        """

    def fetch(self, root: str | None = None) -> Path:
        """Downloads the files that are missing or damaged, and returns their folder.

        Args:
            root: the folder, by default the one where `locate` looks first.

        Raises:
            InputError: if that cannot be done.
        """
        raise InputError(f"{self.name} cannot be downloaded: {self.way_out}")


def cache_folder(name: str) -> Path | None:
    """Where a downloaded data set is kept; None if this user has no home folder.

    A container that runs under a bare user number has no home folder, for example. The environment
    variable XDG_CACHE_HOME names a cache folder without one.
    """
    try:
        folder = Path(need("pooch").os_cache("mpi_ntkdfl"))
    except RuntimeError:
        return None
    # Older versions of the library leave the ~ that they could not expand.
    return None if folder.parts[0].startswith("~") else folder / name


NO_CACHE = (
    "the cache folder, which does not exist because this user has no home folder: set the environment "
    "variable XDG_CACHE_HOME to have one"
)


def need(module: str) -> Any:
    """Imports a module where it is needed.

    Some take long to import, and only one rank of a run needs them.

    Raises:
        InputError: if its package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"sklearn": "scikit-learn"}.get(module.partition(".")[0], module)
        raise InputError(
            f"this needs the Python package {package}, got {error}: install it"
        ) from error
