"""Everything that a configuration says about simulated time, read and drawn."""

from __future__ import annotations

from dataclasses import dataclass

from mpi_ntkdfl.config.environment import Barrier, Deadline, EnvironmentSettings, Neighbours
from mpi_ntkdfl.environment.availability import Availability, availability
from mpi_ntkdfl.environment.links import Floats, Links, speeds


@dataclass(frozen=True)
class Conditions:
    """The conditions under which the clients of a federation work.

    Attributes:
        links: between the nodes.
        speeds: operations per second of each node, `[client + 1]`; the last one is the server.
        availability: who is available when.
        waiting: for whom clients wait.
    """

    links: Links
    speeds: Floats
    availability: Availability
    waiting: Barrier | Neighbours | Deadline

    @classmethod
    def of(cls, settings: EnvironmentSettings, clients: int, seed: int) -> Conditions:
        """What settings describe; random numbers depend on the seed only.

        Raises:
            InputError: if a file that the settings name cannot be used.
        """
        return cls(
            Links.of(settings.links, clients, seed),
            speeds(settings.devices, clients, seed),
            availability(settings, clients, seed),
            settings.waiting,
        )
