"""The definition of a metric: a row of the table `metrics.METRICS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mpi_ntkdfl.runtime.units import readable, three_digits

Axes = Literal[
    "row",
    "row,client",
    "row,site",
    "row,client,site",
    "round",
    "round,client",
    "round,phase",
    "round,rank",
    "round,rank,phase",
]
"""Axes of a dataset. A `row` is an evaluation. A `round` is any round, evaluated or not."""

Condition = Literal["two classes", "sites", "cross sites", "environment", "sampled tests"]
"""What a run must have so that a metric is measured:

- `two classes`: the data set has two classes.
- `sites`: its training and test samples have sites, at least 2 and at most `MOST_SITES`.
- `environment`: the run simulates time.
- `sampled tests`: clients are tested on some of the test samples (`evaluation.sample`).
- `cross sites`: `sites` holds, and the number of clients times that of sites is at most `MOST_PAIRS`.
"""

MOST_SITES, MOST_PAIRS = 100, 10_000
"""The most sites, and pairs of client and site, for which a run measures every one on its own."""


def conditions(
    classes: int, sites: int, clients: int, environment: bool = False, sampled: bool = False
) -> frozenset[Condition]:
    """What a run has; `Metric.when` says what a metric needs.

    Args:
        classes: number of classes.
        sites: number of sites; 0 if the test samples have none.
        clients: number of clients.
        environment: whether the run simulates time.
        sampled: whether clients are tested on some of the test samples.
    """
    named: dict[Condition, bool] = {
        "two classes": classes == 2,
        "environment": environment,
        "sampled tests": sampled,
        "sites": 2 <= sites <= MOST_SITES,
        "cross sites": 2 <= sites <= MOST_SITES and sites * clients <= MOST_PAIRS,
    }
    return frozenset(name for name, holds in named.items() if holds)


def clients_tested(done: int, rounds: int, every: int) -> bool:
    """Whether an evaluation after `done` of `rounds` rounds tests the clients' own models.

    Args:
        done: number of rounds done.
        rounds: number of rounds of the run.
        every: the setting `evaluation.clients_every`.
    """
    return done % every == 0 or done == rounds


Place = Literal["x", "panel", "y", "mark", "target", "end", "show", "live", "progress"]
"""Where a metric appears:

