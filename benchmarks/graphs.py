"""What a dynamic graph costs a rank in each round: the draw, the rank's part of it, and simulated time.

    python benchmarks/graphs.py --clients 100000 --ranks 1024 --kind regular

Prints seconds of the processor, medians over rounds. The total per client and neighbour is what `scaling
predict` uses (`analysis/scaling_model.py`). Every rank draws the whole graph, since the draws of
a round depend on each other, and then finds its neighbours, what it sends and what it receives. The last
row, `simulated`, is not part of the total: it is the clock of an environment with absent clients, for
NTK-DFL with the paper's network.
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
    parser.add_argument("--kind", default="regular", help="or erdos-renyi, small-world")
    parser.add_argument("--degree", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    words = parser.parse_args()
    density = {"degree": words.degree}
    if words.kind == "erdos-renyi":
        density = {"p": words.degree / (words.clients - 1)}
    settings = topology_settings({"kind": words.kind, "dynamic": True, **density})
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
    total = statistics.median(sum(row.values()) - row["simulated"] for row in rows)
    ends = words.clients * words.degree
    print(f"{'total':12}{total:8.4f} s, {1e9 * total / ends:.0f} ns per client and neighbour")


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
