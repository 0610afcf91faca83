"""The table of all kinds of networks, by the names that configurations use.

This module does not import torch, so that settings can be read without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mpi_ntkdfl.config import ModelSettings
from mpi_ntkdfl.model.kinds.base import NetworkKind
from mpi_ntkdfl.model.kinds.cnn import Cnn
from mpi_ntkdfl.model.kinds.mlp import Mlp
from mpi_ntkdfl.model.kinds.plugin import FACTORIES, Plugin, register_network
from mpi_ntkdfl.model.kinds.resnet import Resnet
from mpi_ntkdfl.model.kinds.transformer import Transformer
from mpi_ntkdfl.runtime.registry import Registry

if TYPE_CHECKING:
    import numpy as np

    from mpi_ntkdfl.config import Config
    from mpi_ntkdfl.model.network import Network

__all__ = ["FACTORIES", "NETWORKS", "build", "build_for", "check_inputs", "register_network"]

NETWORKS: Registry[type[NetworkKind]] = Registry(
    "network",
    {"mlp": Mlp, "cnn": Cnn, "resnet": Resnet, "transformer": Transformer, "plugin": Plugin},
    own="a network of your own needs {name: plugin, network: {name}} and --plugin FILE.py",
)
"""All kinds of networks by name."""


def build(settings: ModelSettings, shape: tuple[int, ...], classes: int) -> Network:
    """The network that the settings ask for, with as many outputs as the data set has classes.

    Args:
        settings: the section `model:`.
        shape: shape of one sample.
        classes: C.

    Raises:
        InputError: if there can be no such network.
    """
    return NETWORKS.find(settings.name).build(settings, shape, classes)


def build_for(config: Config, shape: tuple[int, ...], classes: int) -> Network:
    """The network of a run, which holds as many numbers as `compute.memory_limit` allows.

    Args:
        config: the run's configuration.
        shape: shape of one sample.
        classes: C.

    Raises:
        InputError: as `build`.
    """
    network, limit = build(config.model, shape, classes), config.compute.memory_bytes
    itemsize = 8 if config.compute.dtype == "float64" else 4
    return network if limit is None else network.within(limit // itemsize)


def check_inputs(
    settings: ModelSettings, blocks: Iterable[np.ndarray], shape: tuple[int, ...], classes: int
) -> None:
    """Checks that the network can take the samples of a data set.

    Args:
        settings: the section `model:`.
        blocks: inputs as the network gets them, arrays `[sample, feature]`; most networks take any values
            and do not look at them.
        shape: shape of one sample.
        classes: C.

    Raises:
        InputError: if a value cannot be an input.
    """
    NETWORKS.find(settings.name).check_inputs(blocks, shape, classes)
