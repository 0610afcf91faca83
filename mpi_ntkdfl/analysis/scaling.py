"""Strong and weak scaling from records of many numbers of ranks: speed-up, efficiencies, Amdahl's law.

A round's wall clock is that of its slowest rank, without the phases `evaluate` and `record`, which
are not part of the method. Efficiencies are those of the POP Centre of Excellence (pop-coe.eu,
"POP Standard Metrics for Parallel Performance Analysis"). Useful computation is the time in the phases
in which a method computes:

    load balance = mean over ranks of computation / largest of any rank,
    communication efficiency = largest computation of any rank / wall clock,
    parallel efficiency = load balance * communication efficiency.

Amdahl's law (AFIPS Spring Joint Computer Conference, 1967) is fitted as T(R) = T(1) (s + (1 - s) / R).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from mpi_ntkdfl.analysis import tables
from mpi_ntkdfl.analysis.starts import over_time
from mpi_ntkdfl.analysis.tables import Run
from mpi_ntkdfl.analysis.traces import apart, flattened
from mpi_ntkdfl.metrics import BYTES, SECONDS
from mpi_ntkdfl.runtime.clock import COORDINATING
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.metric import UNTIMED

Kind = Literal["strong", "weak"]


@dataclass(frozen=True)
class Point:
    """A run on one number of ranks. Seconds are medians over rounds, without the first of 3 or more.

    Attributes:
        name: name of the file.
        config: the configuration.
        contents: what identifies data, graph file and starting weights, by name.
        central: whether the method has a server; False if the record does not say it.
        ranks: R.
        threads: number of threads of each rank.
        cores: number of cores of all its hosts together; 0 if the record does not say it.
        rounds: number of rounds over which the medians are taken.
        phases: names of the phases.
        seconds: seconds of each phase, `[rank, phase]`.
        wall: seconds per round, without evaluation and recording.
        sizes: samples of each client, `[client]`.
        edge_bytes: protocol bytes per round for each directed edge of the graph, by phase.
    """

    name: str
    config: dict[str, object]
    contents: dict[str, str]
    central: bool
    ranks: int
    threads: int
    cores: int
    rounds: int
    phases: tuple[str, ...]
    seconds: np.ndarray
    wall: float
    sizes: np.ndarray
    edge_bytes: dict[str, float]

    @property
    def clients(self) -> int:
        """M."""
        return len(self.sizes)

    @property
    def crowded(self) -> bool:
        """Whether there are more threads than cores, as far as the record says."""
        return 0 < self.cores < self.ranks * self.threads

    @cached_property
    def computation(self) -> np.ndarray:
        """Seconds of useful computation, `[rank]`."""
        useful = [phase not in (*UNTIMED, *COORDINATING) for phase in self.phases]
        useful_seconds: np.ndarray = self.seconds[:, useful].sum(axis=1)
        return useful_seconds

    @property
    def load_balance(self) -> float:
        """The mean computation of the ranks, divided by the largest."""
        with np.errstate(invalid="ignore"):  # of infinities
            return float(self.computation.mean() / self.computation.max())

    @property
    def communication(self) -> float:
        """The largest computation of a rank, divided by the wall-clock time; at most 1."""
        with np.errstate(invalid="ignore"):  # of infinities
            return float(np.minimum(self.computation.max() / self.wall, 1.0))

    @property
    def parallel(self) -> float:
        """Parallel efficiency: load balance times communication efficiency."""
        return self.load_balance * self.communication

    def phase(self, name: str) -> float:
        """Seconds of a phase, mean over ranks."""
        return float(self.seconds[:, self.phases.index(name)].mean())


@dataclass(frozen=True)
class Amdahl:
    """`T(R) = single * (serial + (1 - serial) / R)`.

    Attributes:
        single: T(1) in seconds.
        serial: the serial fraction s, 0 to 1.
        ranks: numbers of ranks to which the law was fitted.
        residual: root mean square of the relative deviations.
    """

    single: float
    serial: float
    ranks: tuple[int, ...]
    residual: float

    def seconds(self, ranks: float) -> float:
        """T(R)."""
        return self.single * (self.serial + (1 - self.serial) / ranks)


@dataclass(frozen=True)
class Study:
    """The runs of one configuration, in ascending order of ranks.

    Attributes:
        kind: strong: the same clients on more ranks; weak: as many clients per rank.
        points: measurements with at least two numbers of ranks.
    """

    kind: Kind
    points: tuple[Point, ...]

    @property
    def label(self) -> str:
        """`strong: ntk-dfl, digits, 32 clients`."""
        first = self.points[0]
        names = [_name(first.config, section) for section in ("algorithm", "dataset")]
        each = "" if self.kind == "strong" else " per rank"
        count = first.clients if self.kind == "strong" else first.clients / first.ranks
        return f"{self.kind}: {', '.join(names)}, {count:g} clients{each}"

    def speed_up(self, point: Point) -> float:
        """Work per second relative to the fewest ranks: T(base)/T(R), times R/base in a weak study."""
        base = self.points[0]
        grown = point.clients / base.clients
        return base.wall / point.wall * grown

    def efficiency(self, point: Point) -> float:
        """The speed-up, divided by the factor by which the number of ranks grows."""
        return self.speed_up(point) * self.points[0].ranks / point.ranks

    def amdahl(self) -> Amdahl | None:
        """The fit to a strong study, without points of more threads than cores if enough others remain.

        None for a weak study.
        """
        if self.kind == "weak":
            return None
        roomy = [point for point in self.points if not point.crowded]
        used = roomy if len({point.ranks for point in roomy}) > 1 else list(self.points)
        return amdahl([point.ranks for point in used], [point.wall for point in used])


def amdahl(ranks: Sequence[int], seconds: Sequence[float]) -> Amdahl:
    """Least squares of T(R) = a + b / R with a, b >= 0, relative to T; s = a / (a + b).

    If some seconds are not finite, all results are NaN.
    """
    measured = np.array(seconds)
    if not np.isfinite(measured).all():
        return Amdahl(np.nan, np.nan, tuple(ranks), np.nan)
    rows = np.stack([np.ones(len(measured)), 1 / np.array(ranks)], axis=1) / measured[:, None]
    both = np.linalg.lstsq(rows, np.ones(len(measured)), rcond=None)[0]
    if both.min() < 0:  # then the best is at an end: all serial or all parallel
        ends = []
        for column in (0, 1):
            each = np.zeros(2)
            each[column] = rows[:, column].sum() / (rows[:, column] ** 2).sum()
            ends.append(each)
        both = min(ends, key=lambda each: float(((rows @ each - 1) ** 2).sum()))
    deviation = float(np.sqrt(((rows @ both - 1) ** 2).mean()))
    whole = float(both.sum())
    return Amdahl(whole, float(both[0]) / whole, tuple(ranks), deviation)


# ------------------------------------------------------------------------------------------- reading


def read(path: Path) -> Point:
    """Reads a record.

    Raises:
        InputError: if it is missing, damaged or no record, has no finished round, or was resumed on
            another machine, such as with another number of ranks.
    """
    run = tables.read(path)
    try:
        with h5py.File(path, "r", locking=False) as file:
            offsets, edges = file["partition/offsets"][:], file["topology/offsets"][:]
        return _point(run, str(path), np.diff(offsets), np.diff(edges))
    except InputError:
        raise
    except Exception as error:  # attributes of a damaged record can hold anything
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path} is damaged or no record of this program: {reason}") from error


def _point(run: Run, name: str, sizes: np.ndarray, edges: np.ndarray) -> Point:
    machines = [start.machine for start in run.starts]
    for what, values in over_time(machines).items():
        if any(machine[what] != machines[0][what] for machine in machines):
            raise InputError(
                f"{name} was resumed on another machine ({what} {values}); give runs whose starts were "
                "alike"
            )
    start = run.starts[0]
    skipped = 1 if run.done > 2 else 0
    seconds = run[SECONDS][skipped:]
    if not len(seconds):
        raise InputError(f"{name} has no finished round")
    config = run.config
    # Every rank took part in every round, so a NaN does not mean that a rank is missing.
    timed = [phase not in UNTIMED for phase in run.time_phases]
    walls = seconds[..., timed].sum(axis=2).max(axis=1)
    directed = 2 * edges[: run.done].sum()
    sent = run[BYTES].sum(axis=0) / max(directed, 1)
    return Point(
        name=name,
        config=config,
        contents=run.contents,
        central=run.attributes.get("method_central") == "1",
        ranks=start.ranks,
        threads=int(start.threads),
        cores=start.cores,
        rounds=len(seconds),
        phases=tuple(run.time_phases),
        seconds=np.median(seconds, axis=0),
        wall=float(np.median(walls)),
        sizes=sizes,
        edge_bytes=dict(zip(run.traffic_phases, sent.tolist(), strict=True)),
    )


def studies(points: Iterable[Point]) -> list[Study]:
    """All strong and weak studies that can be made of the runs.

    Runs of one family belong together (`same_family`; equal data, graph file and starting weights). Those
    with the same number of clients are a strong study; those with the same number per rank a weak one.

    Raises:
        InputError: if there is none.
    """
    points = sorted(points, key=lambda point: (point.ranks, point.name))
    families: dict[tuple[str, Kind, float], list[Point]] = {}
    for point in points:
        settings = flattened(point.config).items()
        kept = json.dumps(
            [{k: v for k, v in settings if not same_family(k)}, point.contents],
            sort_keys=True,
            default=str,
        )
        families.setdefault((kept, "strong", point.clients), []).append(point)
        families.setdefault((kept, "weak", point.clients / point.ranks), []).append(point)
    complete = [
        Study(kind, tuple(family))
        for (_, kind, _), family in families.items()
        if len({point.ranks for point in family}) > 1
    ]
    if not complete:
        raise InputError(
            "no two of these runs belong to one study: they need one configuration, different numbers "
            "of ranks, and the same clients (strong) or as many clients per rank (weak)"
        )
    return sorted(complete, key=lambda study: study.kind)


def same_family(setting: str) -> bool:
    """Whether runs that differ in a setting can belong to one scaling study."""
    return setting in ("clients", "rounds", "stop_at") or not apart(setting)


def warnings(points: Iterable[Point]) -> list[str]:
    """The reasons why the runs may not show how the method scales, one line each."""
    lines = []
    for point in points:
        if point.crowded:
            lines.append(
                f"{point.name}: {point.ranks * point.threads} threads shared {point.cores} cores, so "
                "ranks took turns; this is no scaling"
            )
        elif not point.cores:
            lines.append(f"{point.name} does not tell how many cores its hosts have")
    return lines


def _name(config: dict[str, object], section: str) -> str:
    settings = config[section]
    assert isinstance(settings, dict)
    return str(settings["name"])
