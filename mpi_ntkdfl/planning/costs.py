"""What a round costs: seconds of each client's work on a machine, and seconds of a whole round on ranks.

Methods count their own work (`Method.work`). This module adds the work that all methods share, which is
averaging and evaluation, and the work of the ranks. Clients are distributed over ranks by these costs,
and `check` shows them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from mpi_ntkdfl.algorithms.work import Load, Work
from mpi_ntkdfl.federation.waves import neighbourhood_sums
from mpi_ntkdfl.planning.first_round import FirstRound
from mpi_ntkdfl.topology.placement import Placement


@dataclass(frozen=True)
class Machine:
    """The speed of one thread of a machine.

    Attributes:
        peak: operations per second of a large matrix product.
        bandwidth: bytes per second, read or written, of passes over arrays larger than the caches.
        call: seconds of an operation on a small tensor.
    """

    peak: float
    bandwidth: float
    call: float

    @property
    def words(self) -> str:
        """The speed for people."""
        return f"{self.peak / 1e9:.0f} Gflop/s, {self.bandwidth / 1e9:.0f} GB/s per thread"


NOMINAL = Machine(peak=60e9, bandwidth=12e9, call=4e-6)
"""A core of a server of about 2020. Placement uses these numbers, so that it is the same everywhere."""

START_UP = 2.5
"""Core seconds per run and rank until the first round starts: libraries and data (measured on CPU)."""

LIBRARIES = 170_000_000
"""Bytes of Python's files and of shared libraries that a rank reads at its start (measured, CPU). All
ranks of a host read the same files, so that all but the first find them in the host's cache."""

# The matrix products of a phase are smaller or flatter than the measured one. Each number is their speed
# as a fraction of the measured one.
_EFFICIENCY = {
    "train": 0.5,
    "jacobian": 0.5,
    "kernel": 0.6,
    "evolve": 0.35,
    "update": 0.6,
    "select": 0.6,
    "evaluate": 0.7,
}
_COMPILED = {"evolve": (1.0, 1.0, 4.0), "train": (0.8, 0.0, 0.2)}
"""For phases that are done in C: speed of products as a fraction of the measured one, and the seconds of
the counted bytes and calls relative to those of tensors. Fitted on processors of two makers;
docs/scaling.md shows how well."""
_RECORDING, _CHECKPOINT_RATE = 0.01, 400e6
"""Seconds to append a row to the record; bytes per second at which a checkpoint is hashed and written."""
_OTHER_CALLS = 200
"""Tensor operations per round and client that no phase counts."""


def _load(first: FirstRound) -> Load:
    """The clients of round 0. If graphs are dynamic, every client is given average neighbours."""
    own = first.sizes.astype(np.float64)
    degrees = np.asarray(first.graph.degrees, dtype=np.float64)
    if first.config.topology.dynamic:
        degrees = np.full(len(own), degrees.mean())
        gathered = own + degrees * own.mean()
    else:
        gathered = own + neighbourhood_sums(first.graph, first.sizes)
    return Load(first.network, first.dtype.itemsize, own, gathered, degrees)


def round_work(first: FirstRound) -> dict[str, Work]:
    """The work of each client in a round, by phase, without the work of a server."""
    config, network, load = first.config, first.network, _load(first)
    work = dict(first.method.work(config.algorithm, load))
    if first.needs.vectors or first.needs.messages:
        averaged = (load.degrees + 1) * network.layout.size * (8 + 8 + load.itemsize)
        before = work.get("update", Work(load.nothing, load.nothing, load.nothing))
        work["update"] = Work(
            before.operations, before.bytes + averaged, before.calls + 4 * (load.degrees + 1)
        )
    weights = network.work.products
    settings = config.evaluation
    share = 1 / settings.every
    tested = 0.0  # of the clients' own models, per evaluation
    if settings.clients:
        samples = min(first.test_samples, settings.sample or first.test_samples)
        tested = samples * settings.every / max(settings.clients_every, settings.every)
    work["evaluate"] = Work(
        share * (2 * weights * tested + 6 * weights * load.own),
        share * (load.itemsize * 6 * tested * network.work.widest + 120 * network.layout.size)
        + load.nothing,
        share * 500 + load.nothing,
    )
    work["other"] = Work(load.nothing, load.nothing, load.nothing + _OTHER_CALLS)
    return work


