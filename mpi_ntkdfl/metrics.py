"""The table of metrics: what a record holds, how it is called, and where it appears.

`METRICS` is the only list of metrics. The record (its datasets), the tables, the comparison (text and
CSV), the figures and the studies iterate over it, so that a new row appears everywhere. This module
loads neither torch nor MPI.

A metric of your own is one row and one function, in a file that `--plugin` names:

    import torch
    from mpi_ntkdfl import register_metric
    from mpi_ntkdfl.metrics import Metric

    register_metric(
        Metric(
            name="weight-norm",
            label="norm of the average's weights",
            measure=lambda view: float(torch.linalg.vector_norm(view.params)),
        )
    )

    def entropy(view):  # of what a client's model says about the test samples, in nats
        chances = torch.softmax(view.outputs, dim=1)
        return float(torch.special.entr(chances).sum(dim=1).mean())

    register_metric(
        Metric(
            name="client-entropy",
            label="test entropy, mean client",
            unit="nat",
            axes="row,client",
            measure=entropy,
        )
    )

`evaluate.View` says what a `measure` function is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.registry import Registry
from mpi_ntkdfl.runtime.units import readable, three_digits

if TYPE_CHECKING:
    from mpi_ntkdfl.evaluate import View

UNTIMED = ("evaluate", "record")
"""Phases that serve the experimenter; a real federation would not spend them."""

Axes = Literal[
    "row", "row,client", "round", "round,client", "round,phase", "round,rank", "round,rank,phase"
]
"""Axes of a dataset. A `row` is an evaluation, a `round` a round, evaluated or not."""

Place = Literal["x", "panel", "y", "mark", "target", "end", "show", "live", "progress"]
"""Where a metric appears:

`x`, `y`: it may be drawn on this axis by `plot` and studies; `panel`: `plot` draws against it by default;
`mark`: an accuracy, so `plot --target` can be marked on its axis; `target`, `end`: columns of `compare`
up to a target accuracy, and at the last row; `show`: a column of `show`; `live`: in the lines of
`show --follow`; `progress`: in the lines that a run prints.
"""


@dataclass(frozen=True)
class About:
    """What reductions may need to know of a record beside the values.

    Attributes:
        rounds: rounds done at each row, `[row]`.
        phases: names of the phases of the dataset, if it has that axis.
    """

    rounds: np.ndarray
    phases: Sequence[str] = ()


Reduction = Callable[[np.ndarray, About], np.ndarray]
"""From the values of a dataset to one number per row or round."""


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    Attributes:
        name: by which `plot` and studies know it: lower-case letters, digits and dashes.
        label: what it is, for axes of figures, without the unit.
        axes: of its dataset.
        dataset: path in the record, for a metric that is measured; empty: `metrics/NAME`.
        source: name of the metric from whose dataset this one is reduced, if it has no dataset.
        dtype: of the dataset: `f8` or `i8`. NaN of a count means that there is no such number.
        unit: such as `B` or `s`; empty for a number without one.
        log: whether its axis is logarithmic in figures.
        optional: whether records of earlier versions may lack it.
        measure: of a metric that a user brings: from a view of one model to its number. It is called
            for each client with the axes `row,client`, once for the average with the axes `row`.
        reduce: from the dataset to one number per row or round; None: the mean over clients, or the sum
            over phases, whatever there is.
        cumulative: whether the values per round are totals since the start. Others are summed.
        places: where it appears.
        head: its column in tables; empty: the name.
        column: its name in CSV files; empty: the name with `_` for `-`.
    """

    name: str
    label: str
    axes: Axes = "row"
    dataset: str = ""
    source: str = ""
    dtype: Literal["f8", "i8"] = "f8"
    unit: str = ""
    log: bool = False
    optional: bool = False
    measure: Callable[[View], float] | None = None
    reduce: Reduction | None = None
    cumulative: bool = False
    places: frozenset[Place] = frozenset({"y", "end", "show"})
    head: str = ""
    column: str = ""

    def __post_init__(self) -> None:
        """Fills in what follows from the name."""
        defaults = {
            "dataset": "" if self.source else f"metrics/{self.name}",
            "head": self.name,
            "column": self.name.replace("-", "_"),
        }
        for field, default in defaults.items():
            object.__setattr__(self, field, getattr(self, field) or default)
        # A run may have been without the code that measures it.
        object.__setattr__(self, "optional", self.optional or self.measure is not None)

    @property
    def by_round(self) -> bool:
        """Whether its dataset has one entry per round; else it has one per evaluation."""
        return self.axes.startswith("round")

    @property
    def by_rank(self) -> bool:
        """Whether its dataset has an axis of ranks."""
        return "rank" in self.axes.split(",")

    @property
    def by_client(self) -> bool:
        """Whether its dataset has an axis of clients."""
        return "client" in self.axes.split(",")

    @property
    def of_clients(self) -> bool:
        """Whether it is measured on each client's own model, so only with `evaluation.clients`."""
        return self.axes == "row,client" and not self.counts

    @property
    def counts(self) -> bool:
        """Whether it is a count, which NaN can only say that there is none of."""
        return self.dtype == "i8"

    @property
    def title(self) -> str:
        """The label with the unit, as on an axis; bytes have their unit at the ticks."""
        return f"{self.label} ({self.unit})" if self.unit not in ("", "B") else self.label

    def text(self, value: float) -> str:
        """A value for people."""
        if self.unit == "B":
            return readable(value)
        if self.unit == "s":
            return three_digits(value)
        if self.counts:
            return f"{value:.1f}".removesuffix(".0")
        return f"{value:.4g}" if self.log else f"{value:.4f}"

    def curve(self, values: np.ndarray, about: About) -> np.ndarray:
        """One number per row, `[row]` float64: the state after `about.rounds` rounds.

        Args:
            values: of its dataset, or that of its source.
            about: the record.
        """
        with np.errstate(invalid="ignore"):  # infinities of two signs make NaN
            if self.reduce is not None:
                reduced = self.reduce(values, about)
            elif self.axes == "row,client":
                reduced = values.mean(axis=1)
            else:
                reduced = values.sum(axis=tuple(range(1, values.ndim)))
            if self.by_round:
                totals = reduced if self.cumulative else np.cumsum(reduced)
                reduced = np.concatenate([[0.0], totals])[about.rounds]
        return np.asarray(reduced, dtype=np.float64)


