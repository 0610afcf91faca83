"""Simulated time in a record: the values of a round, and those from which a resumed run continues."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpi_ntkdfl.metrics import ACTIVE, CLIENT_SECONDS, SIMULATED
from mpi_ntkdfl.runtime.hdf5 import reading


@dataclass(frozen=True)
class Times:
    """Simulated time at the end of a round.

    Attributes:
        seconds: the time on the federation's clock.
        clients: the time at which each client was done with its last round, `[client]`.
        active: which clients took part, `[client]`.
    """

    seconds: float
    clients: np.ndarray
    active: np.ndarray

    @property
    def values(self) -> dict[str, np.ndarray]:
        """The values by the metrics' names."""
        return {
            SIMULATED.name: np.array(self.seconds),
            CLIENT_SECONDS.name: self.clients,
            ACTIVE.name: self.active,
        }


def last_times(path: Path) -> tuple[float, np.ndarray, np.ndarray]:
    """The simulated times with which a run goes on.

    Args:
        path: the record of a run with an environment, cut to the rounds that are done.

    Returns:
        Seconds at the end of the last round; the time at which each client was done, `[client]`; which
        clients took part in the last round with participants, `[client]`, and all clients before such a
        round.
    """
    with reading(path) as file:
        seconds, clients = (file[metric.dataset][-1:] for metric in (SIMULATED, CLIENT_SECONDS))
        active = file[ACTIVE.dataset]
        holders = np.ones(active.shape[1], dtype=bool)
        for number in range(len(active) - 1, -1, -1):
            if (row := active[number].astype(bool)).any():
                holders = row
                break
    if not len(seconds):
        return 0.0, np.zeros(len(holders)), holders
    return float(seconds[0]), clients[0], holders
