"""DFedAvgM (Sun, Li, Wang, "Decentralized federated averaging", TPAMI 2023): DFedAvg with momentum.

In their Algorithm 1 velocities are zero at the start of every round, so they are not carried over.
"""

from __future__ import annotations

from typing import Literal

from mpi_ntkdfl.algorithms.train_then_average import QuantizableSettings, TrainThenAverage
from mpi_ntkdfl.algorithms.training import Batch, Epochs, Momentum, Rate
from mpi_ntkdfl.runtime.looks import VERMILION, LineStyle


class DfedavgmSettings(QuantizableSettings):
    """Settings of DFedAvgM; the defaults are those of the NTK-DFL paper's comparison."""

    name: Literal["dfedavgm"] = "dfedavgm"
    lr: Rate = 0.01
    batch: Batch = 50
    epochs: Epochs = 20
    momentum: Momentum = 0.9


class Dfedavgm(TrainThenAverage[DfedavgmSettings]):
    """Many local passes of SGD with momentum, then one averaging step."""

    Settings = DfedavgmSettings
    label = "DFedAvgM"
    look = LineStyle(VERMILION, (2, 1), "D")
