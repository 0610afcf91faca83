"""Local training only: what clients reach without any communication. The graph is not used."""

from __future__ import annotations

from typing import Literal

import torch

from mpi_ntkdfl.algorithms.base import Needs, RoundResult
from mpi_ntkdfl.algorithms.training import Batch, Epochs, Rate, TrainingMethod, TrainingSettings
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.runtime.looks import BLACK, LineStyle


class LocalSettings(TrainingSettings):
    """Settings of local training only; the defaults are DFedAvg's."""

    name: Literal["local"] = "local"
    lr: Rate = 0.1
    batch: Batch = 25
    epochs: Epochs = 20


class Local(TrainingMethod[LocalSettings]):
    """Local SGD and nothing else."""

    Settings = LocalSettings
    label = "Local"
    look = LineStyle(BLACK, (1, 2.5), ">")

    @classmethod
    def needs(cls, settings: LocalSettings, network: Network, dtype: torch.dtype) -> Needs:
        """Nothing is sent."""
        return Needs(kept=cls.training_bytes(settings, network, dtype))

    def round(self, weights: torch.Tensor, number: int, exchange: Exchange) -> RoundResult:
        """Trains."""
        return RoundResult(self.train(weights, number))
