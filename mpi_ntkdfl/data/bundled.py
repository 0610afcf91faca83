"""The two data sets that come inside scikit-learn."""

from __future__ import annotations

import numpy as np

from mpi_ntkdfl.data.dataset import Dataset, split, standardise
from mpi_ntkdfl.data.source import FolderSettings, Size, Source, need


class _InScikitLearn(Source[FolderSettings]):
    """A data set that needs no file of its own."""

    Settings = FolderSettings
    licence = "CC BY 4.0"
    bundled = True
    way_out = "it comes inside scikit-learn, just use it"


class Digits(_InScikitLearn):
    """Handwritten digits of 8 x 8 pixels (Alpaydin and Kaynak, UCI repository)."""

    name = "digits"
    size = Size(1438, 359, (1, 8, 8), 10)

    def load(self, settings: FolderSettings) -> Dataset:
        """Reads the set and splits it."""
        values, labels = need("sklearn.datasets").load_digits(return_X_y=True)
        # The pixels are counts 0..16, so bytes hold them exactly.
        train, test = split(values.astype(np.uint8), labels.astype(np.int64))
        scaling = standardise(train.inputs, divisor=16.0, per_feature=False)
        return Dataset(self.name, *train, *test, 10, scaling, shape=(1, 8, 8))


class BreastCancer(_InScikitLearn):
    """Wisconsin diagnostic breast cancer (Wolberg et al., UCI repository): 30 features, two classes."""

    name = "breast-cancer"
    size = Size(456, 113, (30,), 2)

    def load(self, settings: FolderSettings) -> Dataset:
        """Reads the set and splits it."""
        values, labels = need("sklearn.datasets").load_breast_cancer(return_X_y=True)
        train, test = split(values.astype(np.float32), labels.astype(np.int64))
        scaling = standardise(train.inputs, divisor=1.0, per_feature=True)
        return Dataset(self.name, *train, *test, 2, scaling)
