"""Real launches that are killed or signalled, and go on with another number of ranks."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest

from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.storage.checkpoint import newest
from mpi_ntkdfl.storage.outputs import Outputs
from tests.children import bits, command, rounds_in
from tests.conftest import environment, find_mpirun, launcher

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_mpirun() is None, reason="needs mpirun"),
    pytest.mark.timeout(600),
]

SHORT = {
    "clients": "6",
    "topology.degree": "3",
    "partition.samples": "40",
    "model.hidden": "[16]",
    "algorithm.taus": "[20, 40]",
    "compute.device": "cpu",
}
KILLS = 12
PARTS = ("--set", "output.checkpoint_part=1")
"""Every rank writes its own part of a checkpoint."""


def words(path, rounds, *flags):
    settings = SHORT | {"rounds": str(rounds)}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["-m", "mpi_ntkdfl", "run", "quickstart", "-o", str(path), "-q", *flags, *sets]


def alone(path, rounds, *flags):
    """The same run in one process, without a launch."""
    return command(*words(path, rounds, *flags)[2:]).wait()


class Launch:
    """A launch of several ranks, in a process group of its own."""

    def __init__(self, ranks, args, log):
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [*launcher(ranks), sys.executable, *args],
                env=environment(),
                start_new_session=True,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def below(self):
        """The launcher's descendants."""
        children: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
        found, todo = [], [self.process.pid]
        while todo:
            below = children.get(todo.pop(), [])
            todo += below
            found += below
        return found

    def ranks(self):
        """Processes of the ranks: Python processes among the launcher's descendants."""
        found = []
        for each in self.below():
            with contextlib.suppress(OSError):
                arguments = Path(f"/proc/{each}/cmdline").read_bytes().split(b"\0")
                if b"python" in arguments[0] and b"quickstart" in arguments:
                    found.append(each)
        return found

    def by_rank(self):
        """The process of each rank."""
        found = {}
        for each in self.ranks():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{each}/environ").read_bytes().split(b"\0"):
                    name, _, value = line.partition(b"=")
                    if name in (b"PMI_RANK", b"OMPI_COMM_WORLD_RANK"):
                        found[int(value)] = each
        return found

    def progress(self, path, done, limit=120):
        """Waits until the record has `done` rounds, or the end."""
        deadline = time.monotonic() + limit
        while self.process.poll() is None and time.monotonic() < deadline:
            if rounds_in(path) >= done:
                return
            time.sleep(0.01)
        assert self.process.poll() is not None, "no progress"

    def kill_all(self):
        """As a batch system does at the end: nobody is asked."""
        ranks = self.ranks()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for rank in ranks:  # some launchers give each rank a session of its own
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, signal.SIGKILL)

    def end(self, limit=60):
        return self.process.wait(limit)

    def end_or_be_left(self, limit):
        """The same; MPICH's launcher stays when a proxy has died, and is killed when no rank runs."""
        ranks, deadline = self.ranks(), time.monotonic() + limit
        while self.process.poll() is None and alive(ranks) and time.monotonic() < deadline:
            time.sleep(0.1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.end(3)
        if alive(ranks):
            raise subprocess.TimeoutExpired("ranks", limit)
        self.kill_all()
        return self.end()

    def said(self):
        return self.log.read_text()


def checkpointed(path):
    try:
        with newest(Outputs(path)) as found:
            return found.round
    except InputError:
        return 0


def test_twelve_kills_at_random_moments_change_no_bit(tmp_path):
    """All ranks at once, or one of them; while starting, computing, writing one file or parts."""
    seed = int(os.environ.get("KILLS_SEED", time.time_ns() % 10**6))
    print(f"KILLS_SEED={seed}")
    chance = random.Random(seed)
    rounds = 60
    undisturbed, path = tmp_path / "whole.h5", tmp_path / "run.h5"
    assert alone(undisturbed, rounds).code == 0
    for kill in range(KILLS):
        ranks = chance.choice([1, 2, 3])
        parted = chance.choice([(), PARTS])
        launch = Launch(ranks, words(path, rounds, "--resume", *parted), tmp_path / "log")
        before, saved = rounds_in(path), checkpointed(path)
        assert before - saved <= 1, "more than a round would be lost"
        if kill % 7 == 6:
            time.sleep(chance.uniform(0, 2))  # it is still loading libraries
        else:
            launch.progress(path, min(max(before, 0) + 1, rounds))
            time.sleep(chance.expovariate(1 / 0.05))
        victims = launch.ranks()
        if kill % 2 and victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(victims), signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                launch.end(10)
            assert launch.process.poll() is not None, "the others do not stop"
        launch.kill_all()
        launch.end()
    assert rounds_in(path) < rounds, "finished before the last kill"
    launch = Launch(3, words(path, rounds, "--resume", *PARTS), tmp_path / "log")
    assert launch.end(120) == 0, launch.said()
    assert bits(path) == bits(undisturbed)
    left = {p.name for p in tmp_path.iterdir() if p.name.startswith("run")}
    assert left == {"run.h5", "run.ckpt.h5", "run.ckpt-1.h5", "run.ckpt.parts"}
    assert len(list(Outputs(path).parts.iterdir())) in (3, 4, 5, 6), "of one or two checkpoints"


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_to_the_launcher_ends_the_run_with_a_checkpoint(tmp_path, number):
    """MPICH's mpirun passes both on, Open MPI's SIGUSR1."""
    if number == signal.SIGTERM and "--oversubscribe" in launcher(1):
        pytest.skip("this launcher kills the ranks on SIGTERM")
    path = tmp_path / "run.h5"
    launch = Launch(2, words(path, 10_000), tmp_path / "log")
    launch.progress(path, 2)
    launch.process.send_signal(number)
    assert launch.end(30) == 75, launch.said()
    done = rounds_in(path)
    assert f"stopped after round {done} of 10000 ({number.name})" in launch.said()
    assert checkpointed(path) == done
    assert alone(path, done + 2, "--resume").code == 0
    assert rounds_in(path) == done + 2


CHAOS = int(os.environ.get("CHAOS", "6"))
"""Starts that are disturbed; `CHAOS=60 CHAOS_SEED=1 pytest tests/test_kills.py -k chaos` takes longer."""

LONG = (
    "--set",
    "algorithm.lr_decay=0",
    "--set",
    "algorithm.lr=0.001",
    "--set",
    "compute.timeout=4",
)
"""A run that has something left to learn for long, and does not wait for long."""

DISTURBANCES = (
    *(signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1),
    *(signal.SIGSTOP, signal.SIGCONT),
)
"""SIGCONT stands for SIGSTOP that is followed by it."""

STOPPED, SILENT, KILLED = 75, 69, (1, 9, 15, 129, 130, 137, 138, 143, 255)
"""Exit codes: those of docs/reliability.md, and what launchers make of processes that were killed."""


def disturb(launch, path, ranks, chance):
    """Signals a rank, all ranks, a proxy or the launcher at a random moment; says what it did."""
    launch.progress(path, max(rounds_in(path), 0) + 1)
    time.sleep(chance.expovariate(1 / 0.1))
    number, found = chance.choice(DISTURBANCES), launch.ranks()
    proxies = [each for each in launch.below() if each not in found]
    groups = [found[:1], found[-1:], found, proxies, [launch.process.pid]]
    victims = chance.choice([group for group in groups if group])
    # Nobody else can notice that a launcher, or the only rank, is stopped.
    if number == signal.SIGSTOP and (ranks == 1 or not set(victims) < set(found)):
        number = signal.SIGCONT
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGSTOP if number == signal.SIGCONT else number)
    if number == signal.SIGCONT:
        time.sleep(chance.uniform(0, 1))
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGCONT)
        launch.process.send_signal(signal.SIGUSR1)  # so that it ends
    return number.name, len(victims), ranks


