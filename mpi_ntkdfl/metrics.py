"""The table of metrics: what a record holds, and where each metric appears under which name.

`METRICS` is the only list of metrics. The record (its datasets), the tables, the comparison (text and
CSV), the figures and the studies iterate over it, so a new row appears everywhere. This module loads
neither torch nor MPI.

docs/analysis.md says how users add a metric. `evaluate.View` is the argument of a `measure` function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.metric import About as About  # public: users write rows of the table
from mpi_ntkdfl.runtime.metric import Metric as Metric
from mpi_ntkdfl.runtime.metric import Place as Place
from mpi_ntkdfl.runtime.metric import mean_over_sites, mean_where_chosen, steps_so_far, worst_site
from mpi_ntkdfl.runtime.metric import missing_ranks as missing_ranks
from mpi_ntkdfl.runtime.metric import slowest_rank as slowest_rank
from mpi_ntkdfl.runtime.registry import Registry

ROUNDS = Metric(
    name="rounds",
    label="rounds",
    dataset="rounds/round",
    dtype="i8",
    places=frozenset({"x", "panel", "target", "end", "show"}),
)
ACCURACY = Metric(
    name="accuracy",
    label="test accuracy of the average",
    dataset="model/accuracy",
    places=frozenset({"y", "mark", "end", "show", "live", "progress"}),
    head="average",
)
CLIENT_ACCURACY = Metric(
    name="client-accuracy",
    label="test accuracy, mean client",
    axes="row,client",
    dataset="clients/accuracy",
    places=frozenset({"y", "mark", "end", "show", "live", "progress"}),
    head="mean client",
)
ACCURACY_ERROR = Metric(
    name="accuracy-error",
    label="standard error of a client's test accuracy, mean client",
    axes="row,client",
    dataset="clients/accuracy_error",
    when=frozenset({"sampled tests"}),
    head="std. error",
)
"""Of `CLIENT_ACCURACY`, if clients are tested on some of the test samples (`evaluation.sample`). All are
tested on the same ones, so the error of the mean client is at most the mean of the errors."""
OWN_ACCURACY = Metric(
    name="own-accuracy",
    label="accuracy on own distribution, mean client",
    axes="row,client",
    dataset="clients/own_accuracy",
    optional=True,
    places=frozenset({"y", "mark", "end"}),
    head="own data",
)
LOSS = Metric(
    name="loss",
    label="test loss of the average",
    dataset="model/loss",
    places=frozenset({"y", "show", "live"}),
)
CLIENT_LOSS = Metric(
    name="client-loss",
    label="test loss, mean client",
    axes="row,client",
    dataset="clients/loss",
    places=frozenset({"y"}),
)
DEVIATION = Metric(
    name="deviation",
    label="mean distance from the average",
    dataset="deviation",
    places=frozenset({"x", "y", "end", "show", "live"}),
)
GRADIENT_NORM = Metric(
    name="gradient-norm",
    label="gradient norm at the average",
    dataset="model/gradient_norm",
    log=True,
    places=frozenset({"y"}),
)
MEAN_TAU = Metric(
    name="mean-tau",
    label="tau, mean over clients",
    axes="row,client",
    dataset="clients/tau",
    dtype="i8",
    reduce=mean_where_chosen,
    places=frozenset({"y", "show"}),
    head="mean tau",
)
BYTES = Metric(
    name="bytes",
    label="protocol bytes, all clients",
    axes="round,phase",
    dataset="traffic/protocol_bytes",
    dtype="i8",
    unit="B",
    log=True,
    places=frozenset({"x", "panel", "target", "end"}),
    head="protocol",
    column="protocol_bytes",
)
BUSIEST_BYTES = Metric(
    name="busiest-bytes",
    label="protocol bytes, busiest client",
    axes="round",
    dataset="traffic/busiest_bytes",
    dtype="i8",
    unit="B",
    log=True,
    optional=True,
    places=frozenset({"x", "target"}),
    head="busiest client",
)
MPI_BYTES = Metric(
    name="mpi-bytes",
    label="MPI bytes, all ranks",
    axes="round,phase",
    dataset="traffic/mpi_bytes",
    dtype="i8",
    unit="B",
    log=True,
    places=frozenset({"x", "target"}),
    head="MPI",
)
SECONDS = Metric(
    name="seconds",
    label="wall clock without evaluation",
    axes="round,rank,phase",
    dataset="time/seconds",
    unit="s",
    reduce=lambda seconds, about: slowest_rank(seconds, about.phases),
    places=frozenset({"x", "panel", "target"}),
)
IN_FLIGHT = Metric(
    name="in-flight",
    label="exchanges in flight, sum over ranks",
    axes="round,rank",
    dataset="time/in_flight",
    unit="s",
    optional=True,
    reduce=lambda seconds, about: np.where(missing_ranks(seconds), 0, seconds).sum(axis=1),
    places=frozenset(),
)
WAITED = dataclasses.replace(
    IN_FLIGHT,
    name="waited",
    label="exchanges waited for, sum over ranks",
    dataset="time/waited",
    head="waited",
    column="waited",
)


SIMULATED = Metric(
    name="simulated",
    label="simulated time",
    axes="round",
    dataset="simulated/seconds",
    unit="s",
    when=frozenset({"environment"}),
    cumulative=True,
    places=frozenset({"x", "y", "target", "end", "show", "live"}),
    column="simulated_seconds",
)
CLIENT_SECONDS = Metric(
    name="client-seconds",
    label="when clients were done with their last round, sum over clients",
    axes="round,client",
    dataset="simulated/client_seconds",
    when=frozenset({"environment"}),
    cumulative=True,
    places=frozenset(),
)
ACTIVE = Metric(
    name="participation",
    label="share of clients that took part in the last round",
    axes="round,client",
    dataset="simulated/active",
    dtype="u1",
    when=frozenset({"environment"}),
    cumulative=True,
    reduce=lambda active, about: active.mean(axis=1),
    head="active",
)


def _of_two_classes(name: str, label: str) -> Metric:
    return Metric(
        name=name,
        label=f"{label} of the average",
        dataset=f"binary/{name.replace('-', '_')}",
        when=frozenset({"two classes"}),
    )


AUC = _of_two_classes("auc", "ROC AUC")
BALANCED = _of_two_classes("balanced-accuracy", "balanced accuracy")
SENSITIVITY = _of_two_classes("sensitivity", "sensitivity")
SPECIFICITY = _of_two_classes("specificity", "specificity")
CALIBRATION = _of_two_classes("calibration-error", "expected calibration error")


def _by_site(metric: Metric) -> Metric:
    """The same measure of the average model on the test samples of each site."""
    return Metric(
        name=f"site-{metric.name}",
        label=f"{metric.label}, mean site",
        axes="row,site",
        dataset=f"sites/{metric.name.replace('-', '_')}",
        when=metric.when | {"sites"},
        reduce=mean_over_sites,
        places=metric.places & {"y", "mark", "end"},
    )


BY_SITE = {
    metric.name: _by_site(metric)
    for metric in (ACCURACY, AUC, BALANCED, SENSITIVITY, SPECIFICITY, CALIBRATION)
}
"""By the name of a metric of the average: the metric by site."""
CROSS_ACCURACY = Metric(
    name="cross-accuracy",
    label="test accuracy, mean client and site",
    axes="row,client,site",
    dataset="sites/client_accuracy",
    when=frozenset({"cross sites"}),
    reduce=lambda values, about: mean_over_sites(values.reshape(len(values), -1), about),
    places=frozenset({"y"}),
)
"""Each client's own model on the test samples of each site."""

