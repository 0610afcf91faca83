"""The data set `arrays`: a user's own arrays in an .npz or .h5 file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpi_ntkdfl.config import DatasetSettings
from mpi_ntkdfl.data import array_files, given
from mpi_ntkdfl.data.dataset import Dataset
from mpi_ntkdfl.data.source import Source
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.paths import user_path
from mpi_ntkdfl.runtime.settings import affects

_NAMES = (*given.REQUIRED, *given.OPTIONAL)


class ArraysSettings(DatasetSettings):
    """Settings of a file of arrays.

    `measured` computes mean and deviation per feature for vectors, and over all values for samples with
    more dimensions.
    """

    path: str = affects("place")
    """The .npz or .h5 file."""
    standardize: given.Standardize = "measured"
    """`none` uses the values as they are. `measured` subtracts the mean of the training samples and
    divides by their standard deviation. [mean, deviation] uses these two numbers.
    """
    channels: given.Channels | None = None
    """Where the channels of pictures are: `first` for [channel, row, column], `last` for
    [row, column, channel]. Samples with three axes need this key.
    """


class Arrays(Source[ArraysSettings]):
    """The arrays `x_train, y_train, x_test, y_test` of a file, with sites and classes if it has them."""

    name = "arrays"
    Settings = ArraysSettings
    licence = "see its owner"
    way_out = "set dataset.path to an .npz or .h5 file with x_train, y_train, x_test and y_test"

    def locate(self, settings: ArraysSettings) -> dict[str, Path]:
        """The file."""
        path = user_path(settings.path, "dataset.path")
        if not path.is_file():
            problem = "is a folder" if path.is_dir() else "does not exist"
            raise InputError(f"data set arrays: {path} {problem}: {self.way_out}")
        return {"arrays": path}

    def load(self, settings: ArraysSettings) -> Dataset:
        """Reads the file; large arrays stay on disk until a client's share of them is taken."""
        path = self.locate(settings)["arrays"]
        arrays = array_files.read(path, _NAMES)
        missing = [name for name in given.REQUIRED if name not in arrays]
        if missing:
            raise InputError(
                f"data set arrays: {path} must have the arrays {', '.join(given.REQUIRED)}, and may have "
                f"{', '.join(given.OPTIONAL)}; it lacks {', '.join(missing)}"
            )
        _require_channels(path, arrays["x_train"], settings.channels)
        return given.build(self.name, arrays, settings.standardize, settings.channels)


def _require_channels(path: Path, samples: Any, channels: given.Channels | None) -> None:
    """Refuses to guess which axis of a picture holds its channels."""
    if channels is None and samples.ndim == 4:
        raise InputError(
            f"data set arrays: {path} has samples of shape {samples.shape[1:]}: set "
            "dataset.channels=first for pictures [channel, row, column], or dataset.channels=last "
            "for [row, column, channel]"
        )
