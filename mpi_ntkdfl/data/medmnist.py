"""Files of MedMNIST (Yang et al., Scientific Data 2023): small medical pictures in one .npz file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from mpi_ntkdfl.config import DatasetSettings
from mpi_ntkdfl.data import array_files, given
from mpi_ntkdfl.data.dataset import Dataset
from mpi_ntkdfl.data.source import Source
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.paths import user_path
from mpi_ntkdfl.runtime.settings import affects

_PARTS = ("train", "val", "test")
_NAMES = tuple(f"{part}_{what}" for part in _PARTS for what in ("images", "labels"))


class MedmnistSettings(DatasetSettings):
    """Settings of a MedMNIST file of any size and kind of pictures with one label each."""

    path: str = affects("place")
    """The .npz file, such as bloodmnist.npz."""
    standardize: given.Standardize = "measured"
    """`none` uses the bytes as they are. `measured` subtracts the mean of all training values and divides
    by their standard deviation. [mean, deviation] uses these two numbers.
    """
    validation: Literal["unused", "train"] = "unused"
    """Whether the validation part of the file is not used, or belongs to the training part."""


class Medmnist(Source[MedmnistSettings]):
    """A file of MedMNIST: bytes [n, row, column] or [n, row, column, 3], and labels [n, 1]."""

    name = "medmnist"
    Settings = MedmnistSettings
    licence = "CC BY 4.0 for most files, see https://medmnist.com"
    way_out = "set dataset.path to a file from https://medmnist.com, such as bloodmnist.npz"

    def locate(self, settings: MedmnistSettings) -> dict[str, Path]:
        """The file."""
        path = user_path(settings.path, "dataset.path")
        if not path.is_file():
            raise InputError(f"data set medmnist: there is no file {path}: {self.way_out}")
        return {"arrays": path}

    def load(self, settings: MedmnistSettings) -> Dataset:
        """Reads the file; refuses labels of which a picture has several."""
        path = self.locate(settings)["arrays"]
        arrays = array_files.read(path, _NAMES)
        missing = [name for name in _NAMES if name not in arrays]
        if missing:
            raise InputError(
                f"data set medmnist: {path} lacks {', '.join(missing)}: {self.way_out}"
            )
        for part in _PARTS:
            labels = arrays[f"{part}_labels"]
            if labels.ndim == 2 and labels.shape[1] > 1:
                raise InputError(
                    f"data set medmnist: every picture must have one label, got "
                    f"{labels.shape[1]} in {path}; such files (chestmnist) cannot be used"
                )
        train = _PARTS[:2] if settings.validation == "train" else _PARTS[:1]
        named = {
            "x_train": np.concatenate([arrays[f"{part}_images"] for part in train]),
            "y_train": np.concatenate([arrays[f"{part}_labels"] for part in train]),
            "x_test": arrays["test_images"],
            "y_test": arrays["test_labels"],
        }
        return given.build(self.name, named, settings.standardize, "last")
