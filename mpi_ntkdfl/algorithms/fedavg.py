"""FedAvg (McMahan et al., "Communication-efficient learning of deep networks", AISTATS 2017).

Central: every client sends its weights to a server and gets the mean back; the graph is not used.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from mpi_ntkdfl.algorithms.base import Method, Needs, RoundResult
from mpi_ntkdfl.algorithms.local_training import LocalTraining
from mpi_ntkdfl.algorithms.train_then_average import TrainingSettings
from mpi_ntkdfl.config import MOST_SAMPLES
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.model.network import Network


class FedavgSettings(TrainingSettings):
    """Settings of FedAvg with all clients; the defaults are those of the NTK-DFL paper's comparison."""

    name: Literal["fedavg"] = "fedavg"
    lr: float = Field(default=0.1, gt=0, le=1e6)
    batch: int = Field(default=200, ge=1, le=MOST_SAMPLES)
    epochs: int = Field(default=20, ge=1, le=100_000)
    averaging: Literal["plain", "samples"] = "samples"


class Fedavg(Method[FedavgSettings]):
    """Local SGD at all clients, then the mean of all."""

    Settings = FedavgSettings

    def __init__(self, settings: FedavgSettings, federation: Federation) -> None:
        """Prepares local training; no state is carried from round to round but the weights."""
        super().__init__(settings, federation)
        self.training = LocalTraining(federation, settings.batch, settings.epochs)

    @classmethod
    def needs(cls, settings: FedavgSettings, network: Network, dtype: torch.dtype) -> Needs:
        """Weights to the server, their mean back."""
        return Needs(server=True, kept=settings.kept(network, dtype))

    def round(self, weights: torch.Tensor, number: int, exchange: Exchange) -> RoundResult:
        """Trains, then takes the mean over all clients."""
        s = self.settings
        trained = self.training.descend(weights, number, s.sgd(number))
        mean = exchange.server_average(trained, s.averaging)
        return RoundResult(mean.repeat(len(weights), 1), [0] * len(weights))
