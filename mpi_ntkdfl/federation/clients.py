"""The clients of a run on one rank, and everything with which they compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from mpi_ntkdfl.comm.ledger import Ledger
from mpi_ntkdfl.comm.staging import DirectStaging, Staging
from mpi_ntkdfl.comm.world import World
from mpi_ntkdfl.federation.presence import Presence
from mpi_ntkdfl.model.levels import Levels
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.ntk.evolve import Implementation
from mpi_ntkdfl.runtime.clock import Clock
from mpi_ntkdfl.topology.placement import Placement


@dataclass(frozen=True)
class Samples:
    """A client's own data on the rank's device.

    Attributes:
        inputs: `[sample, *shape]`.
        labels: `[sample]` int64.
        stored: the bytes from which the inputs were computed, `[sample, *shape]` uint8; None if the data
            set does not store bytes, or if no message needs them.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    stored: torch.Tensor | None = None


@dataclass(frozen=True)
class ByteTable:
    """The inputs of networks that belong to the bytes of a data set.

    Attributes:
        values: the input for each byte, `[256]` if it is the same for all features, or `[256, feature]`.
    """

    values: torch.Tensor

    def inputs(self, stored: torch.Tensor) -> torch.Tensor:
        """The inputs `[sample, *shape]` for the bytes `stored`, which have the same shape."""
        if self.values.ndim == 1:
            return self.values[stored.long()]
        return self.values.gather(0, stored.flatten(1).long()).view(stored.shape)


@dataclass(frozen=True)
class Federation:
    """The clients, their placement on ranks, and what they compute with. It is constant during a run.

    Attributes:
        world: the ranks.
        placement: which rank owns which client.
        network: the model of every client.
        samples: data of the clients that this rank owns, by client id.
        sizes: number of samples of every client, `[client]`.
        device: device on which this rank computes.
        dtype: floating-point type of weights and data.
        memory_limit: working memory of a rank in bytes, None for the default.
        seed: seed of the run, for random numbers keyed by purpose, client and round.
        ledger: books the traffic.
        clock: books the time.
        on_divergence: `stop` ends the run when a client diverges; `continue` goes on without the step
            of this client.
        batch: number of clients that this rank evolves together. With None, as many clients are evolved
            together as fit into `batch_bytes`.
        batch_bytes: bytes of memory for clients that are evolved together; 0 evolves one at a time.
        table: the inputs by the bytes of the data set, if raw samples travel as bytes; None if they
            travel as numbers of type `dtype`.
        staging: how messages move between the device and MPI.
        levels: the levels on which all inputs lie; None if they do not, or if computing with levels
            brings no gain on the device.
        evolution: the implementation that evolves outputs under the cross-entropy loss; the same on all
            ranks.
        training: the implementation that takes local steps by SGD; the same on all ranks.
        choices: for each choice between two ways of computing, its name, and as value the way that the
            run takes with the reason. All ranks take the same way; the text of a reason may differ.
        presence: which clients take part in the current round; it changes from round to round.
        shared_start: whether all clients start with the same weights.
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
    table: ByteTable | None = None
    staging: Staging = DirectStaging()
    levels: Levels | None = None
    evolution: Implementation = "tensor"
    training: Implementation = "tensor"
    choices: Mapping[str, str] = field(default_factory=dict)
    presence: Presence = field(default_factory=Presence)
    shared_start: bool = True

    @property
    def owned(self) -> range:
        """Ids of the clients of this rank."""
        return self.placement.owned(self.world.rank)

    @property
    def travelling(self) -> torch.dtype:
        """The type of raw inputs in messages."""
        return self.dtype if self.table is None else torch.uint8
