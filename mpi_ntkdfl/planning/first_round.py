"""The input of planning: a run's configuration, and the clients, the graph and the ranks of round 0."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from mpi_ntkdfl.algorithms.base import Method, Needs
from mpi_ntkdfl.comm.messages import MessageFormat
from mpi_ntkdfl.config import Config
from mpi_ntkdfl.federation.formats import samples_format
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.topology.graphs import Graph
from mpi_ntkdfl.topology.placement import Placement


@dataclass(frozen=True)
class FirstRound:
    """Round 0 of a run, from which the costs of all rounds are predicted.

    Attributes:
        config: configuration of the run.
        method: the class of its method.
        network: the model of every client.
        sizes: number of samples of each client, `[client]`.
        test_samples: number of samples in the test set.
        graph: the graph of round 0.
        placement: which rank owns which client.
        stored_bytes: whether the data set stores inputs as bytes.
    """

    config: Config
    method: type[Method[Any]]
    network: Network
    sizes: np.ndarray
    test_samples: int
    graph: Graph
    placement: Placement
    stored_bytes: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of weights and data."""
        dtype: torch.dtype = getattr(torch, self.config.compute.dtype)
        return dtype

    @cached_property
    def needs(self) -> Needs:
        """What a round of the method sends and keeps."""
        return self.method.needs(self.config.algorithm, self.network, self.dtype)

    @cached_property
    def blocks(self) -> tuple[MessageFormat, ...]:
        """The layouts, per sample, of the messages about a client's samples."""
        if not self.needs.samples:
            return self.needs.blocks
        return (samples_format(self.network, torch.uint8 if self.stored_bytes else self.dtype),)