METRICS: Registry[Metric] = Registry(
    "metric",
    {
        metric.name: metric
        for metric in (
            ROUNDS,
            ACCURACY,
            CLIENT_ACCURACY,
            Metric(
                name="worst-client-accuracy",
                label="test accuracy, worst client",
                axes="row,client",
                source=CLIENT_ACCURACY.name,
                reduce=lambda accuracy, about: accuracy.min(axis=1, initial=np.inf),
                places=frozenset({"y", "mark", "show"}),
                head="worst client",
            ),
            ACCURACY_ERROR,
            OWN_ACCURACY,
            LOSS,
            CLIENT_LOSS,
            DEVIATION,
            GRADIENT_NORM,
            Metric(
                name="least-squared-gradient",
                label="least squared gradient so far",
                source=GRADIENT_NORM.name,
                log=True,
                reduce=lambda norm, about: np.minimum.accumulate(norm**2),
                places=frozenset({"y"}),
            ),
            MEAN_TAU,
            Metric(
                name="steps",
                label="evolution steps, mean over clients",
                axes="row,client",
                source=MEAN_TAU.name,
                dtype="i8",
                log=True,
                reduce=steps_so_far,
                places=frozenset({"x"}),
            ),
            BYTES,
            BUSIEST_BYTES,
            MPI_BYTES,
            SECONDS,
            IN_FLIGHT,
            WAITED,
            SIMULATED,
            CLIENT_SECONDS,
            ACTIVE,
            *(AUC, BALANCED, SENSITIVITY, SPECIFICITY, CALIBRATION),
            *BY_SITE.values(),
            Metric(
                name="worst-site-accuracy",
                label="test accuracy of the average, worst site",
                axes="row,site",
                source=BY_SITE[ACCURACY.name].name,
                when=frozenset({"sites"}),
                reduce=worst_site,
                places=frozenset({"y", "mark", "end"}),
            ),
            CROSS_ACCURACY,
        )
    },
)
"""Every metric by name. Those with a dataset are measured in every run; others are computed from them."""


