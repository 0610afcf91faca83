"""What a dynamic graph costs a rank in each round: the draw, the rank's part of it, and simulated time.

    python benchmarks/graphs.py --clients 100000 --ranks 1024

Prints seconds of the processor, medians over rounds. Every rank draws the whole graph, since the draws of
a round depend on each other, and then finds its neighbours, what it sends and what it receives. The row
`simulated` is the clock of an environment with absent clients, for NTK-DFL with the paper's network.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from mpi_ntkdfl.algorithms.ntk_dfl import NtkDfl, NtkDflSettings
from mpi_ntkdfl.config import topology_settings
from mpi_ntkdfl.config.environment import Bernoulli, EnvironmentSettings, LinkSettings
from mpi_ntkdfl.environment.conditions import Conditions
from mpi_ntkdfl.federation.crossing import Crossing
from mpi_ntkdfl.federation.presence import Presence
from mpi_ntkdfl.model.mlp import MLP
from mpi_ntkdfl.planning.legs import RoundModel
from mpi_ntkdfl.planning.timekeeper import Timekeeper
from mpi_ntkdfl.topology.graphs import Graph
from mpi_ntkdfl.topology.mixing import weights
from mpi_ntkdfl.topology.placement import Placement, neighbour_ranks
from mpi_ntkdfl.topology.schedule import Schedule

T = TypeVar("T")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=100_000)
    parser.add_argument("--ranks", type=int, default=1_024)
    parser.add_argument("--degree", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    words = parser.parse_args()
    settings = topology_settings({"kind": "regular", "degree": words.degree, "dynamic": True})
    schedule = Schedule(settings, words.clients, 0)
    placement, rank = Placement(words.clients, words.ranks), words.ranks // 2
    schedule.graph(0)  # the first graph is also looked at for components
    clock = _clock(words.clients)
    rows = [
        _one_round(schedule, placement, rank, number, clock)
        for number in range(1, words.rounds + 1)
    ]
    for step in rows[0]:
        print(f"{step:12}{statistics.median(row[step] for row in rows):8.4f} s")
    print(f"{'total':12}{statistics.median(sum(row.values()) for row in rows):8.4f} s")


def _clock(clients: int) -> Timekeeper:
    """The clock of a federation in which every client is present in 0.9 of the rounds."""
    environment = EnvironmentSettings(
        links=LinkSettings(spread=0.5), availability=Bernoulli(kind="bernoulli")
    )
    conditions = Conditions.of(environment, clients, 0)
    sizes = np.full(clients, 200)
    model = RoundModel(
        NtkDfl,
        NtkDflSettings(),
        MLP((784, 100, 10)),
        torch.float32,
        torch.uint8,
        sizes,
        conditions.speeds,
    )
    return Timekeeper(conditions, model, 0, Presence())


def _one_round(
    schedule: Schedule, placement: Placement, rank: int, number: int, clock: Timekeeper
) -> dict[str, float]:
    seconds: dict[str, float] = {}

    def timed(step: str, task: Callable[[], T]) -> T:
        start = time.process_time()
        result = task()
        seconds[step] = time.process_time() - start
        return result

    graph: Graph = timed("draw", lambda: schedule.graph(number))
    timed("members", lambda: graph.members)
    timed("weights", lambda: weights("plain", graph))
    neighbours = timed("neighbours", lambda: neighbour_ranks(graph, placement, rank).tolist())
    crossing = Crossing(graph, placement, rank, neighbours)
    timed("crossing", lambda: (crossing.leaving, crossing.coming))
    timed("simulated", lambda: clock.begin(number, graph))
    return seconds


if __name__ == "__main__":
    main()
