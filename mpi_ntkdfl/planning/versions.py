"""Choices between two ways of computing that all ranks of a run make alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from mpi_ntkdfl.comm.world import World
from mpi_ntkdfl.config import Config
from mpi_ntkdfl.data.dataset import Scaling
from mpi_ntkdfl.model import byte_products
from mpi_ntkdfl.model.levels import LEAST_FEATURES, Levels
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.ntk.evolve import Implementation
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


def agreed_version(
    world: World, choose: Callable[[], tuple[Implementation, str]]
) -> tuple[Implementation, str]:
    """Decides which version of a computation runs; the compiled one only if all ranks have it.

    All ranks take the same version, because the last bits of the result depend on it.

    Args:
        world: the ranks.
        choose: returns this rank's version and the reason.

    Returns:
        The version and the reason of the choice.

    Raises:
        InputError: if the configuration asks for the compiled version and a rank does not have it.
    """
    version, reason = world.agree(choose)
    lacking = world.largest(float(version == "tensor")) > 0
    if lacking and version == "compiled":
        return "tensor", "another rank has no compiled version"
    return version, reason
