"""From a configuration to clients on ranks.

Rank 0 reads the data set and checks everything. Then every rank receives the samples of its clients.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.comm.gpu_aware import agreed_staging
from mpi_ntkdfl.comm.ledger import Ledger
from mpi_ntkdfl.comm.world import World
from mpi_ntkdfl.config import Config
from mpi_ntkdfl.data import partition, sources
from mpi_ntkdfl.data.dataset import Dataset, Scaling
from mpi_ntkdfl.data.facts import DataFacts, facts
from mpi_ntkdfl.environment.conditions import Conditions
from mpi_ntkdfl.federation.clients import ByteTable, Federation, Samples
from mpi_ntkdfl.model.by_sample import Sites
from mpi_ntkdfl.model.choices import network_choices
from mpi_ntkdfl.model.levels import Inputs
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.model.networks import build_for, check_inputs
from mpi_ntkdfl.model.params import Layout
from mpi_ntkdfl.planning.costs import (
    NOMINAL,
    Machine,
    balanced,
    measure,
    rarer_tests,
    round_seconds,
)
from mpi_ntkdfl.planning.first_round import FirstRound
from mpi_ntkdfl.planning.plan import Plan, make_plan
from mpi_ntkdfl.planning.versions import UNUSED, agreed_versions, levels_of_inputs
from mpi_ntkdfl.runtime import device, seeds
from mpi_ntkdfl.runtime.clock import Clock
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.paths import user_path
from mpi_ntkdfl.topology.placement import Placement
from mpi_ntkdfl.topology.schedule import Schedule


@dataclass(frozen=True)
class Problem:
    """Everything that a configuration names, read and checked in one process.

    Attributes:
        dataset: all samples.
        partition: which client has which samples.
        schedule: the graphs of the rounds.
        start: starting weights from `model.weights`, `[param]` float64, or None if they are drawn.
        first: the first round, as planning needs it.
        plan: bytes and memory of the first round.
        conditions: under which the clients work in simulated time; None without an environment.
    """

    dataset: Dataset
    partition: partition.Partition
    schedule: Schedule
    start: np.ndarray | None
    first: FirstRound
    plan: Plan
    conditions: Conditions | None = None

    @property
    def network(self) -> Network:
        """The model."""
        return self.first.network

    @property
    def placement(self) -> Placement:
        """Which rank owns which client."""
        return self.first.placement

    def machine(self, measured: bool) -> Machine:
        """The speed of a thread: measured here in half a second if `measured`, else nominal."""
        if not measured:
            return NOMINAL
        torch.set_num_threads(1)
        return measure(self.first.dtype)

    def round_seconds(
        self, machine: Machine, cores: int, compiled: Container[str] = ()
    ) -> dict[str, float]:
        """Seconds of a round by phase on the busiest rank; see `costs.round_seconds`."""
        return round_seconds(self.first, int(self.plan.traffic[1].sum()), machine, cores, compiled)

    def rarer_tests(
        self, machine: Machine, cores: int, compiled: Container[str] = ()
    ) -> tuple[str, float]:
        """How to test less often, if tests take much of a round; see `costs.rarer_tests`."""
        return rarer_tests(self.first, int(self.plan.traffic[1].sum()), machine, cores, compiled)


def prepare(config: Config, ranks: int, going_on: bool = False) -> Problem:
    """Reads and checks everything that a run needs.

    Args:
        config: the run's configuration.
        ranks: R, the number of ranks.
        going_on: whether the run continues from a checkpoint. The file of starting weights may be missing
            then.

    Raises:
        InputError: if anything is wrong that would stop the run later.
    """
    equal = Placement(config.clients, ranks)  # refuses more ranks than clients
    dataset = sources.load(config.dataset)
    shares = partition.make(
        config.partition,
        dataset.train_labels,
        config.clients,
        config.seed,
        dataset.sites,
        dataset.site_names,
    )
    schedule = Schedule(config.topology, config.clients, config.seed)
    check_inputs(config.model, dataset.input_blocks(), dataset.shape, dataset.classes)
    network = build_for(config, dataset.shape, dataset.classes)
    conditions = None
    if config.environment is not None:
        conditions = Conditions.of(config.environment, config.clients, config.seed)
    start = path = None
    if config.model.weights is not None:
        path = user_path(config.model.weights, "model.weights")
    if path is not None and not (going_on and not path.exists()):
        given = read_weights(path, network.layout)
        if not torch.isfinite(given.to(getattr(torch, config.compute.dtype))).all():
            raise InputError(
                f"model.weights: {path} holds numbers beyond the range of {config.compute.dtype}; "
                "use compute.dtype=float64"
            )
        start = given.numpy()
    first = FirstRound(
        config=config,
        method=METHODS[config.algorithm.name],
        network=network,
        sizes=shares.sizes,
        test_samples=len(dataset.test_labels),
        graph=schedule.graph(0),
        placement=equal,
        stored_bytes=dataset.train_inputs.dtype == np.uint8,
    )
    first = balanced(first)
    return Problem(dataset, shares, schedule, start, first, make_plan(first), conditions)


def read_weights(path: Path, layout: Layout) -> torch.Tensor:
    """Reads a torch state_dict as a flat vector `[param]`.

    Raises:
        InputError: if the file is missing, is not a plain state_dict, or does not fit the model.
    """
    try:
        state = torch.load(path, map_location=device.HOST, weights_only=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"model.weights: {path} cannot be read: {reason}") from error
    except Exception as error:  # for a damaged file the unpickler can raise almost any exception
        # torch's own message is not shown, because it advises to load the file without checks.
        raise InputError(
            f"model.weights: {path} is not a readable state_dict: it is damaged, or holds other things "
            "than tensors; write it by torch.save(network.state_dict(), ...)"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise InputError(f"model.weights: {path} must hold a mapping of names to tensors")
    constants = {name: tensor for name, tensor in state.items() if name in layout.constants}
    trained = {n: _plain(n, tensor, path) for n, tensor in state.items() if n not in constants}
    return layout.flatten({**trained, **constants})


_REALS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _plain(name: object, tensor: torch.Tensor, path: Path) -> torch.Tensor:
    """A tensor of a state_dict as float64 numbers, detached from its autograd history.

    Raises:
        InputError: if the tensor is not dense, or does not hold floating-point numbers.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = (
            "quantised" if tensor.is_quantized else "empty (meta)" if tensor.is_meta else "sparse"
        )
        raise InputError(f"model.weights: {path}: {name} is {kind}; save it as a dense tensor")
    if tensor.dtype not in _REALS:
        got = str(tensor.dtype).removeprefix("torch.")
        raise InputError(
            f"model.weights: {path}: {name} must hold float16, bfloat16, float32 or float64, got {got}"
        )
    return tensor.detach().double()