def test_chaos(tmp_path):
    """Whatever happens to ranks, proxies and launchers: all end, no bit changes, nobody is left."""
    seed = int(os.environ.get("CHAOS_SEED", time.time_ns() % 10**6))
    print(f"CHAOS_SEED={seed}")
    chance, rounds, path = random.Random(seed), 10_000, tmp_path / "run.h5"
    for _ in range(CHAOS):
        ranks = chance.choice([1, 2, 3])
        launch = Launch(ranks, words(path, rounds, "--resume", *LONG), tmp_path / "log")
        done = disturb(launch, path, ranks, chance)
        below = launch.below()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                launch.end(12)
            if launch.process.poll() is None:  # a proxy, which passes nothing on
                launch.process.send_signal(signal.SIGUSR1)
            code = launch.end_or_be_left(40)
        except subprocess.TimeoutExpired:
            raise AssertionError((done, launch.said())) from None
        finally:
            deadline = time.monotonic() + 20
            while (left := alive(below)) and time.monotonic() < deadline:
                time.sleep(0.1)
            launch.kill_all()
            for each in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
        print(*done, "exit", code)
        assert not left, (done, code, launch.said())
        assert abs(code) in (0, STOPPED, SILENT, *KILLED), (done, code, launch.said())
        assert "Traceback" not in launch.said(), launch.said()
        assert code == SILENT or "error: " not in launch.said().replace(
            "error: nothing was heard", ""
        )
    end = checkpointed(path) + 1
    assert alone(path, end, "--resume", *LONG).code == 0
    assert alone(tmp_path / "whole.h5", end, *LONG).code == 0
    assert bits(path) == bits(tmp_path / "whole.h5")


