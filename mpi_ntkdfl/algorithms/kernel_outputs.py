"""Kernels from a few random directions of the outputs, for networks of many classes."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.federation.neighbourhood import HeldNeighbourhood, Neighbourhood
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.ntk.kernel import orthonormal_directions
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.seeds import generator


def check_directions(wanted: int | None, jacobian: str, network: Network) -> None:
    """Checks the setting `kernel_outputs`.

    Args:
        wanted: number of directions, or None for all outputs.
        jacobian: how Jacobians travel.
        network: the network.

    Raises:
        InputError: if there are fewer outputs, or the network's kernel cannot use directions.
    """
    if wanted is None:
        return
    if wanted > network.classes:
        raise InputError(
            f"algorithm.kernel_outputs must be at most the number of classes, {network.classes}, got "
            f"{wanted}; use null for all outputs"
        )
    if network.factored is not None or jacobian != "inputs":
        raise InputError(
            "algorithm.kernel_outputs needs a network without a factored form and "
            f"algorithm.jacobian=inputs, got model {network.describe()} and {jacobian}; use "
            "algorithm.kernel_outputs=null"
        )


def choose_directions(
    hoods: Iterable[Neighbourhood], directions: int | None, federation: Federation, number: int
) -> None:
    """Draws the directions of outputs for the kernel of each neighbourhood.

    Args:
        hoods: neighbourhoods whose Jacobians are held.
        directions: number of directions; None for all outputs.
        federation: provides the seed and the number of classes.
        number: number of the round.
    """
    if directions is None:
        return
    for hood in hoods:
        assert isinstance(hood, HeldNeighbourhood)
        keys = federation.seed, "kernel outputs", number, hood.client
        drawn = orthonormal_directions(generator(*keys), directions, federation.network.classes)
        hood.estimate_kernel(torch.from_numpy(drawn).to(hood.outputs))
