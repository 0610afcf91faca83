"""DFedADMM (Li et al., "DFedADMM", arXiv 2308.08290): local training with a dual variable.

A client minimises loss(w) + |w - start|^2 / (2 lam) - dual^T w, where `start` are its weights at the
beginning of the round. Then (w - start) / lam is subtracted from its dual variable. The equations follow
a summary of the paper and were not compared with its text; they are those of inexact ADMM for consensus.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from mpi_ntkdfl.algorithms.base import RoundResult
from mpi_ntkdfl.algorithms.corrected_training import CorrectedTraining
from mpi_ntkdfl.algorithms.training import AveragingSettings, Batch, Epochs, Rate
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.runtime.looks import PURPLE, LineStyle


class DfedadmmSettings(AveragingSettings):
    """Settings of DFedADMM; the defaults of local training are DFedAvg's.

    `lam` was chosen among 0.1, 1 and 10 on digits with seed 100. With 0.1 only the first steps of a round
    change the weights.
    """

    name: Literal["dfedadmm"] = "dfedadmm"
    lr: Rate = 0.1
    batch: Batch = 25
    epochs: Epochs = 20
    lam: float = Field(default=10.0, gt=0, le=1e6)
    """Penalty: steps go along gradient - dual + (w - start) / lam. At the end of the round
    dual <- dual - (w - start) / lam.
    """


class Dfedadmm(CorrectedTraining[DfedadmmSettings]):
    """Local SGD with penalty and dual variable, then one averaging step."""

    Settings = DfedadmmSettings
    label = "DFedADMM"
    look = LineStyle(PURPLE, (3, 1, 1, 1), "H")
    carried_name = "duals"

    def round(self, weights: torch.Tensor, number: int, exchange: Exchange) -> RoundResult:
        """Trains, updates the dual variables, and averages weights without them."""
        lam = self.settings.lam
        trained = self.follow(weights, number, -self.carried, pull=1 / lam)
        self.carried = self.carried - (trained - weights) / lam
        pulled = trained - lam * self.carried
        return RoundResult(exchange.average(pulled, self.settings.averaging, weights))