def alive(processes):
    """Those that run; zombies do not."""
    states = {}
    for each in processes:
        with contextlib.suppress(OSError):
            states[each] = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[0]
    return [each for each, state in states.items() if state != "Z"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stopped_ends_the_others(tmp_path, whole, rank):
    path = tmp_path / "run.h5"
    args = [*words(path, 10_000), "--set", "compute.timeout=3"]
    launch = Launch(3, args, tmp_path / "log")
    launch.progress(path, 2)
    victim = launch.by_rank()[rank]
    os.kill(victim, signal.SIGSTOP)
    stopped = time.monotonic()
    assert launch.end(30) in (SILENT, *KILLED)
    assert time.monotonic() - stopped < 3 + 5
    assert (
        f"nothing was heard of rank {rank} on {socket.gethostname()} for 3 s, in round"
        in launch.said()
    )
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    assert alone(path, checkpointed(path) + 1, "--resume").code == 0


NEVER_STARTS = """
import os, signal, sys, time
from mpi_ntkdfl.cli import run

how, run.START_LIMIT = sys.argv.pop(1), 4.0
if os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")) == "1":
    os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[how])
from mpi_ntkdfl.cli.main import main
main()
"""


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_rank_that_never_starts_mpi_ends_the_others(tmp_path, how):
    script = tmp_path / "never.py"
    script.write_text(NEVER_STARTS)
    launch = Launch(3, [str(script), how, *words(tmp_path / "x.h5", 2)[2:]], tmp_path / "log")
    below = launch.below()
    assert launch.end(40) not in (0, 2, STOPPED)
    launch.kill_all()
    assert how == "kill" or "waited in vain for all 3 ranks to start" in launch.said()
    assert not alive(below)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_ranks_whose_launcher_has_died_end_with_a_checkpoint(tmp_path, number):
    path = tmp_path / "run.h5"
    launch = Launch(2, words(path, 10_000, *LONG), tmp_path / "log")
    launch.progress(path, 1)
    ranks = launch.ranks()
    for proxy in set(launch.below()) - set(ranks) or {launch.process.pid}:
        os.kill(proxy, number)
    deadline = time.monotonic() + 30
    while alive(ranks) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(ranks)
    launch.kill_all()
    assert alone(path, checkpointed(path) + 1, "--resume", *LONG).code == 0


FAILING = """
import os, resource, signal, sys
import numpy
from mpi_ntkdfl.cli import main as cli
from mpi_ntkdfl.algorithms import ntk_dfl

how, rank = sys.argv.pop(1), int(os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")))
step, place = ntk_dfl.ntk_step, {"calls": 0}

def failing(*args):
    place["calls"] += 1
    if rank == 1 and place["calls"] == 7:
        print("failing", flush=True)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "raise":
            raise RuntimeError("made to fail")
        resource.setrlimit(resource.RLIMIT_AS, (2**35, 2**35))
        numpy.ones(2**33)
    return step(*args)

ntk_dfl.ntk_step = failing
cli.main()
"""
"""Rank 1, which has clients 3 to 5, fails at the first of them in round 2."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Bits of six rounds, undisturbed."""
    path = tmp_path_factory.mktemp("whole") / "run.h5"
    assert alone(path, 6).code == 0
    return bits(path)


@pytest.mark.parametrize("how", ["raise", "kill", "memory"])
def test_a_rank_that_fails_ends_all_and_the_run_goes_on_later(tmp_path, whole, how):
    path, script = tmp_path / "run.h5", tmp_path / "failing.py"
    script.write_text(FAILING)
    args = [str(script), how, *words(path, 6)[2:]]
    launch = Launch(2, args, tmp_path / "log")
    while "failing" not in launch.said():
        assert launch.process.poll() is None, launch.said()
        time.sleep(0.02)
    failed = time.monotonic()
    assert launch.end(30) not in (0, 2, 75)
    assert time.monotonic() - failed < 5
    if how != "kill":
        what = "made to fail" if how == "raise" else r"Unable to allocate .*"
        (error,) = [line for line in launch.said().splitlines() if line.startswith("error: ")]
        assert re.fullmatch(rf"error: {what} \(rank 1, client 3, round 2\)", error)
        assert "Traceback" in launch.said()
    assert (rounds_in(path), checkpointed(path)) == (2, 2)
    assert not list(tmp_path.glob(".*-tmp"))
    assert "2 ranks" in command("show", path).wait().out
    assert command("export", path, "--client", 0, tmp_path / "w.pt").wait().code == 0
    assert alone(path, 6, "--resume").code == 0
    assert bits(path) == whole


MEASURED = """
import os
from mpi_ntkdfl.cli import main as cli
from mpi_ntkdfl.comm import point_channel as neighbours
from mpi_ntkdfl.simulation import Simulation

opened, sizes, look = [0], [], Simulation._look_around

class Counted(neighbours.PointChannel):
    def __init__(self, *args):
        opened[0] += 1
        super().__init__(*args)

    def close(self):
        opened[0] -= 1
        super().close()

neighbours.PointChannel = Counted

def look_around(self, done):
    if done and done % 50 == 0:
        pages = int(open("/proc/self/statm").read().split()[1])
        sizes.append(pages * os.sysconf("SC_PAGE_SIZE"))
    if done == 200:
        print(f"rank {self.world.rank} opened {opened[0]} sizes {sizes}", flush=True)
    return look(self, done)

Simulation._look_around = look_around
cli.main()
"""


def test_memory_is_flat_over_200_rounds(tmp_path):
    """Resident memory of each rank after 50, 100, 150 and 200 rounds, a new graph every round."""
    path, script = tmp_path / "run.h5", tmp_path / "measured.py"
    script.write_text(MEASURED)
    launch = Launch(2, [str(script), *words(path, 200)[2:]], tmp_path / "log")
    assert launch.end(200) == 0, launch.said()
    found = re.findall(r"rank (\d) opened (\d+) sizes \[([^]]*)\]", launch.said())
    assert sorted(rank for rank, *_ in found) == ["0", "1"]
    for _, opened, sizes in found:
        first, *_, last = map(int, sizes.split(","))
        assert int(opened) <= 1, "channels stay open"
        assert last - first < 4 * 2**20, sizes
    with h5py.File(path) as file:
        assert len(file["topology/offsets"]) == 201
