"""DFedAvgM (Sun, Li, Wang, "Decentralized federated averaging", TPAMI 2023): DFedAvg with momentum.

In their Algorithm 1 velocities are zero at the start of every round, so they are not carried over.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mpi_ntkdfl.algorithms.train_then_average import QuantizableSettings, TrainThenAverage
from mpi_ntkdfl.config import MOST_SAMPLES
from mpi_ntkdfl.runtime.looks import VERMILION, LineStyle


class DfedavgmSettings(QuantizableSettings):
    """Settings of DFedAvgM; the defaults are those of the NTK-DFL paper's comparison."""

    name: Literal["dfedavgm"] = "dfedavgm"
    lr: float = Field(default=0.01, gt=0, le=1e30)
    batch: int = Field(default=50, ge=1, le=MOST_SAMPLES)
    epochs: int = Field(default=20, ge=1, le=100_000)
    momentum: float = Field(default=0.9, ge=0, lt=1)


class Dfedavgm(TrainThenAverage[DfedavgmSettings]):
    """Many local passes of SGD with momentum, then one averaging step."""

    Settings = DfedavgmSettings
    label = "DFedAvgM"
    look = LineStyle(VERMILION, (2, 1), "D")
