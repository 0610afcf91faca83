"""DFedAvg (Sun, Li, Wang, "Decentralized federated averaging", TPAMI 2023): train, then average."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mpi_ntkdfl.algorithms.train_then_average import QuantizableSettings, TrainThenAverage
from mpi_ntkdfl.config import MOST_SAMPLES
from mpi_ntkdfl.runtime.looks import GREEN, LineStyle


class DfedavgSettings(QuantizableSettings):
    """Settings of DFedAvg; the defaults are those of the NTK-DFL paper's comparison."""

    name: Literal["dfedavg"] = "dfedavg"
    lr: float = Field(default=0.1, gt=0, le=1e30)
    batch: int = Field(default=25, ge=1, le=MOST_SAMPLES)
    epochs: int = Field(default=20, ge=1, le=100_000)


class Dfedavg(TrainThenAverage[DfedavgSettings]):
    """Many local passes of SGD, then one averaging step."""

    Settings = DfedavgSettings
    label = "DFedAvg"
    look = LineStyle(GREEN, (6, 1.5, 1, 1.5), "^")
