"""What most baselines share: clients train on their own data, then average with their neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field

from mpi_ntkdfl.algorithms.base import Method, Needs, RoundResult
from mpi_ntkdfl.algorithms.local_training import LocalTraining
from mpi_ntkdfl.config import MethodSettings
from mpi_ntkdfl.federation.averages import quantised_average, quantised_format
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.model.training import Sgd


class TrainingSettings(MethodSettings):
    """Settings of local training by SGD.

    Round k uses `lr * lr_factor ** k`. `epochs` are passes through a client's own samples in batches
    of `batch`. Velocities of `momentum` start at zero in every round.
    """

    lr: float = Field(gt=0)
    lr_factor: float = Field(default=1.0, gt=0)
    batch: int = Field(ge=1)
    epochs: int = Field(ge=1)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)

    def kept(self, network: Network, dtype: torch.dtype) -> Callable[[int], int]:
        """Bytes that training keeps for a client, by its samples; see `Needs`."""

        def nbytes(samples: int) -> int:
            return network.training_memory(samples, self.batch, self.epochs) * dtype.itemsize

        return nbytes

    def sgd(self, number: int) -> Sgd:
        """The descent of round `number`, from 0."""
        return Sgd(self.lr * self.lr_factor**number, self.momentum, self.weight_decay)


class GossipSettings(TrainingSettings):
    """Settings of methods that train and then average with the neighbours.

    `quantize`: levels to which a message's entries are rounded, null to send weights as they are.
    """

    averaging: Literal["plain", "samples"] = "plain"
    quantize: int | None = Field(default=None, ge=2, le=256)


class TrainThenAverage(Method[GossipSettings]):
    """Local SGD, then one averaging step over the closed neighbourhood.

    With `quantize` clients send what a round changed, rounded, and add the average of the changes, as
    Quantized DFedAvgM (Sun, Li, Wang, "Decentralized federated averaging", TPAMI 2023) does:
    `x_i + sum_j w_ij Q(z_j - x_j)` for x_i before and z_j after local training. What clients differed in
    before is not averaged again, so their weights drift apart where those of plain averages do not.
    """

    def __init__(self, settings: GossipSettings, federation: Federation) -> None:
        """Prepares local training; no state is carried from round to round but the weights."""
        super().__init__(settings, federation)
        self.training = LocalTraining(federation, settings.batch, settings.epochs)

    @classmethod
    def needs(cls, settings: GossipSettings, network: Network, dtype: torch.dtype) -> Needs:
        """Weights to the neighbours; when quantised, at most a byte an entry."""
        if settings.quantize is None:
            return Needs(("weights",), kept=settings.kept(network, dtype))
        form = quantised_format(network.layout.size, dtype)
        return Needs(messages=(form,), kept=settings.kept(network, dtype))

    def round(self, weights: torch.Tensor, number: int, exchange: Exchange) -> RoundResult:
        """Trains, then averages."""
        s = self.settings
        trained = self.training.descend(weights, number, s.sgd(number))
        if s.quantize is None:
            averages = exchange.average(trained, s.averaging)
        else:
            averages = weights + quantised_average(
                exchange, trained - weights, s.averaging, s.quantize
            )
        return RoundResult(averages, [0] * len(averages))
