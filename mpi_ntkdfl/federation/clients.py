"""The clients of a run on one rank, and everything they compute with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from mpi_ntkdfl.comm.ledger import Ledger
from mpi_ntkdfl.comm.staging import DirectStaging, Staging
from mpi_ntkdfl.comm.world import World
from mpi_ntkdfl.model.levels import Levels
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.ntk.evolve import Implementation
from mpi_ntkdfl.runtime.clock import Clock
from mpi_ntkdfl.topology.placement import Placement


@dataclass(frozen=True)
class Samples:
    """A client's own data on the rank's device: inputs `[sample, feature]`, labels `[sample]` int64."""

    inputs: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Federation:
    """The clients, where they live, and what they compute with; the same for a whole run.

    Attributes:
        world: the ranks.
        placement: which rank owns which client.
        network: the model of every client.
        samples: data of the clients this rank owns, by client id.
        sizes: samples of every client, `[client]`.
        device: where this rank computes.
        dtype: floating-point type of weights and data.
        memory_limit: working memory of a rank in bytes, None for the default.
        seed: the run's, for randomness keyed by purpose, client and round.
        ledger: books the traffic.
        clock: books the time.
        on_divergence: whether the run stops when a client diverges, or goes on without its step.
        batch: how many clients this rank evolves together; None for as many as fit into `batch_bytes`.
        batch_bytes: memory for clients that are evolved together; 0 evolves one at a time.
        staging: how messages travel between the device and MPI.
        levels: on which all inputs lie, if they do and computing by them pays on the device.
        evolution: what evolves outputs under the cross-entropy loss, the same on all ranks.
        choices: which of two ways of computing the run takes, and why, by the name of the choice; the
            same on all ranks, except for the wording of a reason.
    """

    world: World
    placement: Placement
    network: Network
    samples: Mapping[int, Samples]
    sizes: np.ndarray
    device: torch.device
    dtype: torch.dtype
    memory_limit: int | None
    seed: int
    ledger: Ledger
    clock: Clock
    on_divergence: Literal["stop", "continue"] = "stop"
    batch: int | None = None
    batch_bytes: int = 0
    staging: Staging = DirectStaging()
    levels: Levels | None = None
    evolution: Implementation = "tensor"
    choices: Mapping[str, str] = field(default_factory=dict)

    @property
    def owned(self) -> range:
        """Ids of the clients of this rank."""
        return self.placement.owned(self.world.rank)
