"""The timeline of a run, `RUN.trace.json`, for Perfetto and chrome://tracing.

It says what every rank did at which time. The file has one event per line, in the array form of Chrome's
trace format (Google, "Trace Event Format"). In the terms of that format a host is a process and a rank is
a thread. Viewers accept an array without its closing bracket, so the file of a killed run can be opened.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mpi_ntkdfl.comm.world import World
from mpi_ntkdfl.runtime.clock import IN_FLIGHT, PHASES, SPANS, Clock
from mpi_ntkdfl.runtime.errors import SimulationError
from mpi_ntkdfl.storage.outputs import unwritable

_RUN = "mpi_ntkdfl_run"
"""Name of the event that holds the run's id; viewers ignore it."""


class Trace:
    """Writes the timeline on rank 0. All ranks must call the same methods."""

    def __init__(self, path: Path, world: World, clock: Clock, done: int, run: str = "") -> None:
        """Begins the file, or continues it.

        Args:
            path: path of the file.
            world: the ranks.
            clock: this rank's clock, which records spans from now on.
            done: number of rounds done before. Events of later rounds are removed from the file.
            run: id of the run, on rank 0.

        Raises:
            SimulationError: if the file cannot be written.
        """
        self._path, self._world, self._clock = path, world, clock
        self._flights = 0
        self._after = 0.0
        if world.rank == 0:
            kept = list(_of_rounds(path, done)) if done else []
            self._after = max((_end(event) for event in kept), default=0.0)
            named: dict[str, object] = {"ph": "M", "pid": 0, "tid": 0, "name": _RUN}
            self._write("w", [{**named, "args": {"run": run}}, *kept, *self._names()])
        clock.keep_spans()
        # Clocks of hosts differ. After this message all ranks start from zero together, up to the
        # network's latency.
        world.total(np.zeros(1, np.int64))
        self._origin = time.perf_counter()

    def add(self, done: int) -> None:
        """Adds all events since the last call as those of a round; `done` counts the rounds up to it."""
        events: list[dict[str, object]] = []
        spans = self._clock.lap_spans() - [0, self._origin, self._origin]
        for rank, of_rank in enumerate(self._world.collect(spans)):
            for kind, begin, end in of_rank.tolist():
                events += self._events(rank, int(kind), begin, end, done)
        if self._world.rank == 0:
            self._write("a", events)

    def _events(
        self, rank: int, kind: int, begin: float, end: float, done: int
    ) -> Iterator[dict[str, object]]:
        hosts = self._world.hosts
        common = {
            "name": SPANS[kind],
            "pid": hosts.index(hosts[rank]),
            "tid": rank,
            "args": {"round": done},
        }
        start, stop = (round(1e6 * at + self._after, 1) for at in (begin, end))
        if SPANS[kind] == IN_FLIGHT:  # it overlaps other events, so viewers need a row of its own
            self._flights += 1
            name = {"cat": "exchange", "id": self._flights}
            yield {**common, **name, "ph": "b", "ts": start}
            yield {**common, **name, "ph": "e", "ts": stop}
        else:
            category = "phase" if SPANS[kind] in PHASES else "wait"
            yield {**common, "cat": category, "ph": "X", "ts": start, "dur": round(stop - start, 1)}

    def _names(self) -> Iterator[dict[str, object]]:
        hosts = self._world.hosts
        for rank, host in enumerate(hosts):
            where: dict[str, object] = {"ph": "M", "pid": hosts.index(host), "tid": rank}
            yield {**where, "name": "process_name", "args": {"name": host}}
            yield {**where, "name": "thread_name", "args": {"name": f"rank {rank}"}}

    def _write(self, mode: str, events: list[dict[str, object]]) -> None:
        try:
            with self._path.open(mode, encoding="utf-8") as file:
                if mode == "w":
                    file.write("[\n")
                file.writelines(json.dumps(event) + ",\n" for event in events)
        except OSError as error:
            raise SimulationError(unwritable(self._path, error)) from error


def run_of(path: Path) -> str:
    """The id of the run to which a timeline belongs; empty if the file is missing or has no id."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            first = [file.readline() for _ in range(2)][1]
        event = json.loads(first.rstrip(",\n"))
        return str(event["args"]["run"]) if event["name"] == _RUN else ""
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _of_rounds(path: Path, done: int) -> Iterator[dict[str, object]]:
    """The events of the first `done` rounds in a file, if it exists, without a line that a kill cut."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line.rstrip(","))
        except ValueError:
            continue
        if event["ph"] != "M" and event["args"]["round"] <= done:
            yield event


def _end(event: dict[str, object]) -> float:
    return float(str(event["ts"])) + float(str(event.get("dur", 0.0)))
