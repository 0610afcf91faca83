"""Real launches of several ranks: the same bits, large messages, odd graphs, one rank that fails."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.assembly import prepare
from mpi_ntkdfl.config import parse, read_yaml
from mpi_ntkdfl.hdf5 import plain
from tests.conftest import needs_fashion

pytestmark = pytest.mark.slow

# Everything in the record that must not depend on the ranks.
INVARIANT = (
    "rounds/round",
    "clients/accuracy",
    "clients/loss",
    "clients/tau",
    "model/accuracy",
    "model/loss",
    "model/gradient_norm",
    "deviation",
    "traffic/protocol_bytes",
    "topology/edges",
    "topology/offsets",
    "partition/offsets",
    "partition/indices",
)

SMALL_FASHION = (
    "dataset.name=fashion-mnist",
    "clients=8",
    "partition.samples=40",
    "topology.degree=3",
    "rounds=3",
    "algorithm.taus=[20, 100]",
)
CASES = {
    "dynamic": ("rounds=5",),
    "static": ("rounds=5", "topology.dynamic=false"),
    "ring, unequal weights": ("rounds=3", "topology.kind=ring", "algorithm.averaging=samples"),
    "islands": ("rounds=3", "topology={kind: erdos-renyi, p: 0.03}"),
    "small waves": ("rounds=3", "compute.memory_limit=6MB"),
    "dense": ("rounds=2", "clients=8", "topology.degree=3", "algorithm.jacobian=dense"),
    "per-client starts": ("rounds=2", "model.init=per-client", "algorithm.selection=linearised"),
    "fashion-mnist": SMALL_FASHION,
}
LAUNCHES = [
    *(("dynamic", ranks) for ranks in (2, 3, 4, 7)),
    ("static", 3),
    ("ring, unequal weights", 4),
    ("islands", 4),
    ("small waves", 2),
    ("dense", 3),
    ("per-client starts", 3),
    *(pytest.param("fashion-mnist", ranks, marks=needs_fashion) for ranks in (2, 3)),
]


def run_case(simulate, case, ranks, folder: Path) -> Path:
    path = folder / f"{case.replace(' ', '-')}-{ranks}.h5"
    overrides = [word for override in CASES[case] for word in ("--set", override)]
    done = simulate(ranks, "run", "quickstart", *overrides, "-o", path, "-q")
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def baselines(tmp_path_factory):
    """Records of single ranks, made when first asked for."""
    return tmp_path_factory.mktemp("baselines"), {}


@pytest.mark.parametrize(("case", "ranks"), LAUNCHES)
def test_same_bits_for_any_number_of_ranks(simulate, baselines, tmp_path, case, ranks):
    folder, made = baselines
    if case not in made:
        made[case] = run_case(simulate, case, 1, folder)
    path = run_case(simulate, case, ranks, tmp_path)
    with h5py.File(made[case]) as one, h5py.File(path) as many:
        for name in INVARIANT:
            assert one[name][:].tobytes() == many[name][:].tobytes(), name
        assert many["traffic/mpi_bytes"][:].sum() > 0
    checkpoints = [p.with_name(p.stem + ".ckpt.h5") for p in (made[case], path)]
    with h5py.File(checkpoints[0]) as one, h5py.File(checkpoints[1]) as many:
        assert np.isfinite(many["params"][:]).all()
        assert one["params"][:].tobytes() == many["params"][:].tobytes()


@pytest.mark.parametrize("jacobian", ["factored", "dense"])
def test_the_plan_is_what_the_ledger_books(simulate, tmp_path, jacobian):
    """`check` and the exchange count with the same formats but not with the same code."""
    path = tmp_path / "run.h5"
    settings = ("clients=9", "topology.degree=4", "rounds=1", f"algorithm.jacobian={jacobian}")
    overrides = [word for override in settings for word in ("--set", override)]
    assert simulate(3, "run", "quickstart", *overrides, "-o", path, "-q").returncode == 0
    with h5py.File(path) as file:
        config = parse(
            [read_yaml(plain(file.attrs["config"]), "config")],
            {name: method.Settings for name, method in METHODS.items()},
        )
        phases = list(map(plain, file["traffic"].attrs["phases"]))
        booked = np.stack([file["traffic/protocol_bytes"][0], file["traffic/mpi_bytes"][0]])
    plan = prepare(config, 3).plan.traffic
    if jacobian == "dense":
        # The entries cross twice, slice by slice, each slice padded by itself.
        entries = phases.index("jacobians")
        assert 2 * plan[1, entries] <= booked[1, entries] < 2.02 * plan[1, entries]
        plan[1, entries] = booked[1, entries]
    assert plan[:, :-1].tolist() == booked[:, :-1].tolist()


def test_32_ranks(simulate, tmp_path):
    done = simulate(32, "run", "--set", "rounds=2", "-o", tmp_path / "run.h5", "-q", limit=280)
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "run.h5") as file:
        assert file["time/seconds"].shape[:2] == (2, 32)


def run_script(mpirun, folder: Path, ranks: int, text: str) -> None:
    script = folder / "script.py"
    script.write_text(text)
    done = mpirun(ranks, script, limit=250)
    assert done.returncode == 0, done.stderr


LARGE = """
import torch
from mpi_ntkdfl.comm.mpi import open_world
world = open_world()
other = 1 - world.rank
size = 3 * 10**9 // 64 * 64
send = torch.empty(size, dtype=torch.uint8).fill_(world.rank + 1)
send[-1] = 77 + world.rank
channel = world.channel([other])
got = channel.start(send, [size], [size]).wait()
assert got.numel() == size and bool((got[:-1] == other + 1).all()) and int(got[-1]) == 77 + other
channel.close()
"""


def free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(free_memory() < 16e9, reason="needs 16 GB of free memory")
def test_messages_of_3_gb(mpirun, tmp_path):
    run_script(mpirun, tmp_path, 2, LARGE)


CHANNELS = """
import torch
from mpi_ntkdfl.comm.mpi import open_world
world = open_world()
# Many more channels than MPI libraries allow at once. Rank 0 has no neighbour.
others = {0: [], 1: [2], 2: [1]}[world.rank]
for turn in range(3000):
    channel = world.channel(others)
    send = torch.full((64 * len(others),), (world.rank + turn) % 251, dtype=torch.uint8)
    pending = channel.start(send, [64] * len(others), [64] * len(others))
    pending.poke()
    got = pending.wait()
    assert all(int(v) == (o + turn) % 251 for o in others for v in got)
    channel.close()
