"""Heart disease of patients of four hospitals, a table that comes with this package."""

from __future__ import annotations

import csv
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from mpi_ntkdfl.config import DatasetSettings
from mpi_ntkdfl.data import given
from mpi_ntkdfl.data.dataset import Dataset, Labels
from mpi_ntkdfl.data.source import Size, Source
from mpi_ntkdfl.runtime import seeds

TABLE = "heart-disease.csv"
"""The file in the folder `tables`; beside it, `heart-disease.md` has authors, licence and changes."""

SITES = ("cleveland", "hungary", "switzerland", "va")

_CATEGORIES = {"cp": (1, 2, 3, 4), "restecg": (0, 1, 2)}
"""Codes of the columns that are no quantities."""

_TEST_SHARE = 3
"""One of so many rows of each class of a hospital is a test row."""


class HeartDiseaseSettings(DatasetSettings):
    """Settings of the heart disease data; the rows with missing values are left out."""

    standardize: given.Standardize = "measured"
    """`measured` subtracts the mean of the training rows of all hospitals from each feature and divides
    by their standard deviation. `none` uses the values as they are. [mean, deviation] uses these two
    numbers.
    """
    one_hot: bool = True
    """Whether the chest pain and the electrocardiogram become one feature per code, without the first
    code (13 features). Otherwise their codes are numbers (10 features).
    """
    split: int = Field(default=0, ge=0, lt=2**63)
    """Number of the random split into training and test rows; it does not depend on the seed."""


class HeartDisease(Source[HeartDiseaseSettings]):
    """Heart disease (Janosi, Steinbrunn, Pfisterer, Detrano; UCI repository): 740 patients, two classes.

    Class 1 is a disease of any degree. A third of the rows of each class and hospital are test rows.
    """

    name = "heart-disease"
    Settings = HeartDiseaseSettings
    size = Size(493, 247, (13,), 2)
    licence = "CC BY 4.0"
    bundled = True
    inside = "this package"
    way_out = "it comes with this package and needs no download"

    def load(self, settings: HeartDiseaseSettings) -> Dataset:
        """Reads the table and splits it."""
        values, labels, sites = read(settings.one_hot)
        in_test = _test_rows(values, labels, sites, settings.split)
        arrays: dict[str, npt.NDArray[Any]] = {}
        for part, rows in (("train", ~in_test), ("test", in_test)):
            arrays[f"x_{part}"], arrays[f"y_{part}"] = values[rows], labels[rows]
            arrays[f"site_{part}"] = np.array(SITES)[sites[rows]]
        return given.build(self.name, arrays, settings.standardize)


def read(one_hot: bool) -> tuple[npt.NDArray[np.float64], Labels, Labels]:
    """Features `[row, feature]`, classes `[row]` and sites `[row]` of the complete rows.

    Args:
        one_hot: as `HeartDiseaseSettings.one_hot`.
    """
    file = resources.files("mpi_ntkdfl.data").joinpath("tables", TABLE)
    table = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    rows = [row for row in table if "" not in row.values()]
    columns = []
    for name in rows[0]:
        if name in ("site", "num"):
            continue
        column = np.array([float(row[name]) for row in rows])
        codes = _CATEGORIES.get(name, ()) if one_hot else ()
        columns += [column == code for code in codes[1:]] or [column]
    labels = np.array([int(row["num"]) > 0 for row in rows], np.int64)
    sites = np.array([SITES.index(row["site"]) for row in rows], np.int64)
    return np.stack(columns, axis=1).astype(np.float64), labels, sites


def _test_rows(
    values: npt.NDArray[np.float64], labels: Labels, sites: Labels, split: int
) -> npt.NDArray[np.bool_]:
    """Which rows are test rows, `[row]`: a third of each class of each hospital, at random.

    A row that occurs twice is in one part only, which can move one row to the other part.
    """
    random = seeds.generator(split, "heart-disease split")
    in_test = np.zeros(len(labels), bool)
    for site in range(len(SITES)):
        for label in (0, 1):
            members = random.permutation(np.flatnonzero((sites == site) & (labels == label)))
            in_test[members[: round(len(members) / _TEST_SHARE)]] = True
    _, first, same = np.unique(values, axis=0, return_index=True, return_inverse=True)
    return in_test[first[same.reshape(-1)]]
