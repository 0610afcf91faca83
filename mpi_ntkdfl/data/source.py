"""The base class of the entries in the table of data sets."""

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
from mpi_ntkdfl.runtime.paths import user_path
from mpi_ntkdfl.runtime.settings import affects

SettingsT = TypeVar("SettingsT", bound=DatasetSettings)


class FolderSettings(DatasetSettings):
    """Settings of a data set with files.

    Data sets inside scikit-learn also have this setting, but do not use it.
    """

    root: str | None = affects("place", default=None)
    """Folder of the files. Null: the cache folder, then Debian's folder."""

    @property
    def folder(self) -> Path | None:
        """The folder `root`, or else the cache folder, if there is one."""
        return (
            cache_folder(self.name) if self.root is None else user_path(self.root, "dataset.root")
        )


@dataclass(frozen=True)
class Size:
    """The size of a data set.

    Attributes:
        train: number of training samples.
        test: number of test samples.
        shape: shape of one sample.
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
        name: name of the data set in configurations.
        Settings: the class of its `dataset:` section.
        size: published size; None if the size is known only after the samples were read.
        licence: licence of the samples.
        bundled: whether it comes with the required packages.
        inside: the package that it comes inside, if it is bundled.
        fetchable: whether `data fetch` can download it.
        way_out: what users can do if they do not have it; a message ends with this text.
    """

    name: str
    Settings: type[SettingsT]
    size: Size | None = None
    licence: str
    bundled: bool = False
    inside: str = ""
    fetchable: bool = False
    way_out: str

    def locate(self, settings: SettingsT) -> dict[str, Path]:
        """The files by part, without reading them; empty for a data set without files of its own.

        Raises:
            InputError: if a file is missing; the message lists the searched folders and the way out.
        """
        return {}

    def content(self, settings: SettingsT) -> str | None:
        """A hash that identifies the content of the files, if possible without reading the samples.

        Returns:
            None if the name is enough to identify the samples, because all users have the same ones.
            Otherwise a SHA-256, by default over the bytes of the files. A process reads a file once, and
            again only if its size, time or inode changes.

        Raises:
            InputError: if a file is missing or cannot be read.
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
            InputError: if a file is missing or damaged, or has other content than it should have.
        """

    def folder_to_fill(self, root: str | None) -> Path:
        """The folder into which `fetch` downloads: `root`, or else the cache folder.

        Raises:
            InputError: if there is neither.
        """
        folder = cache_folder(self.name) if root is None else user_path(root, "the folder")
        if folder is None:
            raise InputError(f"no folder to download {self.name} to: the default is {NO_CACHE}")
        return folder

    def fetch(self, root: str | None = None) -> Path:
        """Downloads the files that are missing or damaged, and returns their folder.

        Args:
            root: the folder; by default the folder that `locate` searches first.

        Raises:
            InputError: if the files cannot be downloaded.
        """
        raise InputError(f"{self.name} cannot be downloaded: {self.way_out}")


def cache_folder(name: str) -> Path | None:
    """The folder of a downloaded data set; None if this user has no home folder.

    For example, there is no home folder in a container that runs under a user number without a name. The
    environment variable XDG_CACHE_HOME names a cache folder that needs no home folder.
    """
    try:
        folder = Path(need("pooch").os_cache("mpi_ntkdfl"))
    except RuntimeError:
        return None
    # Older versions of pooch keep a ~ that they could not expand.
    return None if folder.parts[0].startswith("~") else folder / name


NO_CACHE = (
    "the cache folder, which does not exist because this user has no home folder: set the environment "
    "variable XDG_CACHE_HOME to have one"
)


def need(module: str) -> Any:
    """Imports a module only where it is needed.

    Some modules take long to import, and only one rank of a run needs them.

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
