"""What is chosen for a network when a run starts, with a line in the log and in the record."""

from __future__ import annotations

import logging

import torch

from mpi_ntkdfl.model import compiled_product
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.runtime import allocator, device

LOGGER = logging.getLogger(__name__)


def network_choices(network: Network, chosen: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """How the network computes. On CPUs, freed memory is kept for networks that choose something.

    Args:
        network: the network.
        chosen: where the run computes.
        dtype: of all numbers.
    """
    choices = dict(network.choices)
    if choices:
        # The last bits of a kernel depend on it.
        choices["symmetric products"] = compiled_product.described(chosen, dtype)
    for name, choice in choices.items():
        LOGGER.info("%s: %s", name, choice)
    if choices and not device.on_gpu(chosen):
        kept = allocator.keep_memory()
        choices["freed memory"] = "kept by the process" if kept else "given back to the system"
    return choices
