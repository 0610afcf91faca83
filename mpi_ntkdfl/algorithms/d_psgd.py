"""D-PSGD (Lian et al., "Can decentralized algorithms outperform centralized algorithms?", NeurIPS 2017).

This is the version of the NTK-DFL paper: one local pass of SGD between averages. Lian et al. take one
step.
"""

from __future__ import annotations

from typing import Literal

from mpi_ntkdfl.algorithms.train_then_average import QuantizableSettings, TrainThenAverage
from mpi_ntkdfl.algorithms.training import Batch, Epochs, Rate
from mpi_ntkdfl.runtime.looks import ORANGE, LineStyle


class DPsgdSettings(QuantizableSettings):
    """Settings of D-PSGD; the defaults are those of the NTK-DFL paper's comparison."""

    name: Literal["d-psgd"] = "d-psgd"
    lr: Rate = 0.1
    batch: Batch = 10
    epochs: Epochs = 1


class DPsgd(TrainThenAverage[DPsgdSettings]):
    """One local pass of SGD, then one averaging step."""

    Settings = DPsgdSettings
    label = "D-PSGD"
    look = LineStyle(ORANGE, (4, 1.5), "s")