@dataclass(frozen=True)
class Assembly:
    """One rank's part of a run, ready for the first round.

    Attributes:
        federation: the clients of this rank, and how they compute.
        schedule: the graphs of the rounds.
        weights: starting weights of this rank's clients, `[owned, param]`.
        test_inputs: inputs of the test set, `[sample, *shape]`.
        test_labels: labels of the test set, `[sample]`.
        test_sites: sites of the test samples; None if there are none.
        facts: what the record stores about the samples, on rank 0; None on other ranks.
        conditions: under which the clients work in simulated time; None without an environment.
    """

    federation: Federation
    schedule: Schedule
    weights: torch.Tensor
    test_inputs: Inputs
    test_labels: torch.Tensor
    test_sites: Sites | None
    facts: DataFacts | None
    conditions: Conditions | None = None


def assemble(config: Config, world: World, problem: Problem | None) -> Assembly:
    """Sends every rank its part of rank 0's `problem`. All ranks must call this.

    Args:
        config: the run's configuration.
        world: the ranks.
        problem: the result of `prepare` on rank 0; None on other ranks.

    Raises:
        InputError: if a rank does not have the device or the version of a computation that the
            configuration asks for, or if MPI cannot read the memory of that device.
    """
    chosen = world.agree(lambda: device.choose(config.compute.device, world.local_rank))
    device.use(chosen, config.compute.threads)
    way = agreed_staging(world, chosen, config.compute.gpu_aware_mpi)
    dtype = getattr(torch, config.compute.dtype)

    def told() -> tuple[
        Network, Schedule, Scaling, np.ndarray, Placement, bool, bool, Conditions | None
    ]:
        assert problem is not None
        p, given = problem, problem.start is not None
        as_bytes = p.first.needs.samples and p.first.stored_bytes
        shared = p.network, p.schedule, p.dataset.scaling, p.partition.sizes, p.placement
        return *shared, given, as_bytes, p.conditions

    network, schedule, scaling, sizes, placement, given, as_bytes, conditions = world.on_root(told)

    def plain(stored: np.ndarray) -> torch.Tensor:
        scaled = torch.tensor(scaling.apply(stored, config.compute.dtype))
        return scaled.view(-1, *network.shape).to(chosen)

    def ship(array: np.ndarray) -> torch.Tensor:
        return torch.tensor(array).to(chosen)

    stored, labels = _own_samples(world, placement, problem)
    levels, by_bytes = levels_of_inputs(config, world, network, scaling, stored, chosen)
    choices = {"byte products": by_bytes, **network_choices(network, chosen, dtype)}
    versions = agreed_versions(config, world, network, chosen, dtype)
    choices |= {name: f"{version}: {reason}" for name, (version, reason) in versions.items()}
    owned = placement.owned(world.rank)
    cuts = np.cumsum(sizes[owned.start : owned.stop])[:-1]
    samples = {
        client: Samples(plain(x), ship(y), ship(x).view(-1, *network.shape) if as_bytes else None)
        for client, x, y in zip(owned, np.split(stored, cuts), np.split(labels, cuts), strict=True)
    }
    data = problem.dataset if problem else None
    tested = world.broadcast(data.test_inputs if data else None)
    test_labels = ship(world.broadcast(data.test_labels if data else None))
    start = problem.start if problem else None
    if given:
        start = world.broadcast(start)
    weights = starting_weights(config, network, owned, start).to(device=chosen, dtype=dtype)
    federation = Federation(
        world=world,
        placement=placement,
        network=network,
        samples=samples,
        sizes=sizes,
        device=chosen,
        dtype=dtype,
        memory_limit=config.compute.memory_bytes,
        seed=config.seed,
        ledger=Ledger(),
        clock=Clock(),
        on_divergence=config.on_divergence,
        batch=config.compute.batch,
        batch_bytes=device.free_share(chosen, world.hosts.count(world.hosts[world.rank])),
        table=_byte_table(scaling, stored.shape[1], config, chosen) if as_bytes else None,
        staging=way,
        levels=levels,
        evolution=versions.get("evolution", UNUSED)[0],
        training=versions.get("local training", UNUSED)[0],
        choices=choices,
        shared_start=config.model.init == "shared",
    )
    count = world.on_root(lambda: problem.dataset.tested_sites if problem else 0)
    sites = Sites(world.broadcast(data.test_sites if data else None), count) if count else None
    about = facts(problem.dataset, problem.partition) if problem else None
    test_inputs = levels.take(tested) if levels else plain(tested)
    return Assembly(
        federation, schedule, weights, test_inputs, test_labels, sites, about, conditions
    )


