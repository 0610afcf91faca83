"""What an audit reconstructs from the messages of a study's runs."""

from __future__ import annotations

import numpy as np

from mpi_ntkdfl.audit.report import audit
from mpi_ntkdfl.studies.collect import Cell

_CLIENTS, _SAMPLES = 2, 3
"""Senders of a run, and samples of each of them, that are attacked."""


def reconstructed(cell: Cell) -> float:
    """PSNR in dB: the median over attacked samples, and the mean over seeds; NaN without an attack."""
    medians = [np.median(audit(f.run.outputs, _CLIENTS, _SAMPLES).psnr()) for f in cell.finished]
    return float(np.mean(medians))
