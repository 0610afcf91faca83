"""Which clients take part in the current round. Without an environment all clients do, in all rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mpi_ntkdfl.topology.graphs import Graph
from mpi_ntkdfl.topology.present import Hearing


@dataclass
class Presence:
    """Which clients take part in a round, and which messages come in time. It is the same on all ranks.

    Attributes:
        present: which clients take part, `[client]`; None for all.
        holders: which clients received a server's last model, `[client]`; None for all.
        late: which clients' messages to a server are late, `[client]`; None for none.
        heard: for phases with late messages, the clients whose messages each client uses. In all other
            phases a client uses the messages of all its neighbours.
    """

    present: np.ndarray | None = None
    holders: np.ndarray | None = None
    late: np.ndarray | None = None
    heard: Mapping[str, Graph | Hearing] = field(default_factory=dict)

    def absent(self, client: int) -> bool:
        """Whether a client takes no part in the round."""
        return self.present is not None and not self.present[client]

    def absent_of(self, clients: range) -> np.ndarray:
        """Positions of the absent clients in `clients`, ascending."""
        if self.present is None:
            return np.zeros(0, dtype=np.int64)
        return np.flatnonzero(~self.present[clients.start : clients.stop])

    def ids(self, clients: int) -> np.ndarray:
        """Ids of the clients that take part, ascending; `clients` is the number of all."""
        return np.arange(clients) if self.present is None else np.flatnonzero(self.present)

    def delivered(self, clients: int) -> np.ndarray:
        """Ids of the clients whose messages reach a server in time, ascending."""
        present = self.ids(clients)
        return present if self.late is None else present[~self.late[present]]

    @property
    def askable(self) -> np.ndarray | None:
        """Ids of the clients that take part and hold a server's model, ascending; None for all."""
        if self.present is None or self.holders is None:
            return None
        return np.flatnonzero(self.present & self.holders)

    @property
    def first_holder(self) -> int | None:
        """A client that holds a server's model; None if all do."""
        if self.holders is None or self.holders.all():
            return None
        return int(np.argmax(self.holders))
