"""Predicts what a run will need, before it runs: bytes per round and memory per rank. MPI is not started.

The numbers come from the same message formats and waves that the exchange uses, so the ledger of the
real run must agree with them. A test compares both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from mpi_ntkdfl.comm.ledger import TRAFFIC_PHASES
from mpi_ntkdfl.comm.reduce import reduced_bytes
from mpi_ntkdfl.federation.waves import (
    DEFAULT_LIMIT,
    WorkingSet,
    can_keep,
    factored_waves,
    largest_neighbourhood,
    moved_to_ranks,
    neighbourhood_sums,
    slice_width,
    smallest_limit,
)
from mpi_ntkdfl.model.projection import MATRIX_ROOM
from mpi_ntkdfl.planning.first_round import FirstRound, coded_rows
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.units import readable
from mpi_ntkdfl.topology.schedule import participants

LIBRARIES, SCIKIT_LEARN = 280 * 10**6, 100 * 10**6
"""Bytes of a rank's interpreter and libraries before it holds any data, and bytes of scikit-learn, which
rank 0 loads if the data set comes from there. Both were measured on a CPU."""


@dataclass(frozen=True)
class Plan:
    """The first round of a run, in numbers.

    Attributes:
        params: P.
        largest: number of samples in the largest neighbourhood, or the largest number that a server
            gathers.
        traffic: protocol bytes and MPI bytes of the round, `[2, phase]`, without statistics. Where the
            length of a message depends on the data, as with some codecs, its largest length counts.
        later: the same of a later round.
        waves: number of exchanges of Jacobians or samples per round; 0 for methods that send none.
        slices: parameters per slice of dense Jacobians; 0 for factored ones.
        memory: bytes of the rank that holds the most, by purpose.
    """

    params: int
    largest: int
    traffic: np.ndarray
    later: np.ndarray
    waves: int
    slices: int
    memory: dict[str, int]


@dataclass(frozen=True)
class _Collecting:
    """How the blocks of a round are collected.

    Attributes:
        largest, waves, slices: as in `Plan`.
        smallest: smallest number of bytes of working memory with which it works.
        working: largest number of bytes that it uses; None if it uses all that is allowed.
    """

    largest: int
    waves: int
    slices: int
    smallest: int
    working: int | None = None


def make_plan(first: FirstRound) -> Plan:
    """Plans the first round.

    Raises:
        InputError: if `compute.memory_limit` is too small for one client's neighbourhood or for what a
            server gathers; if a server should ask more clients than exist; if clients start with
            different weights although the method has one model for all.
    """
    config, needs, limit = first.config, first.needs, first.config.compute.memory_bytes
    if needs.participants:
        if config.model.init != "shared":
            raise InputError(
                f"{config.algorithm.name} holds one model for all clients, so model.init must be "
                f"shared, got {config.model.init}"
            )
        traffic = later = _server_traffic(first)
        whole, way_out = "what the server gathers", "algorithm.clients_per_round"
    else:
        traffic, later = _traffic(first), _traffic(first, later=True)
        whole, way_out = "one client's neighbourhood", "the degree"
    collecting = _collecting(first)
    if limit is not None and limit < collecting.smallest:
        raise InputError(
            f"compute.memory_limit must hold at least {whole}, {readable(_enough(first))}; "
            f"got {readable(limit)}; raise it, or lower {way_out} or the samples per client"
        )
    allowed = max(limit or DEFAULT_LIMIT, collecting.smallest)
    working = allowed if collecting.working is None else min(allowed, collecting.working)
    return Plan(
        params=first.network.layout.size,
        largest=collecting.largest,
        traffic=traffic,
        later=later,
        waves=collecting.waves,
        slices=collecting.slices,
        memory=_memory(first, working),
    )


def _collecting(first: FirstRound) -> _Collecting:
    return _at_server(first) if first.needs.participants else _by_neighbours(first)


def _enough(first: FirstRound) -> int:
    """A limit on the working memory that is enough, and at most 1 % larger than necessary.

    Some networks use more memory if the limit is higher, so the limit is raised until it is enough.
    """
    limit, smallest = 0, _collecting(first).smallest
    while limit < smallest:
        limit = smallest + (smallest // 100 if limit else 0)
        network = first.network.within(limit // first.dtype.itemsize)
        smallest = _collecting(replace(first, network=network)).smallest
    return limit


def _working_set(first: FirstRound) -> WorkingSet:
    needs = first.needs
    return WorkingSet(first.network, needs.taus, first.dtype.itemsize, needs.stacked)


def _keeps_samples(first: FirstRound) -> bool:
    """Whether ranks keep the raw samples that they received; see `federation/raw_samples.py`."""
    if not first.needs.samples or first.config.topology.dynamic:
        return False
    nbytes = first.blocks[0].nbytes_each(first.sizes)
    at_once, limit = first.config.compute.batch or 1, first.config.compute.memory_bytes
    arguments = first.graph, first.placement, first.sizes, nbytes, _working_set(first), limit
    return can_keep(*arguments, at_once)


def _by_neighbours(first: FirstRound) -> _Collecting:
    """How clients collect blocks from their neighbours."""
    graph, sizes, placement, needs = first.graph, first.sizes, first.placement, first.needs
    work, limit = _working_set(first), first.config.compute.memory_bytes
    at_once = first.config.compute.batch or 1
    largest = largest_neighbourhood(graph, sizes)
    if needs.dense:
        turns = max(len(placement.owned(rank)) for rank in range(placement.ranks))
        width = slice_width(graph, sizes, work, limit)
        return _Collecting(largest, turns, width, smallest_limit(graph, sizes, None, work))
    if not first.blocks:
        least = work.one_client(int(sizes.max()))
        return _Collecting(largest, 0, 0, least, least)
    if _keeps_samples(first):
        message_bytes = first.blocks[0].nbytes_each(sizes)
        sent, received = moved_to_ranks(graph, placement, message_bytes)
        least = work.one_client(largest) * at_once
        # Received samples are kept from round to round, beside the messages of the first round.
        return _Collecting(largest, 1, 0, least, least + int((sent + received).max()))
    message_bytes = first.blocks[0].nbytes_each(first.rows)
    waves = factored_waves(graph, placement, sizes, message_bytes, work, limit, at_once)
    held = 4 * neighbourhood_sums(graph, message_bytes)
    crossing = np.asarray(placement.owner(graph.edges))
    share = float(np.mean(crossing[:, 0] != crossing[:, 1])) if len(crossing) else 0.0
    # Blocks that stay on their rank are computed when they are needed, for one client at a time.
    most = max(int(held[wave.start : wave.stop].sum()) for own in waves for wave in own)
    own = int((held // 4).max()) + int(message_bytes.max())
    others = (at_once - 1) * work.one_client(largest)
    working = work.one_client(largest) + others + own + int(share * most)
    smallest = smallest_limit(graph, sizes, message_bytes, work) + others
    return _Collecting(largest, len(waves[0]), 0, smallest, working)


def _at_server(first: FirstRound) -> _Collecting:
    """How a server collects blocks from its participants."""
    # The largest case: a round that draws the clients with the most samples.
    most = np.sort(first.sizes)[-first.needs.participants :]
    received = int(first.blocks[0].nbytes_each(coded_rows(first.config.algorithm, most)).sum())
    gathered = int(most.sum())
    return _Collecting(gathered, 1, 0, _working_set(first).one_client(gathered) + received)


def _booked() -> tuple[np.ndarray, Callable[[int, dict[str, int], int], None]]:
    """Empty traffic `[2, phase]`, and what books counts by phase of a kind so many times."""
    traffic = np.zeros((2, len(TRAFFIC_PHASES)), dtype=np.int64)

    def book(kind: int, counts: dict[str, int], times: int) -> None:
        for phase, count in counts.items():
            traffic[kind, TRAFFIC_PHASES.index(phase)] += count * times

    return traffic, book


def _traffic(first: FirstRound, later: bool = False) -> np.ndarray:
    """Protocol and MPI bytes of round 0, or of a `later` round, by phase, `[2, phase]`."""
    graph, rows, placement, needs = first.graph, first.rows, first.placement, first.needs
    params = first.network.layout.size
    both = np.concatenate([graph.edges, graph.edges[:, ::-1]])
    targets = np.asarray(placement.owner(both[:, 0]))
    crossing = targets != np.asarray(placement.owner(both[:, 1]))
    pairs = np.unique(both[crossing, 1] * placement.ranks + targets[crossing])
    ghosts, sources = len(pairs), np.bincount(both[crossing, 1], minlength=placement.clients)
    traffic, book = _booked()
    for form in (*(first.vector(phase, later) for phase in needs.vectors), *needs.messages):
        book(0, form.by_phase(1, travelling=False), len(both))
        book(1, form.by_phase(1, travelling=True), ghosts)
    if needs.server:
        for phase in ("weights", "averages"):
            form = first.vector(phase, later)
            book(0, form.by_phase(1, travelling=False), placement.clients)
        if placement.ranks > 1:
            book(1, {"weights": reduced_bytes(params, placement.ranks)}, placement.ranks)
    moved = rows
    if _keeps_samples(first):  # every rank receives them once, whole
        sources = np.bincount(pairs // placement.ranks, minlength=placement.clients)
        moved = first.sizes * (not later)
    held = later and needs.samples and not first.config.topology.dynamic and rows is first.sizes
    for form in first.blocks:
        book(0, form.by_phase(int(graph.degrees @ rows), travelling=False), int(not held))
        for samples, times in zip(moved.tolist(), sources.tolist(), strict=True):
            book(1, form.by_phase(samples, travelling=True), times)
    return traffic


def _server_traffic(first: FirstRound) -> np.ndarray:
    """Like `_traffic`, for methods whose participants send blocks to rank 0, which answers all."""
    config, sizes, placement, needs = first.config, first.rows, first.placement, first.needs
    asked = participants(config.clients, needs.participants, config.seed, round=0)
    traffic, book = _booked()
    for form in first.blocks:
        for client in asked.tolist():
            samples, away = int(sizes[client]), int(placement.owner(client) > 0)
            book(0, form.by_phase(samples, travelling=False), 1)
            book(1, form.by_phase(samples, travelling=True), away)
    params, form = first.network.layout.size, first.vector("weights")
    traffic[:, TRAFFIC_PHASES.index("weights")] = (
        form.by_phase(1, travelling=False)["weights"] * placement.clients,
        params * first.dtype.itemsize * (placement.ranks > 1),
    )
    return traffic


def _memory(first: FirstRound, working: int) -> dict[str, int]:
    """Bytes of the largest rank, by purpose."""
    network, sizes, placement = first.network, first.sizes, first.placement
    owned = [placement.owned(rank) for rank in range(placement.ranks)]
    features, item = math.prod(network.shape), first.dtype.itemsize
    kept = {}
    if first.needs.kept is not None:
        each = np.array([first.needs.kept(int(samples)) for samples in sizes])
        kept["method's own"] = max(int(each[own.start : own.stop].sum()) for own in owned)
    if coded := first.codec_bytes:
        kept["codecs"] = coded * max(map(len, owned))
    if first.needs.matrices and first.config.compute.memory_bytes is None:
        kept["projection matrices"] = min(first.needs.matrices, MATRIX_ROOM)
    bundled = first.config.dataset.name in ("digits", "breast-cancer")
    return {
        "libraries": LIBRARIES + SCIKIT_LEARN * bundled,
        "own samples": max(int(sizes[own.start : own.stop].sum()) for own in owned)
        * features
        * (item + (first.needs.samples and first.stored_bytes)),
        "test set": first.test_samples * features * item,
        # At most: weights, averages and new weights, and the neighbours' copies of weights and averages.
        "weights": 5 * max(len(own) for own in owned) * network.layout.size * item,
        **kept,
        "working set (at most)": working,
    }
