"""What a round costs each client: operations, bytes and calls by phase, and seconds on a machine.

Counts follow from the shapes of the computation; how often the evolution multiplies by its kernel was
fitted to runs on digits and Fashion-MNIST. Ranks share out clients by these costs, and `check` turns
them into seconds. A method without a case of its own counts as its averaging and evaluation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from mpi_ntkdfl.algorithms.base import Needs
from mpi_ntkdfl.algorithms.dfedsam import DfedsamSettings
from mpi_ntkdfl.algorithms.dispfl import DispflSettings
from mpi_ntkdfl.algorithms.steps import NtkSettings, StepSettings
from mpi_ntkdfl.algorithms.train_then_average import TrainingSettings
from mpi_ntkdfl.config import Config
from mpi_ntkdfl.federation.waves import neighbourhood_sums
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.topology.graphs import Graph
from mpi_ntkdfl.topology.placement import Placement


@dataclass(frozen=True)
class Machine:
    """What one thread of a machine does.

    Attributes:
        peak: operations a second of a large matrix product.
        bandwidth: bytes a second, read or written, of array passes that leave the caches.
        call: seconds of an operation on a small tensor.
    """

    peak: float
    bandwidth: float
    call: float


NOMINAL = Machine(peak=60e9, bandwidth=12e9, call=4e-6)
"""A core of a server of about 2020; what placement reckons with, so that it is the same everywhere."""

# Share of the peak that the products of a phase reach; they are smaller or flatter than the one measured.
_EFFICIENCY = {
    "train": 0.5,
    "jacobian": 0.5,
    "kernel": 0.6,
    "evolve": 0.35,
    "update": 0.6,
    "select": 0.6,
    "evaluate": 0.7,
}
_CALLS_AN_INNER_STEP, _PASSES_AN_INNER_STEP = 320, 110
_RECORDING, _CHECKPOINT_RATE = 0.01, 400e6
"""Seconds to append to the record; bytes a second of a checkpoint, hashed and flushed."""
_CALLS_BESIDES = 200
_CALLS_A_STEP = 25  # of local training, all clients of a group together


@dataclass(frozen=True)
class Work:
    """What a phase of a round asks of a client; arrays are `[client]`.

    Attributes:
        operations: of matrix products.
        bytes: read and written by passes over arrays.
        calls: operations on tensors, whatever their size.
    """

    operations: np.ndarray
    bytes: np.ndarray
    calls: np.ndarray

    def seconds(self, phase: str, machine: Machine) -> np.ndarray:
        """`[client]`, on one thread of `machine`."""
        products = self.operations / (machine.peak * _EFFICIENCY.get(phase, 1.0))
        found: np.ndarray = products + self.bytes / machine.bandwidth + self.calls * machine.call
        return found


def round_work(
    config: Config,
    needs: Needs,
    network: Network,
    sizes: np.ndarray,
    test_samples: int,
    graph: Graph,
) -> dict[str, Work]:
    """Work by phase of a round like round 0, for each client; what a server does is not its clients'.

    Args:
        config: the run.
        needs: of its method.
        network: the model.
        sizes: samples of each client, `[client]`.
        test_samples: in the test set.
        graph: of round 0. Where graphs are dynamic a client's neighbours are taken to be average ones.
    """
    settings, own = config.algorithm, sizes.astype(np.float64)
    weights = network.work.products
    item = getattr(torch, config.compute.dtype).itemsize
    degrees = np.asarray(graph.degrees, dtype=np.float64)
    if config.topology.dynamic:
        degrees = np.full(len(own), degrees.mean())
        gathered = own + degrees * own.mean()
    else:
        gathered = own + neighbourhood_sums(graph, sizes)
    found: dict[str, Work] = {}
    nothing = np.zeros(len(own))
    if isinstance(settings, NtkSettings) and not needs.participants:
        found |= _ntk_step(settings, network, gathered, item)
        passes = own * (degrees + 1)
        found["jacobian"] = Work(
            2 * weights * passes + 2 * gathered * weights,
            3 * item * gathered * network.work.activations,
            60 * (degrees + 1),
        )
    elif isinstance(settings, StepSettings) and not needs.participants:
        samples = gathered if needs.blocks else own
        steps = settings.taus[-1]
        step = network.work.descent(samples)
        found["train"] = Work(
            steps * step.operations, steps * item * step.numbers, steps * 20 + nothing
        )
    elif isinstance(settings, TrainingSettings):
        found["train"] = _local_training(settings, network, own, item)
    if needs.vectors or needs.messages:
        averaged = (degrees + 1) * network.layout.size * (8 + 8 + item)
        before = found.get("update", Work(nothing, nothing, nothing))
        found["update"] = Work(
            before.operations, before.bytes + averaged, before.calls + 4 * (degrees + 1)
        )
    share = 1 / config.evaluation.every
    tested = test_samples if config.evaluation.clients else 0
    found["evaluate"] = Work(
        share * (2 * weights * tested + 6 * weights * own),
        share * (item * 6 * tested * network.work.widest + 120 * network.layout.size),
        share * 500 + nothing,
    )
    found["other"] = Work(nothing, nothing, nothing + _CALLS_BESIDES)
    return found


def _ntk_step(
    settings: NtkSettings, network: Network, samples: np.ndarray, item: int
) -> dict[str, Work]:
    """Kernel, evolution, update and choice for `samples` `[client]` in a neighbourhood."""
    outputs, taus, work = network.classes, len(settings.taus), network.work
    square = samples * samples
    # The more time constants the evolution covers, the more steps: lr * tau of the fastest mode,
    # whose rate goes with the number of features.
    span = max(settings.rate(0) * settings.taus[-1] * work.features, 1.0)
    inner, outer = 8.7 * span**0.263, 3.8 * span**0.29
    products = 3 * 32 + 2 * outputs * outer
    evolution = Work(
        2 * square * products + inner * samples * outputs * 6 * 4 * 32,
        item * (3 * square + inner * _PASSES_AN_INNER_STEP * samples * outputs),
        inner * _CALLS_AN_INNER_STEP + 120 * outer,
    )
    if settings.loss == "squared":
        evolution = Work(10 * square * samples, 4 * item * square, 60 + 0 * samples)
    gram, back = work.kernel(samples), work.update(samples, taus)
    return {
        "kernel": Work(gram.operations, item * gram.numbers, 60 + 0 * samples),
        "evolve": evolution,
        "update": Work(
            back.operations,
            item * (back.numbers + taus * 4 * network.layout.size),
            30 + 0 * samples,
        ),
        "select": Work(
            2 * taus * work.products * samples * (settings.selection == "network"),
            item * taus * 4 * samples * work.widest,
            80 * taus + 0 * samples,
        ),
    }


def _local_training(
    settings: TrainingSettings, network: Network, own: np.ndarray, item: int
) -> Work:
    # These need the entries of their gradients.
    by_entry = isinstance(settings, DfedsamSettings | DispflSettings)
    gradients = 2 if isinstance(settings, DfedsamSettings) else 1
    took = network.work.training(own, settings.batch, settings.epochs, gradients, by_entry)
    steps = settings.epochs * own / settings.batch
    return Work(took.operations, item * took.numbers, gradients * steps * _CALLS_A_STEP)


def client_seconds(work: dict[str, Work], machine: Machine) -> dict[str, np.ndarray]:
    """Seconds of each client, `[client]`, by phase."""
    return {phase: each.seconds(phase, machine) for phase, each in work.items()}


def placement_costs(work: dict[str, Work]) -> np.ndarray:
    """Costs by which ranks share out clients, `[client]` int64: microseconds on `NOMINAL`."""
    total = sum(client_seconds(work, NOMINAL).values(), np.zeros(1))
    costs: np.ndarray = np.rint(1e6 * total).astype(np.int64)
    return costs


def round_seconds(
    config: Config,
    needs: Needs,
    network: Network,
    sizes: np.ndarray,
    work: dict[str, Work],
    moved: int,
    placement: Placement,
    machine: Machine,
    cores: int,
) -> dict[str, float]:
    """Seconds of a round by phase, of the rank that has most to compute.

    Args:
        config: the run.
        needs: of its method.
        network: the model.
        sizes: samples of each client, `[client]`.
        work: of each client.
        moved: bytes that all ranks hand to MPI.
        placement: who owns whom.
        machine: what a thread does.
        cores: of a host; all ranks are taken to share one if they would fit, and to slow each other down
            in proportion if they would not.
    """
    by_client = client_seconds(work, machine)
    starts = placement.offsets[:-1]
    by_rank = {phase: np.add.reduceat(each, starts) for phase, each in by_client.items()}
    busiest = int(np.argmax(sum(by_rank.values(), np.zeros(placement.ranks))))
    found = {phase: float(each[busiest]) for phase, each in by_rank.items()}
    item = getattr(torch, config.compute.dtype).itemsize
    settings = config.algorithm
    if needs.participants and isinstance(settings, NtkSettings):
        gathered = np.array([sizes.mean() * needs.participants])
        for phase, each in _ntk_step(settings, network, gathered, item).items():
            found[phase] = float(each.seconds(phase, machine)[0])
    if moved:
        # Packed, sent by a copy in and a copy out, and read.
        found["exchange"] = 8 * moved / placement.ranks / machine.bandwidth
    found["record"] = _RECORDING + placement.clients * network.layout.size * item / (
        _CHECKPOINT_RATE * config.output.checkpoint_every
    )
    slower = max(1.0, placement.ranks * config.compute.threads / cores)
    return {phase: slower * seconds for phase, seconds in found.items()}


# ------------------------------------------------------------------------------------- this machine


def measure(dtype: torch.dtype) -> Machine:
    """Measures one thread of this machine, in about half a second; the best of several tries.

    In time of the processor, so that other processes count only where they take cache and memory.
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
    """Shortest seconds of `task` within `budget` seconds of trying, and once before."""
    task()
    found, end = float("inf"), time.process_time() + budget
    while time.process_time() < end:
        start = time.process_time()
        task()
        found = min(found, time.process_time() - start)
    return found