def _byte_table(scaling: Scaling, features: int, config: Config, chosen: torch.device) -> ByteTable:
    """The input for each byte, for all features at once where they are scaled alike."""
    every = np.arange(256, dtype=np.uint8)[:, None]
    if scaling.grid() is None:
        values = scaling.apply(every.repeat(features, axis=1), config.compute.dtype)
    else:
        values = scaling.apply(every, config.compute.dtype)[:, 0]
    return ByteTable(torch.tensor(values).to(chosen))


def _own_samples(
    world: World, placement: Placement, problem: Problem | None
) -> tuple[np.ndarray, np.ndarray]:
    """The stored inputs and the labels of this rank's clients, one client after another."""

    def indices(rank: int) -> np.ndarray:
        assert problem is not None
        owned, shares = placement.owned(rank), problem.partition
        return shares.indices[shares.offsets[owned.start] : shares.offsets[owned.stop]]

    def taken(name: str, rank: int) -> np.ndarray:
        assert problem is not None
        return np.asarray(getattr(problem.dataset, name)[indices(rank)])

    inputs = world.scatter(partial(taken, "train_inputs"))
    return inputs, world.scatter(partial(taken, "train_labels"))


def starting_weights(
    config: Config, network: Network, clients: range, start: np.ndarray | None
) -> torch.Tensor:
    """Starting weights of `clients`, `[client, param]` float64.

    They are `start` for all clients if it is given. Otherwise they are drawn, once for all clients or
    once per client, as `model.init` says.
    """
    if start is None and config.model.init == "per-client":
        draws = [network.initial(seeds.generator(config.seed, "weights", c)) for c in clients]
        return torch.from_numpy(np.stack(draws))
    if start is None:
        start = network.initial(seeds.generator(config.seed, "weights"))
    return torch.from_numpy(start).repeat(len(clients), 1)
