"""K-GT (Liu et al., "Decentralized gradient tracking with local steps", arXiv 2301.01313).

Every gradient of a local step is corrected by the difference between the neighbourhood's mean direction
and the client's own, as measured in earlier rounds. Corrections start at zero. The equations are those
of two published implementations; the paper's text was not at hand.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from mpi_ntkdfl.algorithms.base import RoundResult
from mpi_ntkdfl.algorithms.corrected_training import CorrectedTraining
from mpi_ntkdfl.algorithms.training import AveragingSettings, Batch, Epochs, Rate
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.runtime.looks import SKY, LineStyle


class KGtSettings(AveragingSettings):
    """Settings of K-GT; the defaults are DFedAvg's."""

    name: Literal["k-gt"] = "k-gt"
    lr: Rate = 0.1
    batch: Batch = 25
    epochs: Epochs = 20
    step: float = Field(default=1.0, gt=0, le=100)
    """Factor of the change of the weights by local training, before the average."""


class KGt(CorrectedTraining[KGtSettings]):
    """Local SGD with tracked gradients, then one averaging step; two vectors per neighbour."""

    Settings = KGtSettings
    label = "K-GT"
    look = LineStyle(SKY, (6, 2, 2, 2), "p")
    vectors = 2
    carried_name = "corrections"

    def round(self, weights: torch.Tensor, number: int, exchange: Exchange) -> RoundResult:
        """Trains, averages weights and directions, and updates the corrections."""
        kind = self.settings.averaging
        trained = self.follow(weights, number, self.carried)
        directions = (weights - trained) / self.step_times(number)
        mean = exchange.average(directions, kind, torch.zeros_like(directions))
        self.carried = self.carried - directions + mean
        moved = weights + self.settings.step * (trained - weights)
        return RoundResult(exchange.average(moved, kind, weights))
