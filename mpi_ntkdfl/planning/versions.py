"""Choices between two ways of computing that all ranks of a run make alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.algorithms.local_training import choose as choose_training
from mpi_ntkdfl.algorithms.steps import evolves
from mpi_ntkdfl.algorithms.training import takes_plain_steps
from mpi_ntkdfl.comm.world import World
from mpi_ntkdfl.config import Config
from mpi_ntkdfl.data.dataset import Scaling
from mpi_ntkdfl.model import byte_products
from mpi_ntkdfl.model.levels import LEAST_FEATURES, Levels
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.ntk.evolve import Implementation
from mpi_ntkdfl.ntk.evolve import choose as choose_evolution
from mpi_ntkdfl.runtime import device


def levels_of_inputs(
    config: Config,
    world: World,
    network: Network,
    scaling: Scaling,
    stored: np.ndarray,
    chosen: torch.device,
) -> tuple[Levels | None, str]:
    """Decides whether inputs that are bytes are multiplied as bytes.

    All ranks decide alike, because the last bits of the result depend on it.

    Args:
        config: the run's configuration.
        world: the ranks.
        network: the network.
        scaling: of the data set.
        stored: the inputs of this rank's samples as they are stored, `[sample, feature]`.
        chosen: the device.

    Returns:
        The levels of the inputs, or None if they are not multiplied as bytes; the reason of the choice.
    """
    grid = scaling.grid() if stored.dtype == np.uint8 else None
    if not network.on_levels:
        return None, "off: the network does not multiply its inputs"
    if grid is None or stored.shape[1] < LEAST_FEATURES:
        return None, f"off: inputs are not bytes of at least {LEAST_FEATURES} features"
    if device.on_gpu(chosen) or config.compute.dtype != "float32":
        return None, "off: the run does not compute in float32 on CPUs"
    choice = world.agree(lambda: byte_products.choose(config.compute.byte_products))
    if world.largest(float(not choice.taken)) > 0:
        return None, str(choice) if not choice.taken else "off: another rank's processor is slower"
    return Levels.of_bytes(*grid), str(choice)


Version = tuple[Implementation, str]
"""A version of a computation, and the reason why it is taken."""

_PHASES = {"evolution": "evolve", "local training": "train"}
"""The phase of the clock of every computation that has a compiled version."""


def compiled_phases(versions: Mapping[str, Version]) -> frozenset[str]:
    """The phases that are done in C, given the versions that `agreed_versions` returns."""
    return frozenset(
        _PHASES[name] for name, (version, _) in versions.items() if version == "compiled"
    )


UNUSED: Version = ("tensor", "it is not used")
"""The version of a computation that the method does not do."""


def agreed_versions(
    config: Config, world: World, network: Network, chosen: torch.device, dtype: torch.dtype
) -> dict[str, Version]:
    """Decides which version of the evolution and of local training runs, as far as the method has them.

    All ranks take the same version, because the last bits of the result depend on it. The compiled one is
    taken only if all ranks have it.

    Args:
        config: the run's configuration.
        world: the ranks.
        network: the network.
        chosen: the device.
        dtype: of all numbers.

    Returns:
        The versions by the names `evolution` and `local training`.

    Raises:
        InputError: if the configuration asks for a compiled version and a rank does not have it.
    """
    wanted, versions = config.compute, {}
    if evolves(config.algorithm):
        versions["evolution"] = _agreed(
            world, lambda: choose_evolution(wanted.evolution, chosen, dtype)
        )
    if takes_plain_steps(METHODS[config.algorithm.name]):
        versions["local training"] = _agreed(
            world, lambda: choose_training(wanted.training, network, chosen, dtype)
        )
    return versions


def _agreed(world: World, choose: Callable[[], Version]) -> Version:
    version, reason = world.agree(choose)
    lacking = world.largest(float(version == "tensor")) > 0
    if lacking and version == "compiled":
        return "tensor", "another rank has no compiled version"
    return version, reason
