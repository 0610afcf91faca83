"""OledFL (Li et al., "OledFL", arXiv 2410.06482): DFedAvg with another starting point.

Local training starts at x + b (x - z), where x is the client's average and z are its own weights at the
end of local training in the round before. So it starts beyond the average, as seen from these weights.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from mpi_ntkdfl.algorithms.base import RoundResult
from mpi_ntkdfl.algorithms.corrected_training import CorrectedTraining
from mpi_ntkdfl.algorithms.training import AveragingSettings, Batch, Epochs, Rate
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.runtime.looks import GREEN, LineStyle


class OledflSettings(AveragingSettings):
    """Settings of OledFL; the defaults of local training are DFedAvg's."""

    name: Literal["oledfl"] = "oledfl"
    lr: Rate = 0.1
    batch: Batch = 25
    epochs: Epochs = 20
    opposite: float = Field(default=0.5, ge=0, le=10)
    """How far local training starts beyond the average, away from the last local weights (b)."""


class Oledfl(CorrectedTraining[OledflSettings]):
    """A starting point beyond the average, local SGD, then one averaging step."""

    Settings = OledflSettings
    label = "OledFL"
    look = LineStyle(GREEN, (2, 1, 4, 1), "d")
    plain_sgd = True
    carried_name = "differences"

    def round(self, weights: torch.Tensor, number: int, exchange: Exchange) -> RoundResult:
        """Trains, averages, and stores the difference of the average and the client's own weights."""
        trained = self.train(weights + self.settings.opposite * self.carried, number)
        new = exchange.average(trained, self.settings.averaging, weights)
        self.carried = new - trained
        return RoundResult(new)
