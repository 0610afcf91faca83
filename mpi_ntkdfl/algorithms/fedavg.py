"""FedAvg (McMahan et al., "Communication-efficient learning of deep networks", AISTATS 2017).

Every client sends its weights to a server and receives the mean of all. The graph is not used.
"""

from __future__ import annotations

from typing import Literal

import torch

from mpi_ntkdfl.algorithms.base import Leg, Needs, RoundResult
from mpi_ntkdfl.algorithms.training import Batch, Epochs, Rate, SendingSettings, TrainingMethod
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.runtime.looks import BLACK, LineStyle


class FedavgSettings(SendingSettings):
    """Settings of FedAvg with all clients; the defaults are those of the NTK-DFL paper's comparison."""

    name: Literal["fedavg"] = "fedavg"
    lr: Rate = 0.1
    batch: Batch = 200
    epochs: Epochs = 20
    averaging: Literal["plain", "samples"] = "samples"
    """Weights of the average over all clients: equal (`plain`), or in proportion to the clients'
    samples (`samples`).
    """

    @property
    def sends(self) -> tuple[str, ...]:
        """Weights to the server, and their average back."""
        return ("weights", "averages")


class Fedavg(TrainingMethod[FedavgSettings]):
    """Local SGD at all clients, then the mean of all."""

    Settings = FedavgSettings
    label = "FedAvg"
    look = LineStyle(BLACK, (5, 1, 2, 1), "X")

    @classmethod
    def needs(cls, settings: FedavgSettings, network: Network, dtype: torch.dtype) -> Needs:
        """Weights go to the server, and their mean comes back."""
        return Needs(
            server=True,
            kept=cls.training_bytes(settings, network, dtype),
            legs=(Leg(("weights",), ("train",), "up"), Leg(("averages",), way="down")),
        )

    def round(self, weights: torch.Tensor, number: int, exchange: Exchange) -> RoundResult:
        """Trains, then takes the mean over all clients."""
        trained = self.train(weights, number)
        mean = exchange.server_average(trained, self.settings.averaging, weights)
        return RoundResult(mean.repeat(len(weights), 1))
