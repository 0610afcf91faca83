"""Predicts the seconds of a round on more ranks, with more clients, over another network.

    T(R, M) = max over ranks r of (computation_r + exchange_r + record_r) + agreement + drawing
    computation_r = sum over own clients of the measured seconds per client and round, by phase
    exchange_r = exchanges * alpha + bytes_r / beta
    record_r = measured seconds that rank 0 writes files, and 0 on other ranks
    agreement = alpha up to 32 ranks, otherwise ceil(log2 R) * alpha

Measured seconds are means over the clients of the given records. The computation of a client is
proportional to the number of samples on which it computes, or to the square of this number if the client
collects the samples of its neighbours (because of the kernel). In every exchange a rank sends one message
to each neighbouring rank. These messages travel at the same time. So an exchange costs one latency
`alpha` (three for messages above 8 kB: a question, an answer, the data), a microsecond of the processor
per message, and the rank's bytes at `beta` bytes per second (Hockney, "The communication challenge for
MPP", Parallel Computing 20, 1994). Exchanges follow each other, and no computation overlaps with them. At
the end of a round the ranks agree on whether to stop; meanwhile the data for the record travel to rank 0.
While rank 0 writes the record and checkpoints, the other ranks begin the next round and wait there for
messages of rank 0. A run with one rank waits for nothing, and its measured seconds do not contain the
writing. Seconds that were measured as `other` are counted per client, like computation. Every rank draws
the graph of all clients (`drawing`). The time for that grows with the number of edges, and more ranks do
not reduce it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpi_ntkdfl.analysis.scaling import Point
from mpi_ntkdfl.config import sections, topology_settings
from mpi_ntkdfl.runtime import seeds
from mpi_ntkdfl.runtime.clock import COORDINATING
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.metric import UNTIMED
from mpi_ntkdfl.topology.graphs import Graph
from mpi_ntkdfl.topology.placement import Placement, neighbour_ranks, pairs
from mpi_ntkdfl.topology.schedule import Schedule
from mpi_ntkdfl.topology.shuffling import is_compiled

_DRAWN = 20_000
"""Number of clients up to which the graph is drawn; above it, neighbours of some ranks are sampled."""
_SAMPLED = 8
"""Number of ranks whose messages are counted."""
_DRAWING = {"regular": 3e-7, "erdos-renyi": 2.8e-6, "small-world": 1.8e-6}
"""Seconds per client and neighbour to draw a graph and to find a rank's part of it, by kind: the total of
`benchmarks/graphs.py` for 100,000 clients. Other kinds count as `regular`."""
_BY_ARRAYS = 2
"""How many times as long a regular graph takes where the shuffle is not compiled; the same benchmark."""
_MESSAGE = 1e-6
"""Seconds of the processor per message, in addition to the latency, which all messages share."""
_EAGER = 8192
"""Bytes up to which a message is sent at once; for a longer message the receiver is asked first."""
_AT_ONCE = 32
"""Ranks up to which every rank sends its part of an agreement to all others, as `comm/mpi.py` does."""
_ONCE_A_RANK = ("weights", "averages")
"""Phases whose messages go to a rank once, even if several of its clients need them."""


@dataclass(frozen=True)
class Network:
    """Latency `alpha` of a message in seconds, and bandwidth `beta` of a rank in bytes per second."""

    alpha: float
    beta: float


NETWORKS = {
    # Measured by benchmarks/exchange.py, MPICH 5.0, two processes on the development machine.
    "shared-memory": Network(3e-6, 1.7e9),
    # Nominal: line rates of the vendors' data sheets, latencies of MPI over them as commonly published.
    "10gbe": Network(3e-5, 1.25e9),
    "hdr100": Network(1.5e-6, 12.5e9),
    "hdr200": Network(1.5e-6, 25e9),
    "ndr": Network(1.2e-6, 50e9),
}


def network(text: str) -> Network:
    """A named network, or `alpha,beta`.

    Raises:
        InputError: if it is neither.
    """
    if text in NETWORKS:
        return NETWORKS[text]
    try:
        alpha, beta = map(float, text.split(","))
    except ValueError:
        alpha = beta = 0.0
    if not (0 <= alpha < 1e3 and 0 < beta < 1e18):
        raise InputError(
            f"--network is one of {', '.join(NETWORKS)}, or ALPHA,BETA in seconds and bytes per second "
            f"such as 1.5e-6,12.5e9; got {text}"
        )
    return Network(alpha, beta)


@dataclass(frozen=True)
class Model:
    """The numbers of records from which rounds are predicted.

    Attributes:
        config: the configuration of the runs.
        names: names of the records.
        client_seconds: seconds of computation and of `other` per client and round, by phase.
        record_seconds: seconds per round for which rank 0 writes files.
        dynamic: whether graphs are drawn anew in every round.
        sizes: number of samples of each client of the largest run, `[client]`.
        edge_bytes: protocol bytes per round for each directed edge, by phase.
    """

    config: dict[str, object]
    names: tuple[str, ...]
    client_seconds: dict[str, float]
    record_seconds: float
    dynamic: bool
    sizes: np.ndarray
    edge_bytes: dict[str, float]

    @property
    def collects(self) -> bool:
        """Whether clients compute on the samples of their neighbours."""
        return self.client_seconds.get("kernel", 0.0) > 0


@dataclass(frozen=True)
class Prediction:
    """A round on the slowest of the ranks looked at.

    Attributes:
        ranks, clients: R and M.
        seconds: seconds by phase.
        sent: bytes that a rank passes to MPI, mean over some ranks.
        neighbours: number of other ranks with which a rank exchanges messages, mean over these ranks.
        imbalance: largest over mean computation of all ranks.
    """

    ranks: int
    clients: int
    seconds: dict[str, float]
    sent: float
    neighbours: float
    imbalance: float

    @property
    def wall(self) -> float:
        """Seconds per round."""
        return sum(self.seconds.values())


def model(points: Sequence[Point]) -> Model:
    """Computes from runs of one configuration the means that a prediction needs.

    Raises:
        InputError: if the method has a server, because its messages are not between neighbours, or if
            the runs have different methods, models or data.
    """
    first = points[0]
    for section in ("algorithm", "model", "dataset", "topology"):
        if any(point.config[section] != first.config[section] for point in points):
            raise InputError(f"a model needs runs of one configuration; {section} differs")
    if first.central:
        algorithm = first.config["algorithm"]
        assert isinstance(algorithm, dict)
        raise InputError(
            f"{algorithm['name']} has a server; the model knows messages of neighbours"
        )
    waiting = set(COORDINATING) - {"other"}
    used = [phase for phase in first.phases if phase not in (*UNTIMED, *waiting)]
    client = {
        phase: float(
            np.mean([point.phase(phase) * point.ranks / point.clients for point in points])
        )
        for phase in used
    }
    topology = first.config["topology"]
    assert isinstance(topology, dict)
    largest = max(points, key=lambda point: point.clients)
    return Model(
        config=first.config,
        names=tuple(point.name for point in points),
        client_seconds={phase: seconds for phase, seconds in client.items() if seconds},
        record_seconds=float(
            np.mean([point.seconds[0, point.phases.index("record")] for point in points])
        ),
        dynamic=bool(topology["dynamic"]),
        sizes=largest.sizes,
        edge_bytes={phase: count for phase, count in largest.edge_bytes.items() if count},
    )


def predict(basis: Model, ranks: int, clients: int, net: Network) -> Prediction:
    """Predicts a round of `clients` clients on `ranks` ranks over the network `net`.

    Raises:
        InputError: if there are more ranks than clients, or no such graph.
    """
    Placement(clients, ranks)
    seed = int(str(basis.config["seed"]))
    sizes = basis.sizes
    if len(sizes) != clients:  # clients like those that were measured
        sizes = seeds.generator(seed, "scaling").choice(sizes, clients)
    topology = topology_settings(basis.config["topology"])
    degree = _degree(topology, clients)
    worked = sizes + degree * sizes.mean() if basis.collects else sizes
    shares = worked.astype(np.float64) ** (2 if basis.collects else 1)
    shares = shares / shares.mean()
    placement = Placement.balanced(np.rint(1e6 * shares).astype(np.int64), ranks)
    loads = np.add.reduceat(shares, placement.offsets[:-1])
    graph = Schedule(topology, clients, seed).graph(0) if clients <= _DRAWN else None
    slowest, sent, partners, most = {}, [], [], -1.0
    # The rank with most to compute, and others at equal distances.
    looked_at = {int(np.argmax(loads)), *np.linspace(0, ranks - 1, _SAMPLED).astype(int).tolist()}
    for rank in sorted(looked_at):
        exchanges, moved, neighbours = _messages(basis, placement, rank, graph, degree, seed)
        seconds = {phase: each * loads[rank] for phase, each in basis.client_seconds.items()}
        seconds["exchange"] = (
            exchanges
            * (_latencies(moved, exchanges * neighbours) * net.alpha + neighbours * _MESSAGE)
            + moved / net.beta
        )
        seconds["agree"] = _steps(ranks) * net.alpha
        seconds["record"] = basis.record_seconds if rank == 0 < ranks - 1 else 0.0
        seconds["graph"] = _drawing(topology.kind, clients * degree) if basis.dynamic else 0.0
        sent.append(moved)
        partners.append(neighbours)
        if sum(seconds.values()) > most:
            slowest, most = {k: float(v) for k, v in seconds.items()}, sum(seconds.values())
    imbalance = float(loads.max() / loads.mean())
    return Prediction(
        ranks, clients, slowest, float(np.mean(sent)), float(np.mean(partners)), imbalance
    )


def _drawing(kind: str, ends: float) -> float:
    """Seconds of a rank to draw a graph of that kind whose edges have so many ends."""
    slower = 1 if kind != "regular" or is_compiled() else _BY_ARRAYS
    return slower * _DRAWING.get(kind, _DRAWING["regular"]) * ends


def _latencies(moved: float, messages: int) -> int:
    """Number of latencies of an exchange that sends `moved` bytes in `messages` messages."""
    return 3 if moved > _EAGER * messages else 1


def _steps(ranks: int) -> int:
    """Number of messages, one after another, until every rank has the data of all ranks."""
    return min(ranks - 1, 1) if ranks <= _AT_ONCE else (ranks - 1).bit_length()


def _degree(topology: sections.Topology, clients: int) -> float:
    """Mean degree."""
    match topology:
        case sections.RegularTopology() | sections.SmallWorldTopology():
            return float(topology.degree)
        case sections.ErdosRenyiTopology():
            return topology.p * (clients - 1)
        case _:
            if clients > _DRAWN:
                raise InputError(
                    f"beyond {_DRAWN} clients the model knows regular, small-world and erdos-renyi "
                    f"graphs, got {topology.kind}"
                )
            return float(Schedule(topology, clients, 0).graph(0).degrees.mean())


def _messages(
    basis: Model, placement: Placement, rank: int, graph: Graph | None, degree: float, seed: int
) -> tuple[int, float, int]:
    """Exchanges of a round, bytes that a rank sends in them, and its neighbouring ranks."""
    own = placement.owned(rank)
    if graph is None:
        # Uniform neighbours: right for regular and Erdos-Renyi graphs, too many for small worlds.
        drawn = seeds.generator(seed, "scaling", rank)
        edges = drawn.poisson(len(own) * (degree - int(degree))) + len(own) * int(degree)
        clients = np.resize(np.array(own), edges)
        targets = placement.owner(drawn.integers(placement.clients, size=edges))
        away = targets != rank
        clients, targets = clients[away], targets[away]
        ranks = np.unique(targets)
    else:
        ranks = neighbour_ranks(graph, placement, rank)
        crossing = [pairs(graph, placement, rank, int(to))[:, 1] for to in ranks]
        clients = np.concatenate([*crossing, np.zeros(0, np.int64)])
        targets = np.repeat(ranks, [len(each) for each in crossing])
    ghosts = len(np.unique(clients * placement.ranks + targets))
    moved, exchanges = 0.0, 0
    for phase, count in basis.edge_bytes.items():
        once = phase in _ONCE_A_RANK
        moved += count * (ghosts if once else len(clients))
        exchanges += once
    exchanges += any(phase not in _ONCE_A_RANK for phase in basis.edge_bytes)
    return exchanges if len(ranks) else 0, moved, len(ranks)