def _server_work(first: FirstRound) -> dict[str, Work]:
    """The work of a server in a round, for an average choice of participants."""
    gathered, nothing = np.array([first.sizes.mean() * first.needs.participants]), np.zeros(1)
    load = Load(first.network, first.dtype.itemsize, gathered, gathered, nothing)
    return first.method.server_work(first.config.algorithm, load)


def client_seconds(
    work: dict[str, Work], machine: Machine, compiled: Container[str] = ()
) -> dict[str, np.ndarray]:
    """Seconds of each client `[client]` by phase, on one thread of `machine`.

    Args:
        work: of each client, by phase.
        machine: the speed of the thread.
        compiled: the phases that are done in C.
    """
    seconds = {}
    for phase, each in work.items():
        speed, passes, calls = _EFFICIENCY.get(phase, 1.0), 1.0, 1.0
        if phase in compiled:
            speed, passes, calls = _COMPILED.get(phase, (speed, passes, calls))
        products = each.operations / (machine.peak * speed)
        seconds[phase] = (
            products + passes * each.bytes / machine.bandwidth + calls * each.calls * machine.call
        )
    return seconds


def placement_costs(work: dict[str, Work]) -> np.ndarray:
    """Costs by which clients are distributed over ranks, `[client]` int64: microseconds on `NOMINAL`."""
    total = sum(client_seconds(work, NOMINAL).values(), np.zeros(1))
    costs: np.ndarray = np.rint(1e6 * total).astype(np.int64)
    return costs


def balanced(first: FirstRound) -> FirstRound:
    """The same round with clients distributed so that all ranks have about the same work."""
    costs = placement_costs(round_work(first))
    return replace(first, placement=Placement.balanced(costs, first.placement.ranks))


def round_seconds(
    first: FirstRound, moved: int, machine: Machine, cores: int, compiled: Container[str] = ()
) -> dict[str, float]:
    """Seconds of a round by phase, on the rank with the most work.

    Args:
        first: round 0.
        moved: number of bytes that all ranks together pass to MPI.
        machine: the speed of a thread.
        cores: number of cores of a host. All ranks are assumed to be on one host. If they need more
            cores than it has, all of them take longer in proportion.
        compiled: the phases that are done in C.
    """
    config, placement = first.config, first.placement
    by_client = client_seconds(round_work(first), machine, compiled)
    starts = placement.offsets[:-1]
    by_rank = {phase: np.add.reduceat(each, starts) for phase, each in by_client.items()}
    busiest = int(np.argmax(sum(by_rank.values(), np.zeros(placement.ranks))))
    seconds = {phase: float(each[busiest]) for phase, each in by_rank.items()}
    for phase, of_server in client_seconds(_server_work(first), machine, compiled).items():
        seconds[phase] = seconds.get(phase, 0.0) + float(of_server[0])
    if moved:
        # Messages are packed, copied out and in, and read.
        seconds["exchange"] = 8 * moved / placement.ranks / machine.bandwidth
    written = checkpoint_bytes(first) / max(1, len(checkpoint_parts(first)))
    seconds["record"] = _RECORDING + written / (_CHECKPOINT_RATE * config.output.checkpoint_every)
    slower = max(1.0, placement.ranks * config.compute.threads / cores)
    return {phase: slower * each for phase, each in seconds.items()}


MOST_TESTING = 0.2
"""The share of a round from which on `check` recommends to test less often."""


