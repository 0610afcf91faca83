"""What only several hosts have: their names, another package on one of them, bytes on the wire."""

from __future__ import annotations

import shutil

import pytest

from tests.conftest import ROOT

WHERE = """
from mpi_ntkdfl.comm.mpi import open_world
world = open_world()
found = world.comm.gather((world.hosts[world.rank], world.local_rank))
if found is not None:  # on one rank, because launchers mix the lines of several
    print(*found, sep="; ", flush=True)
"""


def test_hosts_of_one_name_are_told_apart_by_their_memory(hosts):
    done = hosts.mpirun(2, "-c", WHERE)
    assert done.returncode == 0, done.stderr
    names = ("web", "web (2)", "web (3)")
    expected = [str((name, number)) for name in names for number in (0, 1)]
    assert done.stdout.strip().split("; ") == expected


def test_another_package_on_one_host_is_refused_with_its_name(hosts):
    package, copied = ROOT / "mpi_ntkdfl", hosts.folder / "other"
    shutil.copytree(package, copied, ignore=shutil.ignore_patterns("jobs", "__pycache__"))
    (copied / "ntk/update.py").write_text("")
    assert hosts.run("n2", "mount", "--bind", copied, package).returncode == 0
    try:
        done = hosts.mpirun(1, "-m", "mpi_ntkdfl", "run", "quickstart", "-o", "run.h5")
    finally:
        hosts.run("n2", "umount", package)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error:") == 1
    assert " on web; sources " in done.stderr
    assert not (hosts.folder / "run.h5").exists()


BROADCAST = """
import numpy as np
from mpi_ntkdfl.comm.mpi import open_world
world = open_world()
def sent():
    counter = open("/sys/class/net/eth0/statistics/rx_bytes")
    return np.array([int(counter.read()) if world.local_rank == 0 else 0])
size = 8 * 2**20
world.broadcast(np.ones(2**20) if world.rank == 0 else None)  # what MPI does at its first use
before = sent()
got = world.broadcast(np.arange(size, dtype=np.uint8) if world.rank == 0 else None)
assert np.array_equal(got, np.arange(size, dtype=np.uint8))
world.comm.Barrier()
crossed = world.total(sent() - before)
if world.rank == 0:
    print(crossed[0] / size, flush=True)
"""


@pytest.mark.slow
def test_a_large_array_crosses_the_network_once_per_host(hosts):
    """Two hosts receive it; MPI's own broadcast carries it to each of them more than once."""
    done = hosts.mpirun(4, "-c", BROADCAST)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2.2
