"""How a record says which metrics and starts it holds. Loads no torch, so that commands start at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast, get_args

import h5py

from mpi_ntkdfl.metrics import recorded
from mpi_ntkdfl.runtime.metric import Axes, Metric


def starts_of(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What every start of a run says of itself, the first one first.

    The first start's attributes are those of the record. Later ones also have `round`, the rounds
    that were done before.

    Args:
        attributes: of the record.

    Raises:
        Exception: of many kinds, over a damaged file.
    """
    return [dict(attributes), *json.loads(str(attributes["resumed"]))]


def metrics_of(file: h5py.File) -> list[Metric]:
    """The metrics that this version records in such a run, and those that only the file has.

    A user's metric may be in a file without being registered: its dataset tells what it is.

    Raises:
        Exception: of many kinds, over a damaged file.
    """
    # A metric with conditions is only in the records of runs that fulfil them.
    own = [metric for metric in recorded() if not metric.when or metric.dataset in file]
    paths = {metric.dataset for metric in own}
    others: list[Metric] = []

    def look(path: str, item: h5py.Dataset | h5py.Group) -> None:
        if "metric" in item.attrs and path not in paths:
            others.append(_described(item, path))

    file.visititems(look)
    return [*own, *others]


def describe(dataset: h5py.Dataset, metric: Metric) -> None:
    """Attributes by which a reader can show, compare and draw a metric that it does not have."""
    dataset.attrs["metric"] = metric.name
    dataset.attrs["label"] = metric.label
    dataset.attrs["unit"] = metric.unit
    dataset.attrs["log"] = metric.log
    dataset.attrs["axes"] = metric.axes


def _described(dataset: h5py.Dataset, path: str) -> Metric:
    """The metric that `describe` described.

    Raises:
        Exception: of many kinds, over a damaged file.
    """
    told = dataset.attrs
    axes = str(told["axes"])
    if axes not in get_args(Axes):
        raise ValueError(f"{path} has the axes {axes!r}")
    return Metric(
        name=str(told["metric"]),
        label=str(told["label"]),
        axes=cast(Axes, axes),
        dataset=path,
        unit=str(told["unit"]),
        log=bool(told["log"]),
        optional=True,
    )