"""


def test_channels_are_freed_and_a_rank_may_be_alone(mpirun, tmp_path):
    run_script(mpirun, tmp_path, 3, CHANNELS)


WORLD = """
import numpy as np
from mpi_ntkdfl.comm.mpi import Elsewhere, open_world
from mpi_ntkdfl.errors import InputError
world = open_world()
array = np.arange(7, dtype=np.int16).reshape(7, 1)
assert (world.broadcast(array if world.rank == 0 else None) == array).all()
part = world.scatter(lambda rank: np.full((rank, 2), rank))
assert part.shape == (world.rank, 2) and (part == world.rank).all()
parts = [p.tolist() for p in world.collect(np.full(world.rank + 1, world.rank))]
assert parts == ([[r] * (r + 1) for r in range(world.size)] if world.rank == 0 else [])
assert world.total(np.array([world.rank, 1])).tolist() == [3, 3]
assert world.largest(float(world.rank)) == 2.0
assert world.on_root(lambda: "told") == "told"
def fail_on(rank):
    if world.rank == rank:
        raise InputError("no")
for verb, speaker in ((world.on_root, 0), (world.agree, 2)):
    try:
        verb(lambda: fail_on(speaker))
    except InputError as error:
        assert isinstance(error, Elsewhere) == (world.rank != speaker)
    else:
        raise AssertionError("nothing raised")
try:
    world.total(np.array([0.5]))
except TypeError:
    pass
else:
    raise AssertionError("summed floating-point numbers over ranks")
"""


def test_world(mpirun, tmp_path):
    run_script(mpirun, tmp_path, 3, WORLD)
