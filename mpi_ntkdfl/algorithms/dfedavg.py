"""DFedAvg (Sun, Li, Wang, "Decentralized federated averaging", TPAMI 2023): train, then average."""

from __future__ import annotations

from typing import Literal

from mpi_ntkdfl.algorithms.train_then_average import QuantizableSettings, TrainThenAverage
from mpi_ntkdfl.algorithms.training import Batch, Epochs, Rate
from mpi_ntkdfl.runtime.looks import GREEN, LineStyle


class DfedavgSettings(QuantizableSettings):
    """Settings of DFedAvg; the defaults are those of the NTK-DFL paper's comparison."""

    name: Literal["dfedavg"] = "dfedavg"
    lr: Rate = 0.1
    batch: Batch = 25
    epochs: Epochs = 20


class Dfedavg(TrainThenAverage[DfedavgSettings]):
    """Many local passes of SGD, then one averaging step."""

    Settings = DfedavgSettings
    label = "DFedAvg"
    look = LineStyle(GREEN, (6, 1.5, 1, 1.5), "^")
