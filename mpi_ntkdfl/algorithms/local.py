"""Local training alone: what clients reach without any communication. The graph is not used."""

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


class LocalSettings(TrainingSettings):
    """Settings of local training alone; the defaults are DFedAvg's."""

    name: Literal["local"] = "local"
    lr: float = Field(default=0.1, gt=0, le=1e6)
    batch: int = Field(default=25, ge=1, le=MOST_SAMPLES)
    epochs: int = Field(default=20, ge=1, le=100_000)


class Local(Method[LocalSettings]):
    """Local SGD and nothing else."""

    Settings = LocalSettings

    def __init__(self, settings: LocalSettings, federation: Federation) -> None:
        """Prepares local training; no state is carried from round to round but the weights."""
        super().__init__(settings, federation)
        self.training = LocalTraining(federation, settings.batch, settings.epochs)

    @classmethod
    def needs(cls, settings: LocalSettings, network: Network, dtype: torch.dtype) -> Needs:
        """Nothing is sent."""
        return Needs(kept=settings.kept(network, dtype))

    def round(self, weights: torch.Tensor, number: int, exchange: Exchange) -> RoundResult:
        """Trains."""
        trained = self.training.descend(weights, number, self.settings.sgd(number))
        return RoundResult(trained, [0] * len(trained))