def slowest_rank(seconds: np.ndarray, phases: Sequence[str]) -> np.ndarray:
    """Seconds `[round]` of each round's slowest rank, without the phases `UNTIMED`.

    Ranks that a round did not have are left out: they are NaN in every phase. NaN in some phases of a
    rank, or of all ranks, is NaN in the result.

    Args:
        seconds: `[round, rank, phase]`.
        phases: names of the phases.
    """
    timed = [phase not in UNTIMED for phase in phases]
    by_rank = np.where(missing_ranks(seconds), -np.inf, seconds[..., timed].sum(axis=2))
    return by_rank.max(axis=1, initial=-np.inf) if by_rank.size else np.zeros(len(seconds))


def missing_ranks(by_rank: np.ndarray) -> np.ndarray:
    """Which ranks a round did not have, `[round, rank]`; none of a round that has no number at all.

    Args:
        by_rank: `[round, rank, ...]`, NaN for ranks that a round did not have.
    """
    unknown = np.isnan(by_rank).all(axis=tuple(range(2, by_rank.ndim)))
    missing: np.ndarray = unknown & ~unknown.all(axis=1, keepdims=True)
    return missing


def _mean_where_chosen(taus: np.ndarray, about: About) -> np.ndarray:
    """Mean over clients; NaN at the start, and for methods that choose no steps."""
    means: np.ndarray = taus.mean(axis=1)
    return np.where(means > 0, means, np.nan)


def _steps_so_far(taus: np.ndarray, about: About) -> np.ndarray:
    """NaN after a round that was not evaluated, which has left no tau."""
    seamless = np.cumprod(np.diff(about.rounds, prepend=-1) == 1)
    return np.where(seamless, np.cumsum(taus.mean(axis=1)), np.nan)


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
    reduce=_mean_where_chosen,
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
    label="protocol bytes through the busiest node",
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
                reduce=_steps_so_far,
                places=frozenset({"x"}),
            ),
            BYTES,
            BUSIEST_BYTES,
            MPI_BYTES,
            SECONDS,
            IN_FLIGHT,
            WAITED,
        )
    },
)
"""Every metric by name. Rows with a dataset are measured in every run; the others follow from them."""


def recorded() -> list[Metric]:
    """The metrics that have a dataset, in order."""
    return [metric for metric in METRICS.values() if metric.dataset]


def at(place: Place, metrics: Sequence[Metric] | None = None) -> list[Metric]:
    """Those of `metrics`, by default of the table, that appear at a place, in order."""
    every = METRICS.values() if metrics is None else metrics
    return [metric for metric in every if place in metric.places]


def register_metric(metric: Metric) -> None:
    """Adds a metric that is measured at every evaluation, and then recorded, shown, compared and drawn.

    The module's own text has two examples. Records hold the metric's name, label and unit, so they are
    read without the code that measured it.

    Args:
        metric: with a `measure` function and the axes `row` (one number, of the average of all clients)
            or `row,client` (one number per client; only measured with `evaluation.clients`).

    Raises:
        InputError: if the name, dataset, head or column is taken, the axes are others, it has no
            `measure` function, or it is not recorded as float64.
    """
    if metric.axes not in ("row", "row,client"):
        raise InputError(
            f"metric {metric.name}: a registered metric is measured at evaluations, with the axes row or "
            f"row,client, got {metric.axes!r}"
        )
    if not callable(metric.measure) or metric.source:
        raise InputError(f"metric {metric.name} needs a measure function, and no source")
    if metric.dtype != "f8":
        raise InputError(f"metric {metric.name}: numbers are recorded as f8, got {metric.dtype}")
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
                    f"metric {metric.name}: the {field} {getattr(metric, field)!r} is that of "
                    f"{other.name}; choose another one"
                )
    METRICS.register(metric.name, metric)
