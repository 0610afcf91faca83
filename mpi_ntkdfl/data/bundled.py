"""The two data sets that come inside scikit-learn.

Their tables are read from the package's folder, because `import sklearn` takes 1.4 s of processor time.
If a version of scikit-learn keeps them elsewhere, its own function reads them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from mpi_ntkdfl.data.dataset import Dataset, split, standardise
from mpi_ntkdfl.data.source import FolderSettings, Size, Source, need


def _table(file: str, loader: str, heading: int) -> tuple[np.ndarray, np.ndarray]:
    """Values `[sample, feature]` and labels `[sample]` of a data set, both float64 or integers.

    Args:
        file: file of its table in scikit-learn's folder of data; the last column holds the labels.
        loader: the function of `sklearn.datasets` that reads it.
        heading: number of lines above the table.

    Raises:
        InputError: if scikit-learn is not installed.
    """
    package = importlib.util.find_spec("sklearn")  # finds the folder and imports nothing
    for folder in (package.submodule_search_locations or []) if package else []:
        path = Path(folder, "datasets", "data", file)
        if path.is_file():
            table = np.loadtxt(path, delimiter=",", skiprows=heading, encoding="utf-8")
            return table[:, :-1], table[:, -1]
    values, labels = getattr(need("sklearn.datasets"), loader)(return_X_y=True)
    return values, labels


class _InScikitLearn(Source[FolderSettings]):
    """A data set that is part of scikit-learn, so that it needs no other file."""

    Settings = FolderSettings
    licence = "CC BY 4.0"
    bundled = True
    inside = "scikit-learn"
    way_out = "it comes inside scikit-learn and needs no download"


class Digits(_InScikitLearn):
    """Handwritten digits of 8 x 8 pixels (Alpaydin and Kaynak, UCI repository)."""

    name = "digits"
    size = Size(1438, 359, (1, 8, 8), 10)

    def load(self, settings: FolderSettings) -> Dataset:
        """Reads the set and splits it."""
        values, labels = _table("digits.csv.gz", "load_digits", heading=0)
        # The pixels are counts from 0 to 16, so bytes hold them exactly.
        train, test = split(values.astype(np.uint8), labels.astype(np.int64))
        scaling = standardise(train.inputs, divisor=16.0, per_feature=False)
        return Dataset(self.name, *train, *test, 10, scaling, shape=(1, 8, 8))


class BreastCancer(_InScikitLearn):
    """Wisconsin diagnostic breast cancer (Wolberg et al., UCI repository): 30 features, two classes."""

    name = "breast-cancer"
    size = Size(456, 113, (30,), 2)

    def load(self, settings: FolderSettings) -> Dataset:
        """Reads the set and splits it."""
        values, labels = _table("breast_cancer.csv", "load_breast_cancer", heading=1)
        train, test = split(values.astype(np.float32), labels.astype(np.int64))
        scaling = standardise(train.inputs, divisor=1.0, per_feature=True)
        return Dataset(self.name, *train, *test, 2, scaling)
