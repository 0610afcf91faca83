"""QG-DSGDm (Lin et al., "Quasi-global momentum", ICML 2021, arXiv 2102.04761), with local passes.

The momentum of the local steps follows the changes of a client's weights from round to round, which
include the averages. The paper takes one step per round. With K local steps the momentum is constant
during a round, and the change is divided by K times the learning rate; this generalisation is not from
the paper.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from mpi_ntkdfl.algorithms.base import RoundResult
from mpi_ntkdfl.algorithms.corrected_training import CorrectedTraining
from mpi_ntkdfl.algorithms.training import AveragingSettings, Batch, Epochs, Rate
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.runtime.looks import ORANGE, LineStyle


class QgDsgdmSettings(AveragingSettings):
    """Settings of QG-DSGDm; `global_momentum` is the paper's, the others are those of DFedAvgM."""

    name: Literal["qg-dsgdm"] = "qg-dsgdm"
    lr: Rate = 0.01
    batch: Batch = 25
    epochs: Epochs = 20
    global_momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum mu: steps go along gradient + mu m, and m <- mu m + (1 - mu) (change in the round)."""


class QgDsgdm(CorrectedTraining[QgDsgdmSettings]):
    """Local SGD with quasi-global momentum, then one averaging step."""

    Settings = QgDsgdmSettings
    label = "QG-DSGDm"
    look = LineStyle(ORANGE, (8, 2, 1, 2), "h")
    carried_name = "momentum"

    def round(self, weights: torch.Tensor, number: int, exchange: Exchange) -> RoundResult:
        """Trains, averages, and updates the momentum."""
        mu = self.settings.global_momentum
        trained = self.follow(weights, number, mu * self.carried)
        new = exchange.average(trained, self.settings.averaging, weights)
        self.carried = mu * self.carried + (1 - mu) * (weights - new) / self.step_times(number)
        return RoundResult(new)