- `x`, `y`: `plot` and studies may draw it on this axis.
- `panel`: `plot` draws curves against it by default.
- `mark`: it is an accuracy, so `plot --target` can mark the target on its axis.
- `target`: `compare` has a column with its value when a target accuracy is reached.
- `end`: `compare` has a column with its value in the last row.
- `show`: `show` has a column for it.
- `live`: the lines of `show --follow` contain it.
- `progress`: the lines that a run prints contain it.
"""


@dataclass(frozen=True)
class About:
    """What a reduction may need to know about a record in addition to the values.

    Attributes:
        rounds: number of rounds done at each row, `[row]`.
        phases: names of the phases of the dataset, if it has that axis.
    """

    rounds: np.ndarray
    phases: Sequence[str] = ()


Reduction = Callable[[np.ndarray, About], np.ndarray]
"""A function from the values of a dataset to one number per row or round."""


def mean_where_chosen(taus: np.ndarray, about: About) -> np.ndarray:
    """Mean over clients `[row]`; NaN at the start, and for methods that choose no numbers of steps."""
    means: np.ndarray = taus.mean(axis=1)
    return np.where(means > 0, means, np.nan)


def steps_so_far(taus: np.ndarray, about: About) -> np.ndarray:
    """Sum of the mean taus so far `[row]`.

    A round that was not evaluated has no recorded tau, so the sum is NaN from there on.
    """
    seamless = np.cumprod(np.diff(about.rounds, prepend=-1) == 1)
    return np.where(seamless, np.cumsum(taus.mean(axis=1)), np.nan)


def mean_over_sites(values: np.ndarray, about: About) -> np.ndarray:
    """Reduction `[row, site]` to the mean over sites that have a number; NaN if none has."""
    present = ~np.isnan(values)
    counts = present.sum(axis=1)
    means: np.ndarray = np.where(present, values, 0).sum(axis=1) / np.maximum(counts, 1)
    return np.where(counts > 0, means, np.nan)


def worst_site(values: np.ndarray, about: About) -> np.ndarray:
    """Reduction `[row, site]` to the least number; NaN if no site has one."""
    worst: np.ndarray = np.fmin.reduce(values, axis=1, initial=np.inf)
    return np.where(np.isnan(values).all(axis=1), np.nan, worst)


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    Attributes:
        name: the name that `plot` and studies use: lower-case letters, digits and dashes.
        label: what the metric is, for axes of figures, without the unit.
        axes: axes of its dataset.
        dataset: path in the record, for a metric that is measured; empty for `metrics/NAME`.
        source: name of the metric whose dataset this one is computed from, if it has no dataset itself.
        dtype: type of the dataset: `f8`, `i8` or `u1`. NaN in a count means that there is no such number.
        unit: unit, such as `B` or `s`; empty for a number without a unit.
        log: whether its axis is logarithmic in figures.
        optional: whether records of earlier versions may lack it.
        when: what a run must have so that the metric is measured. Records of other runs lack it.
        measure: only for a metric that a user adds: a function from an `evaluate.View` of one model to
            the model's number. With the axes `row,client` it is called for each client, with the axes
            `row` once for the average.
        reduce: a function from the dataset to one number per row or round. None for the mean over
            clients, or the sum over phases, depending on the axes.
        cumulative: whether the values per round are totals since the start. If not, they are summed.
        places: where it appears.
        head: head of its column in tables; empty for the name.
        column: its name in CSV files; empty for the name with `_` instead of `-`.
    """

    name: str
    label: str
    axes: Axes = "row"
    dataset: str = ""
    source: str = ""
    dtype: Literal["f8", "i8", "u1"] = "f8"
    unit: str = ""
    log: bool = False
    optional: bool = False
    when: frozenset[Condition] = frozenset()
    measure: Callable[[Any], float] | None = None
    reduce: Reduction | None = None
    cumulative: bool = False
    places: frozenset[Place] = frozenset({"y", "end", "show"})
    head: str = ""
    column: str = ""

    def __post_init__(self) -> None:
        """Fills in the attributes whose defaults follow from the name."""
        defaults = {
            "dataset": "" if self.source else f"metrics/{self.name}",
            "head": self.name,
            "column": self.name.replace("-", "_"),
        }
        for field, default in defaults.items():
            object.__setattr__(self, field, getattr(self, field) or default)
        # A record may come from a run without the user's code that measures it.
        object.__setattr__(
            self, "optional", self.optional or self.measure is not None or bool(self.when)
        )

    @property
    def by_round(self) -> bool:
        """Whether its dataset has one entry per round; otherwise it has one per evaluation."""
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
        """Whether it is measured on each client's own model: only if `evaluation.clients` is set."""
        return self.axes.startswith("row,client") and not self.counts

    @property
    def counts(self) -> bool:
        """Whether it is a count. For a count NaN only means that there is no such number."""
        return self.dtype == "i8"

    @property
    def title(self) -> str:
        """The label with the unit, as it stands on an axis; the unit of bytes stands at the ticks."""
        return f"{self.label} ({self.unit})" if self.unit not in ("", "B") else self.label

    def text(self, value: float) -> str:
        """A value as text for people."""
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
            values: values of its dataset, or of its source's dataset.
            about: facts about the record.
        """
        with np.errstate(invalid="ignore"):  # the sum of infinities of both signs is NaN
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


UNTIMED = ("evaluate", "record")
"""Phases that serve the experiment only; a real federation would not spend this time."""


def slowest_rank(seconds: np.ndarray, phases: Sequence[str]) -> np.ndarray:
    """Seconds `[round]` of each round's slowest rank, without the phases `UNTIMED`.

    Ranks that did not exist in a round are NaN in every phase, and are left out. Other NaNs (in some
    phases of a rank, or in all phases of all ranks) make the result NaN.

    Args:
        seconds: `[round, rank, phase]`.
        phases: names of the phases.
    """
    timed = [phase not in UNTIMED for phase in phases]
    by_rank = np.where(missing_ranks(seconds), -np.inf, seconds[..., timed].sum(axis=2))
    return by_rank.max(axis=1, initial=-np.inf) if by_rank.size else np.zeros(len(seconds))


def missing_ranks(by_rank: np.ndarray) -> np.ndarray:
    """Which ranks did not exist in a round, `[round, rank]` bool.

    In a round without any number no rank counts as missing.

    Args:
        by_rank: `[round, rank, ...]`, NaN for ranks that did not exist in a round.
    """
    empty = np.isnan(by_rank).all(axis=tuple(range(2, by_rank.ndim)))
    missing: np.ndarray = empty & ~empty.all(axis=1, keepdims=True)
    return missing
