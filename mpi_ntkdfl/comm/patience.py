"""What is said when the first message between ranks takes long."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from mpi_ntkdfl.comm.world import World

_log = logging.getLogger(__name__)

_PATIENCE = 30.0
"""Seconds after which a rank reports that it still waits for the first message of the others."""

_SHARED_NAMES = ("docker", "virbr", "br-", "lxc", "podman", "cni")
"""Beginnings of names of network interfaces whose addresses are often the same on several hosts."""


@contextlib.contextmanager
def impatient(world: World) -> Iterator[None]:
    """Logs a message with likely causes if the code in the block takes long.

    If several hosts have an interface with the same address, such as Docker's, Open MPI may try to reach
    the other hosts by it, and waits for ever.
    """
    timer = threading.Timer(_PATIENCE, lambda: _log.error("%s", _complaint(world)))
    timer.daemon = True
    if world.size > 1:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _complaint(world: World) -> str:
    interfaces = Path("/sys/class/net")
    names = sorted(each.name for each in interfaces.iterdir()) if interfaces.exists() else []
    doubtful = [name for name in names if name.startswith(_SHARED_NAMES)]
    listed = f" (this host has: {', '.join(doubtful)})" if doubtful else ""
    return (
        f"rank {world.rank} on {socket.gethostname()} has waited {_PATIENCE:.0f} s for the first message "
        f"of the other ranks by {world.library}: a rank may not have started, or MPI uses a network "
        "that does not connect the hosts, such as docker0, which has the same address on all hosts"
        f"{listed}. Name the network: mpirun --mca btl_tcp_if_include 10.0.0.0/8 for Open MPI, "
        "UCX_NET_DEVICES=eth0 for MPICH with UCX"
    )
