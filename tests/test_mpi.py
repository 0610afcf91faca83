"""Real launches of several ranks: the same bits, large messages, odd graphs, one rank that fails."""

import json
import os
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.analysis import tables
from mpi_ntkdfl.assembly import prepare
from mpi_ntkdfl.config import parse
from mpi_ntkdfl.data.fashion_mnist import FASHION_MNIST
from mpi_ntkdfl.runtime.yaml_text import read_yaml
from mpi_ntkdfl.storage.outputs import Outputs
from tests.conftest import MANY

# A test may wait for two launches of many runs, and a machine may be busy.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Everything in the record that must not depend on the ranks.
INVARIANT = (
    "rounds/round",
    "model/accuracy",
    "model/loss",
    "model/gradient_norm",
    "deviation",
    "traffic/protocol_bytes",
    "traffic/busiest_bytes",
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
SMALL = ("rounds=2", "clients=8", "topology.degree=3")
NTK = ("ntk-dfl", "ntk-fl", "average-gd")
MIDDLE = ("clients=16", "partition.samples=40", "rounds=3", "algorithm.taus=[100, 400]")
ABSENT = (
    "environment={links: {latency: 50ms, up: 10Mbit/s, down: 50Mbit/s, spread: 0.5}, "
    "devices: {speed: 20GFLOP/s, spread: 0.6}, availability: {kind: bernoulli, p: 0.7}}"
)
CASES = {
    "dynamic": (*MIDDLE, "evaluation.sample=100"),
    "static": (*MIDDLE, "topology.dynamic=false"),
    "ring, unequal weights": (*MIDDLE, "topology.kind=ring", "algorithm.averaging=samples"),
    "islands": (*MIDDLE, "topology={kind: erdos-renyi, p: 0.06}"),
    "small waves": (*MIDDLE, "compute.memory_limit=6MB"),
    "dense": ("rounds=2", "clients=8", "topology.degree=3", "algorithm.jacobian=dense"),
    "inputs": (*MIDDLE, "algorithm.jacobian=inputs"),
    "inputs, kept": (*MIDDLE, "topology.dynamic=false", "algorithm.jacobian=inputs"),
    "projected": (*SMALL, "algorithm={jacobian: projected, projection: 48, projected_update: own}"),
    "projected, waves": (
        *SMALL,
        "algorithm={jacobian: projected, projection: 48}",
        "compute.memory_limit=26MB",
    ),
    "per-client starts": (*SMALL, "model.init=per-client", "algorithm.selection=linearised"),
    "ntk-fl": (*SMALL, "algorithm={name: ntk-fl, clients_per_round: 5}"),
    "average-gd": (*SMALL, "algorithm={name: average-gd, taus: [5, 50]}"),
    "average-gd, shared": (
        *SMALL,
        "algorithm={name: average-gd, data: neighbourhood, taus: [5, 50]}",
    ),
    "fashion-mnist": SMALL_FASHION,
    "fashion-mnist, bytes": (
        *SMALL_FASHION,
        "algorithm.jacobian=inputs",
        "topology.dynamic=false",
    ),
    **{name: (*SMALL, f"algorithm.name={name}") for name in METHODS if name not in NTK},
    "absent": (*MIDDLE, "algorithm.momentum=0.5", ABSENT),
    "absent, dfedavg": (*SMALL, "algorithm.name=dfedavg", ABSENT),
    "absent, dispfl": (*SMALL, "algorithm.name=dispfl", ABSENT),
    "absent, ntk-fl": (*SMALL, "algorithm={name: ntk-fl, clients_per_round: 5}", ABSENT),
    "quantised": (*SMALL, "algorithm={name: dfedavg, quantize: 256}"),
    "coded": (
        *MIDDLE,
        "algorithm.codec={weights: {name: random-k, share: 0.3, error_feedback: true, gamma: 0.8}, "
        "averages: {name: quantize, levels: 64, rounding: stochastic, scales: row}, "
        "jacobians: {name: quantize, levels: 32, rounding: stochastic}}",
    ),
    "coded, inputs": (
        *(*MIDDLE, "topology.dynamic=false", "algorithm.jacobian=inputs"),
        "algorithm.codec={weights: {name: bfloat16}, jacobians: {name: subsample, share: 0.4}}",
    ),
    "coded, server": (
        *SMALL,
        "algorithm={name: ntk-fl, clients_per_round: 5, codec: {weights: {name: float16}, "
        "jacobians: {name: top-k, share: 0.3}}}",
    ),
    "absent, coded": (
        *(*SMALL, "topology.dynamic=false", "rounds=3", ABSENT),
        "algorithm={name: d-psgd, codec: {weights: {name: top-k, share: 0.1, error_feedback: true}}}",
    ),
}
RESUMED = (
    "dynamic",
    "inputs, kept",
    "projected",
    "absent",
    "absent, dfedavg",
    "absent, dispfl",
    "absent, ntk-fl",
    "coded",
    "coded, inputs",
    "absent, coded",
    *(name for name in METHODS if name != "ntk-dfl"),
)
# A launch costs seconds a rank, a case less: runs of other numbers of ranks share their launches.
LAUNCHES = {
    1: tuple(CASES),
    3: tuple(case for case in CASES if case != "small waves"),
    2: ("dynamic", "small waves", "fashion-mnist"),
    8: ("per-client starts", "dense", "ntk-fl"),  # one client on each rank
}
HIDDEN = ("dynamic", "small waves")
"""Cases of the test of hidden exchanges."""
BEGIN, GO_ON = 3, 2
"""Ranks that begin a run and that resume it."""


def chosen(names):
    """Those of the cases `names` that this machine can run."""
    have = FASHION_MNIST.packaged.exists()
    return [name for name in names if have or not name.startswith("fashion-mnist")]


@pytest.fixture(scope="module")
def records(request, tmp_path_factory, mpirun):
    """A function of a number of ranks: records of its cases by name, made when first asked for.

    `"resumed"` stands for runs that `BEGIN` ranks began and `GO_ON` ranks finished. Only the cases of the
    tests that this session runs are launched, so `-k dfedavg` launches one method.
    """
    top, launched = tmp_path_factory.mktemp("ranks"), set()
    asked = set()
    for item in request.session.items:
        if item.path == request.path and "records" in item.fixturenames:
            asked |= {item.callspec.params["case"]} if hasattr(item, "callspec") else set(HIDDEN)

    def paths(kind, cases):
        cases = [case for case in cases if case in asked]
        return {name: top / str(kind) / f"{name.replace(' ', '-')}.h5" for name in cases}

    def lines(kind, cases, *words):
        return [
            ["run", "quickstart", *overrides(CASES[name]), "-o", str(path), "-q", *words]
            for name, path in paths(kind, cases).items()
        ]

    def of(kind):
        ranks = GO_ON if kind == "resumed" else kind
        if ranks not in launched:
            todo = lines(ranks, chosen(LAUNCHES[ranks]))
            if ranks == BEGIN:
                todo += lines("resumed", RESUMED, "--set", "rounds=1")
            if ranks == GO_ON:
                of(BEGIN)
                todo += lines("resumed", RESUMED, "--resume")
            done = mpirun(ranks, "-c", MANY, json.dumps(todo), limit=60 + 15 * len(todo))
            assert done.returncode == 0, done.stderr
            launched.add(ranks)
        return paths(kind, RESUMED if kind == "resumed" else LAUNCHES[ranks])

    return of


def overrides(settings):
    return [word for setting in settings for word in ("--set", setting)]


def recorded(path: Path):
    """The configuration of a run."""
    with h5py.File(path) as file:
        written = read_yaml(file.attrs["config"], "config")
    return parse([written])


def assert_same_bits(one: Path, other: Path) -> None:
    """Two runs of one configuration: record, weights and what else the method carries."""
    with h5py.File(one) as a, h5py.File(other) as b:
        names = list(INVARIANT)
        for group in ("clients", "simulated"):
            assert set(a.get(group, ())) == set(b.get(group, ()))
            names += [f"{group}/{each}" for each in a.get(group, ())]
        for name in names:
            assert a[name][:].tobytes() == b[name][:].tobytes(), name
    with h5py.File(Outputs(one).checkpoint) as a, h5py.File(Outputs(other).checkpoint) as b:
        assert np.isfinite(a["params"][:]).all()
        assert list(a) == list(b)
        for name in ("params", *(f"state/{each}" for each in a.get("state", ()))):
            assert a[name][:].tobytes() == b[name][:].tobytes(), name


@pytest.mark.parametrize(
    ("case", "ranks"),
    [(case, ranks) for ranks, cases in LAUNCHES.items() for case in cases if ranks > 1],
)
def test_same_bits_for_any_number_of_ranks(records, case, ranks):
    if case not in chosen(CASES):
        pytest.skip("needs Fashion-MNIST: Debian package dataset-fashion-mnist")
    path = records(ranks)[case]
    assert_same_bits(records(1)[case], path)
    with h5py.File(path) as file:
        statistics = list(file["traffic"].attrs["phases"]).index("statistics")
        sent = file["traffic/mpi_bytes"][:].sum(0)
    assert sent[statistics] > 0
    assert (sent.sum() > sent[statistics]) == (case != "local")


def test_exchanges_are_hidden_where_waves_follow_each_other(records):
    """With a single wave nobody computes while it travels."""
    hidden = {}
    for case in HIDDEN:
        run = tables.read(records(2)[case])
        assert run["in-flight"].shape == run["waited"].shape == run["seconds"].shape[:2]
        assert np.isfinite(run["in-flight"]).all()
        assert (run["waited"] >= 0).all()
        hidden[case] = run["in-flight"] - run["waited"]
        assert (hidden[case] >= 0).all()
    assert (hidden["small waves"] > 0).all()
    assert hidden["small waves"].mean() > hidden["dynamic"].mean()
    assert "in flight beneath computation" in tables.summary(run)


@pytest.mark.parametrize("case", RESUMED)
def test_same_bits_after_resuming_with_other_ranks(records, case):
    path = records("resumed")[case]
    assert_same_bits(records(1)[case], path)
    with h5py.File(path) as file:
        (again,) = json.loads(file.attrs["resumed"])
        assert file.attrs["ranks"] == BEGIN
    assert (again["round"], again["ranks"]) == (1, GO_ON)


@pytest.mark.parametrize("case", [case for case in LAUNCHES[3] if "absent" not in case])
def test_the_plan_is_what_the_ledger_books(records, case):
    """`check` and the exchange count with the same formats but not with the same code."""
    if case not in chosen(CASES):
        pytest.skip("needs Fashion-MNIST: Debian package dataset-fashion-mnist")
    config = recorded(records(3)[case])
    with h5py.File(records(3)[case]) as file:
        phases = list(file["traffic"].attrs["phases"])
        booked = np.stack([file["traffic/protocol_bytes"][0], file["traffic/mpi_bytes"][0]])
    with h5py.File(Outputs(records(1)[case]).checkpoint) as file:
        carried = sum(array.nbytes for array in file.get("state", {}).values())
    memory = prepare(config, 1).plan.memory
    planned = memory.get("method's own", 0) + memory.get("codecs", 0)
    assert carried <= planned, "`Needs.kept` must count what `state` returns"
    plan = prepare(config, 3).plan.traffic
    # How short codes are follows from the data; the plan tells the most they can take.
    lengths = {"quantised": "weights", "coded": "averages"}
    if case in lengths:
        sent = phases.index(lengths[case])
        assert 0.2 * plan[0, sent] < booked[0, sent] < plan[0, sent]
        plan[0, sent] = booked[0, sent]
    if getattr(config.algorithm, "jacobian", None) == "dense":
        # The entries cross twice, slice by slice, each slice padded by itself.
        entries = phases.index("jacobians")
        assert 2 * plan[1, entries] <= booked[1, entries] < 2.02 * plan[1, entries]
        plan[1, entries] = booked[1, entries]
    assert plan[:, :-1].tolist() == booked[:, :-1].tolist()


PEAK = """
import re, sys
from pathlib import Path
from mpi_ntkdfl.cli.main import main
try:
    main()
finally:  # before MPI ends: a launcher may lose what is written later
    found = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())
    sys.stdout.write(f"peak {found[1]}\\n")
    sys.stdout.flush()
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_plan_tells_memory_within_half_of_it(mpirun, tmp_path):
    settings = ("clients=500", "partition.samples=20", "rounds=1", "algorithm.loss=squared")
    words = ["quickstart", *overrides(settings), "-o", tmp_path / "run.h5", "-q"]
    done = mpirun(2, "-c", PEAK, "run", *words)
    assert done.returncode == 0, done.stderr
    peaks = [1024 * int(each) for each in re.findall(r"peak (\d+)", done.stdout)]
    assert len(peaks) == 2
    planned = sum(prepare(recorded(tmp_path / "run.h5"), 2).plan.memory.values())
    assert max(peaks) / 1.5 < planned < 1.5 * max(peaks)


def run_script(mpirun, folder: Path, ranks: int, text: str) -> None:
    script = folder / "script.py"
    script.write_text(text)
    done = mpirun(ranks, script, limit=250)
    assert done.returncode == 0, done.stderr


LARGE = """
import torch
from mpi_ntkdfl.comm.mpi import open_world
world = open_world()
size, little = 2**31 + 2**26, 64  # bytes; one way, since touching memory is what takes long
mine, theirs = (size, little) if world.rank == 0 else (little, size)
send = torch.empty(mine, dtype=torch.uint8).fill_(world.rank + 1)
send[-1] = 77 + world.rank
channel = world.channel([1 - world.rank])
room = torch.empty(theirs, dtype=torch.uint8)
got = channel.start(send, (mine,), (theirs,), room).wait()
assert got.numel() == theirs and int(got[-1]) == 78 - world.rank
assert int(got[:-1].min()) == int(got[:-1].max()) == 2 - world.rank
channel.close()
"""


def free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(free_memory() < 8e9, reason="needs 8 GB of free memory")
def test_messages_above_2_gib(mpirun, tmp_path):
    run_script(mpirun, tmp_path, 2, LARGE)


CHANNELS = """
import torch
from mpi_ntkdfl.comm.mpi import open_world
world = open_world()
# More channels than MPI libraries allow at once, about 2,000. Rank 0 has no neighbour.
others = {0: [], 1: [2], 2: [1]}[world.rank]
for turn in range(2200):
    channel = world.channel(others)
    send = torch.full((64 * len(others),), (world.rank + turn) % 251, dtype=torch.uint8)
    sizes = (64,) * len(others)
    pending = channel.start(send, sizes, sizes, torch.empty_like(send))
    pending.poke()
    got = pending.wait()
    assert all(int(v) == (o + turn) % 251 for o in others for v in got)
    channel.close()
"""


def test_channels_are_freed_and_a_rank_may_be_alone(mpirun, tmp_path):
    run_script(mpirun, tmp_path, 3, CHANNELS)


WORLD = """
import numpy as np
import torch
from mpi_ntkdfl.comm.mpi import Elsewhere, open_world
from mpi_ntkdfl.runtime.errors import InputError
world = open_world()
array = np.arange(7, dtype=np.int16).reshape(7, 1)
assert (world.broadcast(array if world.rank == 0 else None) == array).all()
part = world.scatter(lambda rank: np.full((rank, 2), rank))
assert part.shape == (world.rank, 2) and (part == world.rank).all()
parts = [p.tolist() for p in world.collect(np.full(world.rank + 1, world.rank))]
assert parts == ([[r] * (r + 1) for r in range(world.size)] if world.rank == 0 else [])
assert world.total(np.array([world.rank, 1])).tolist() == [3, 3]
assert world.largest(float(world.rank)) == 2.0
from mpi_ntkdfl.comm.reduce import exact_mean
row = torch.tensor([[float("nan") if world.rank == 1 else 1.0, world.rank]])
mean = exact_mean(world, row, 3).tolist()
assert np.isnan(mean[0]) and mean[1] == 1.0, "every rank learns of one rank's NaN"
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
for numbers in (np.int64(2**40), np.arange(6, dtype=np.int32).reshape(2, 3), np.arange(9_000)):
    total = world.total(np.asarray(numbers) * (world.rank + 1))
    assert total.dtype == numbers.dtype and np.array_equal(total, 6 * numbers)
try:
    world.total(np.array([0.5]))
except TypeError:
    pass
else:
    raise AssertionError("summed floating-point numbers over ranks")
"""


def test_world(mpirun, tmp_path):
    run_script(mpirun, tmp_path, 3, WORLD)
