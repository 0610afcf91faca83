"""What the record of a run stores about its samples, so that readers need no data set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpi_ntkdfl.data.dataset import Dataset
from mpi_ntkdfl.data.partition import Partition


class DataFacts(NamedTuple):
    """Facts about samples.

    Attributes:
        arrays: arrays by their names in the record's group `partition`. `labels` and `sites` are
            those of the samples `indices`, in the same order.
        attributes: of the record: `class_names` and `site_names`, JSON lists of texts; absent if classes
            or sites are only numbered.
        sites: number of sites; 0 if the test samples have none.
    """

    arrays: Mapping[str, npt.NDArray[Any]]
    attributes: Mapping[str, str]
    sites: int


def facts(dataset: Dataset, partition: Partition) -> DataFacts:
    """The facts about a data set and its partition among clients."""
    arrays = {
        "offsets": partition.offsets,
        "indices": partition.indices,
        "labels": _small(dataset.train_labels[partition.indices]),
    }
    if dataset.sites is not None:
        arrays["sites"] = _small(dataset.sites[partition.indices])
    names = {"class_names": dataset.class_names, "site_names": dataset.site_names}
    attributes = {key: json.dumps(value) for key, value in names.items() if value}
    return DataFacts(arrays, attributes, dataset.tested_sites)


def _small(numbers: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """The numbers in the smallest unsigned type that holds them."""
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))
