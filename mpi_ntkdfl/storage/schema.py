"""Reads which metrics and starts a record holds. This module does not load torch, which takes seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast, get_args

import h5py
import numpy as np

from mpi_ntkdfl.metrics import recorded
from mpi_ntkdfl.runtime.metric import Axes, Metric

FILES = {
    "data": "dataset.root",
    "partition": "partition.path",
    "graph": "topology.path",
    "weights": "model.weights",
    "regions": "environment.links.regions",
    "trace": "environment.availability.path",
}
"""Every kind of file on whose content a result depends, and the setting that holds its path."""


def starts_of(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The attributes of every start of a run, the first start first.

    The first start's attributes are those of the record. Those of later starts also have `round`, the
    number of rounds that were done before.

    Args:
        attributes: the attributes of the record.

    Raises:
        Exception: of many kinds, if the file is damaged.
    """
    return [dict(attributes), *json.loads(str(attributes["resumed"]))]


def metrics_of(file: h5py.File) -> list[Metric]:
    """The metrics of a record: those that this program records, then others that only the file has.

    Others are users' metrics that are not registered here. Attributes of their datasets describe them.

    Raises:
        Exception: of many kinds, if the file is damaged.
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
    """Writes attributes by which readers can show, compare and draw a metric that they do not know."""
    dataset.attrs["metric"] = metric.name
    dataset.attrs["label"] = metric.label
    dataset.attrs["unit"] = metric.unit
    dataset.attrs["log"] = metric.log
    dataset.attrs["axes"] = metric.axes


def _described(dataset: h5py.Dataset, path: str) -> Metric:
    """The metric whose attributes `describe` has written.

    Raises:
        Exception: of many kinds, if the file is damaged.
    """
    attributes = dataset.attrs
    axes = str(attributes["axes"])
    if axes not in get_args(Axes):
        raise ValueError(f"{path} has the axes {axes!r}")
    return Metric(
        name=str(attributes["metric"]),
        label=str(attributes["label"]),
        axes=cast(Axes, axes),
        dataset=path,
        unit=str(attributes["unit"]),
        log=bool(attributes["log"]),
        optional=True,
    )


def end_of_run(rounds: int, stop_at: float | None, done: np.ndarray, accuracy: np.ndarray) -> int:
    """The round after which a run is finished, as far as its rows tell.

    Args:
        rounds: number of rounds in the configuration.
        stop_at: accuracy in the configuration at which the run ends earlier, or None.
        done: rounds done at each row, `[row]`.
        accuracy: accuracy of the average, `[row]`.
    """
    if stop_at is None:
        return rounds
    reached = np.flatnonzero((done > 0) & (accuracy >= stop_at))
    return min(rounds, int(done[reached[0]])) if len(reached) else rounds
