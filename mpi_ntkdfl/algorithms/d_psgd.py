"""D-PSGD (Lian et al., "Can decentralized algorithms outperform centralized algorithms?", NeurIPS 2017).

This is the version of the NTK-DFL paper: one local pass of SGD between averages. Lian et al. take one
step.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mpi_ntkdfl.algorithms.train_then_average import QuantizableSettings, TrainThenAverage
from mpi_ntkdfl.config import MOST_SAMPLES
from mpi_ntkdfl.runtime.looks import ORANGE, LineStyle


class DPsgdSettings(QuantizableSettings):
    """Settings of D-PSGD; the defaults are those of the NTK-DFL paper's comparison."""

    name: Literal["d-psgd"] = "d-psgd"
    lr: float = Field(default=0.1, gt=0, le=1e30)
    batch: int = Field(default=10, ge=1, le=MOST_SAMPLES)
    epochs: int = Field(default=1, ge=1, le=100_000)


class DPsgd(TrainThenAverage[DPsgdSettings]):
    """One local pass of SGD, then one averaging step."""

    Settings = DPsgdSettings
    label = "D-PSGD"
    look = LineStyle(ORANGE, (4, 1.5), "s")
