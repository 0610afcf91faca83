"""What the environment says about the launcher (mpirun, srun) before MPI starts, and names of nodes."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

_LAUNCHED_SIZE = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "PMIX_SIZE")
_LAUNCHED_RANK = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID")


_LAUNCHERS = ("mpirun", "mpiexec", "mpiexec.hydra", "prterun")
"""Names of the processes of launchers that start ranks on several hosts themselves."""


def _from_environment(names: Sequence[str], default: int) -> int:
    for name in names:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return default


def launched_rank() -> int:
    """The rank that the launcher gave to this process; 0 without a launcher."""
    return _from_environment(_LAUNCHED_RANK, 0)


def launched_size() -> int:
    """The number of processes that the launcher says it started; 1 without a launcher."""
    return _from_environment(_LAUNCHED_SIZE, 1)


def under_launcher() -> bool:
    """Whether a launcher started this process, also if it started only this one."""
    return any(name in os.environ for name in _LAUNCHED_SIZE)


def node_names(hosts: Sequence[str], leaders: Sequence[int]) -> tuple[str, ...]:
    """A name for the node of every rank, `[rank]`. Different nodes have different names.

    Containers may give several nodes the same host name; the second one is called `NAME (2)`.

    Args:
        hosts: the host name that every rank sees.
        leaders: the lowest rank on the node of every rank, as MPI reports it, `[rank]`.
    """
    seen = Counter[str]()
    names: dict[int, str] = {}
    for rank in sorted(set(leaders)):
        host = hosts[rank]
        seen[host] += 1
        names[rank] = host if seen[host] == 1 else f"{host} ({seen[host]})"
    return tuple(names[leader] for leader in leaders)


def not_all_started() -> str:
    """The message of a rank that waited in vain for the other ranks to start."""
    import socket

    return (
        f"error: rank {launched_rank()} on {socket.gethostname()} waited in vain for all "
        f"{launched_size()} ranks to start: a rank ended early, or the ranks cannot reach each other "
        "(name the network: Open MPI with --mca btl_tcp_if_include, MPICH with UCX_NET_DEVICES)"
    )


def end_launcher_later(seconds: float) -> None:
    """Kills the launcher, if it is on this host and still runs after so many seconds.

    MPICH's mpirun waits for ever for its part on a host that has lost its power, and it ignores SIGTERM
    meanwhile. This process ends earlier, so another one does it.
    """
    import subprocess

    with contextlib.suppress(OSError, IndexError):
        process = os.getppid()
        while (name := Path(f"/proc/{process}/comm").read_text().strip()) not in _LAUNCHERS:
            stat = Path(f"/proc/{process}/stat").read_text()
            process = int(stat.rpartition(")")[2].split()[1])
        still = f'[ "$(cat /proc/{process}/comm)" = {name} ]'
        subprocess.Popen(
            ["sh", "-c", f"sleep {seconds}; {still} && kill -9 {process}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