def recorded() -> list[Metric]:
    """The metrics that have a dataset, in the table's order."""
    return [metric for metric in METRICS.values() if metric.dataset]


def at(place: Place, metrics: Sequence[Metric] | None = None) -> list[Metric]:
    """The metrics that appear at a place, in order.

    Args:
        place: see `Metric.places`.
        metrics: the metrics to choose from; by default those of the table.
    """
    every = METRICS.values() if metrics is None else metrics
    return [metric for metric in every if place in metric.places]


def register_metric(metric: Metric) -> None:
    """Adds a metric. It is measured at every evaluation, and then recorded, shown, compared and drawn.

    The module's docstring has two examples. Records hold the metric's name, label and unit, so they can
    be read without the code that measured it.

    Args:
        metric: a row with a `measure` function. Its axes are `row` (one number, measured on the average
            of all clients) or `row,client` (one number per client, measured only if
            `evaluation.clients` is on).

    Raises:
        InputError: if the name, dataset, head or column belongs to another metric, or if the row has
            other axes, no `measure` function, or another type than float64.
    """
    if metric.axes not in ("row", "row,client"):
        raise InputError(
            f"metric {metric.name}: a registered metric must have the axes row or row,client, because it "
            f"is measured at evaluations, got {metric.axes!r}"
        )
    if not callable(metric.measure) or metric.source:
        raise InputError(f"metric {metric.name} must have a measure function and no source")
    if metric.dtype != "f8":
        raise InputError(f"metric {metric.name} must have the dtype f8, got {metric.dtype}")
    paths = {other.dataset: other.name for other in recorded() if other.name != metric.name}
    if metric.dataset in paths:
        raise InputError(
            f"metric {metric.name}: the dataset {metric.dataset} belongs to {paths[metric.dataset]}; "
            "choose another one"
        )
    for other in METRICS.values():
        for field in ("head", "column"):
            if other.name != metric.name and getattr(other, field) == getattr(metric, field):
                raise InputError(
                    f"metric {metric.name}: the {field} {getattr(metric, field)!r} belongs to "
                    f"{other.name}; choose another one"
                )
    METRICS.register(metric.name, metric)