def rarer_tests(
    first: FirstRound, moved: int, machine: Machine, cores: int, compiled: Container[str] = ()
) -> tuple[str, float]:
    """The setting that brings the evaluation's share of a round to `MOST_TESTING`, if it takes more.

    Clients' own models are tested less often, or the average as well if that is not enough; the rarest
    test within the run's rounds is named if nothing is enough.

    The arguments are those of `round_seconds`.

    Returns:
        The setting as `evaluation.KEY=VALUE`, empty if it takes no more, and the share with it.
    """
    settings = first.config.evaluation
    said, steps = "", (2, 5, 10, 20, 50, 100)
    changes: list[dict[str, int]] = [{}]
    if settings.clients:
        now = max(settings.every, settings.clients_every)
        changes += [{"clients_every": now * step} for step in steps]
    for every in (settings.every * step for step in steps):
        if settings.clients_every == 1 or settings.clients_every % every == 0:
            changes.append({"every": every})
    share = 1.0
    for change in changes:
        if max(change.values(), default=1) > first.config.rounds:
            continue
        evaluation = settings.model_copy(update=change)
        config = first.config.model_copy(update={"evaluation": evaluation})
        seconds = round_seconds(replace(first, config=config), moved, machine, cores, compiled)
        found = seconds["evaluate"] / max(sum(seconds.values()), 1e-9)
        if not change or found < share:
            key, value = next(iter(change.items()), ("", 0))
            said, share = f"evaluation.{key}={value}" if change else "", found
        if share <= MOST_TESTING:
            break
    return said, share


def disk_bytes(first: FirstRound) -> int:
    """Bytes of a run's record and of its two checkpoints, about."""
    config = first.config
    return 2 * checkpoint_bytes(first) + config.rounds * config.clients * 80 + 60_000


def checkpoint_bytes(first: FirstRound) -> int:
    """Bytes of a checkpoint, without what a method carries from round to round beside the weights."""
    return first.placement.clients * first.network.layout.size * first.dtype.itemsize


def checkpoint_parts(first: FirstRound) -> list[range]:
    """The groups of ranks that write a part of a checkpoint each; none for a checkpoint of one file."""
    smallest = first.config.output.part_bytes
    return writing_groups(first.placement.ranks, checkpoint_bytes(first), smallest)


def writing_groups(ranks: int, nbytes: int, smallest: int | None) -> list[range]:
    """The groups of ranks that write one part each; none if the checkpoint is one file.

    Args:
        ranks: number of ranks.
        nbytes: bytes of the arrays of all clients.
        smallest: bytes that a part has at least, on average; None for one file.
    """
    count = 1 if smallest is None else min(ranks, nbytes // smallest)
    if count < 2:
        return []
    cuts = [ranks * number // count for number in range(count + 1)]
    return [range(*cut) for cut in pairwise(cuts)]


# ------------------------------------------------------------------------------------- this machine


def measure(dtype: torch.dtype) -> Machine:
    """Measures one thread of this machine in about half a second; the best of several tries counts.

    Times are CPU times, so other processes have an effect only if they use the cache and the memory.
    """
    size = 1024
    a, b = (torch.ones(size, size, dtype=dtype) for _ in range(2))
    source = torch.ones(2**26 // dtype.itemsize, dtype=dtype)
    target = torch.empty_like(source)
    small, times = torch.ones(10, 256, dtype=dtype), 200

    def calls() -> None:
        for _ in range(times):
            small.add(small, alpha=0.5)

    product = _best(lambda: torch.mm(a, b, out=target[: size * size].view(size, size)), 0.25)
    copied = _best(lambda: target.copy_(source), 0.2)
    return Machine(2 * size**3 / product, 2 * 2**26 / copied, _best(calls, 0.05) / times)


def _best(task: Callable[[], object], budget: float) -> float:
    """The shortest time of `task` in seconds, which runs once untimed and then for `budget` seconds."""
    task()
    shortest, end = float("inf"), time.process_time() + budget
    while time.process_time() < end:
        start = time.process_time()
        task()
        shortest = min(shortest, time.process_time() - start)
    return shortest
