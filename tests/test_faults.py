"""What goes wrong around a run: two at once, no room, no folder, signals, time limits; onlookers."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager

import pytest

from mpi_ntkdfl.algorithms.ntk_dfl import NtkDfl
from mpi_ntkdfl.analysis import tables
from mpi_ntkdfl.cli import run as cli_run
from mpi_ntkdfl.data import partition
from mpi_ntkdfl.runtime import stopping
from mpi_ntkdfl.storage import lock
from mpi_ntkdfl.storage.checkpoint import Checkpoint
from mpi_ntkdfl.storage.outputs import Outputs
from tests.children import (
    after_round,
    assert_refused,
    before_agreeing,
    bits,
    command,
    files,
    interrupted,
    rounds_in,
    run,
    run_words,
)

pytestmark = pytest.mark.usefixtures("quick_starts")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Bits of the tiny run, undisturbed."""
    path = tmp_path_factory.mktemp("whole") / "run.h5"
    assert run(path).code == 0
    return bits(path)


@pytest.fixture(scope="module")
def whole_wide(tmp_path_factory):
    """The same with a checkpoint that is larger than the record."""
    path = tmp_path_factory.mktemp("wide") / "run.h5"
    assert run(path, **WIDE).code == 0
    return bits(path)


def show(path, *words):
    ended = command("show", path, *words).wait()
    assert (ended.code, ended.err) == (0, ""), ended
    return ended.out


@contextmanager
def held(path, done, *flags, **changes):
    """A run that waits once `done` rounds are recorded; yields it and what lets it go on."""
    end, start = os.pipe()
    told, tell = os.pipe()

    def wait():
        os.write(tell, b".")
        os.read(end, 1)

    child = command(*run_words(path, *flags, **changes), before=after_round(done, wait))
    os.read(told, 1)
    yield child, lambda: os.write(start, b".")
    for descriptor in (end, start, told, tell):
        os.close(descriptor)


# ------------------------------------------------------------------------------------------ the lock


def test_one_run_at_a_time_and_show_tells_which(path, whole):
    with held(path, 1) as (first, go):
        before = files(path.parent)
        who = f"process {first.pid} on {socket.gethostname()}"
        for flags in ((), ("--resume",), ("--overwrite",)):
            refused = run(path, *flags, before=lambda: setattr(lock, "_PATIENCE", 0.1))
            assert_refused(refused, f"another run is writing {path} ({who}); wait for its end")
        assert files(path.parent) == before
        assert f"running: 1 of 3 rounds done, by {who}" in show(path)
        go()
        assert first.wait().code == 0
    assert "finished: 3 rounds" in show(path)
    assert bits(path) == whole
    assert not Outputs(path).lock.exists()


def test_the_lock_of_a_killed_run_disturbs_nobody(path, whole):
    with held(path, 2) as (first, _):
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    assert Outputs(path).lock.exists()
    assert "stopped: 2 of 3 rounds recorded; run it again with --resume" in show(path)
    assert run(path, "--resume").code == 0
    assert bits(path) == whole
    assert not Outputs(path).lock.exists()


def test_many_at_once(path, whole):
    """Whoever comes first runs; others wait a moment, then find it finished or are refused."""
    children = [command(*run_words(path, "--resume")) for _ in range(6)]
    ended = [child.wait() for child in children]
    assert {each.code for each in ended} <= {0, 2}
    for each in ended:
        assert each.code == 0 or "another run is writing" in each.err
    assert sum("finished: 3 rounds\n" in each.out for each in ended) == 1
    assert bits(path) == whole
    assert not Outputs(path).lock.exists()


@pytest.mark.parametrize("how", ["input", "output", "device", "failure", "stop", "end"])
def test_every_way_out_gives_the_lock_back_and_leaves_no_empty_folder(tmp_path, how):
    path, changes, before, code = tmp_path / "a" / "b" / "run.h5", {}, lambda: None, 2
    if how == "input":
        changes = {"dataset": f"{{name: mnist, root: {tmp_path}}}"}
    elif how == "output":
        path = path.with_name("n" * 300 + ".h5")
    elif how == "device":
        changes = {"compute__device": "cuda:99"}
    elif how == "failure":
        code = 1

        def fail():
            raise RuntimeError("made to fail")

        before = after_round(1, fail)
    elif how == "stop":
        code, before = 75, before_agreeing(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    else:
        code = 0
    assert run(path, before=before, **changes).code == code
    assert [p.name for p in tmp_path.rglob(".*-lock")] == []
    assert (tmp_path / "a").exists() == (code != 2)


def test_a_file_system_without_locks(path, whole):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    ended = run(path, before=lambda: setattr(fcntl, "flock", refuse))
    assert ended.code == 0
    said = f"{path} cannot be locked (No locks available): do not start two runs with this output\n"
    assert said in ended.err
    assert bits(path) == whole
    assert not Outputs(path).lock.exists()


# ------------------------------------------------------------------------------- no room, no folder

WIDE = {"model__hidden": "[300]"}
"""So wide that a checkpoint (360 kB) is larger than the record (170 kB)."""


@pytest.mark.parametrize(
    ("after", "limit", "changes", "lost"),
    [
        (0, 1000, {}, "run.h5"),
        (0, 20_000, {}, "run.h5"),  # inside HDF5
        (1, 20_000, {}, "run.h5"),
        (0, 240_000, WIDE, "run.ckpt.h5"),
        (1, 240_000, WIDE, "run.ckpt.h5"),
        (2, 5000, {}, "run.ckpt.h5"),
    ],
)
def test_a_full_disk_is_said_and_what_is_there_stays_whole(
    path, whole, whole_wide, after, limit, changes, lost
):
    """As far as the process sees: writing beyond a size fails. It ends as a program does."""
    full = after_round(after, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    child = command(*run_words(path, **changes), before=full, whole_exit=True)
    ended = child.wait()
    assert ended.code == 1, ended
    (line,) = ended.err.splitlines()
    assert line.startswith(f"error: cannot write {path.with_name(lost)}: File too large; free some")
    assert "--resume goes on from the last checkpoint" in line
    assert not list(path.parent.glob(".*-tmp"))
    assert rounds_in(path) - after in (0, 1)
    show(path)
    if Outputs(path).checkpoint.exists():
        Checkpoint(Outputs(path).checkpoint).close()
    assert run(path, "--resume", **changes).code == 0
    assert bits(path) == (whole_wide if changes else whole)


@contextmanager
def small_disk(folder):
    """A file system of 900 kB."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", folder],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_full(tmp_path, whole):
    with small_disk(tmp_path / "disk") as disk:
        path, ballast = disk / "run.h5", disk / "ballast"
        assert interrupted(path, 1).code == 75
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))
        before = {name: text for name, text in files(disk).items() if name != "ballast"}
        ended = command(*run_words(path, "--resume"), whole_exit=True).wait()
        assert ended.code == 1
        assert ended.err.startswith(f"error: cannot write {path}: No space left on device; free")
        assert "Traceback" not in ended.err
        ballast.unlink()
        assert files(disk) == before
        assert run(path, "--resume").code == 0
        assert bits(path) == whole


def test_a_folder_that_vanishes(path, whole):
    folder, away = path.parent / "folder", path.parent / "away"
    path = folder / "run.h5"

    def take():
        folder.rename(away)
        folder.touch()

    ended = run(path, before=after_round(2, take))
    assert ended.code == 1
    assert "run.ckpt.h5: Not a directory; choose another -o" in ended.err
    assert_refused(run(path, "--resume"), f"cannot write {path}: Not a directory")
    folder.unlink()
    away.rename(folder)
    assert run(path, "--resume").code == 0
    assert bits(path) == whole


def test_a_folder_that_may_no_longer_be_written(tmp_path, whole):
    folder = tmp_path / "folder"
    path = folder / "run.h5"
    assert interrupted(path, 1).code == 75
    tool = shutil.which("chattr")
    if tool is None or subprocess.run([tool, "+i", folder], capture_output=True).returncode:
        pytest.skip("needs chattr, the right to use it, and a file system that obeys")
    try:
        before = files(folder)
        assert_refused(run(path, "--resume"), f"cannot write {path}: Operation not permitted")
        assert files(folder) == before
    finally:
        subprocess.run([tool, "-i", folder], check=True)
    assert run(path, "--resume").code == 0
    assert bits(path) == whole


# -------------------------------------------------------------------------- signals and time limits


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_signal_ends_the_run_after_its_round(path, whole, number):
    ended = run(path, before=before_agreeing(2, lambda: os.kill(os.getpid(), number)))
    assert ended.code == 75
    assert (
        f"stopped after round 2 of 3 ({number.name}); the same command with --resume" in ended.out
    )
    with Checkpoint_(path) as checkpoint:
        assert checkpoint.round == 2
    if number == signal.SIGTERM:  # from then on all are alike
        assert run(path, "--resume").code == 0
        assert bits(path) == whole


@contextmanager
def Checkpoint_(path):
    found = Checkpoint(Outputs(path).checkpoint)
    yield found
    found.close()


def test_a_signal_in_the_last_round_comes_too_late(path, whole):
    ended = run(path, before=before_agreeing(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert ended.code == 0
    assert bits(path) == whole


@pytest.mark.parametrize(("apart", "code"), [(3.0, 75), (0.0, 128 + signal.SIGUSR1)])
def test_a_second_signal_ends_at_once_unless_it_is_an_echo(path, whole, apart, code):
    """Batch systems signal ranks and launcher, and launchers pass signals on."""

    def twice():
        stopping._ECHO = apart
        for number in (signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
            time.sleep(0.2)

    assert run(path, before=before_agreeing(2, twice)).code == code
    assert rounds_in(path) == (2 if code == 75 else 1)
    assert run(path, "--resume").code == 0
    assert bits(path) == whole


def test_ctrl_c_twice_ends_at_once(path, whole):
    def twice():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.7)

    ended = run(path, before=after_round(2, twice))
    assert ended.code == 130
    assert "Ctrl-C once more ends at once" in ended.err
    assert "ended by a second signal (SIGINT); --resume goes on" in ended.err
    assert "Traceback" not in ended.err
    assert run(path, "--resume").code == 0
    assert bits(path) == whole


def test_a_second_signal_ends_a_process_whose_main_thread_waits_in_a_library(path):
    """Python's own handlers would wait for the library."""

    def stuck():
        stopping._ECHO = 0.1
        sleep = ctypes.CDLL(None).sleep
        threading.Thread(target=lambda: [signals(), time.sleep(0.3), signals()]).start()
        sleep(50)
        sleep(50)

    def signals():
        os.kill(os.getpid(), signal.SIGTERM)

    start = time.monotonic()
    assert run(path, before=after_round(1, stuck)).code == 128 + signal.SIGTERM
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_before_the_first_round_ends_at_once(path, number):
    """While shares are drawn, which may take long; nothing is left."""

    def install():
        def slowly(*_):
            os.kill(os.getpid(), number)
            ctypes.CDLL(None).sleep(50)
            ctypes.CDLL(None).sleep(50)

        partition.make = slowly

    start = time.monotonic()
    ended = run(path.parent / "new" / "run.h5", before=install)
    assert time.monotonic() - start < 20
    assert ended.code == 75
    assert ended.err == (
        f"stopped by {number.name} before the first round; nothing is lost. If this repeats, the time "
        "limit is too short for the start-up and one round\n"
    )
    assert not (path.parent / "new").exists()


def test_signals_after_the_last_word_change_nothing(path):
    """Echoes of the one that stopped it, as Open MPI's launcher sends them."""

    def install():
        stopping._ECHO = 0.0
        after_round(1, lambda: os.kill(os.getpid(), signal.SIGUSR1))()
        goodbye = cli_run._say_goodbye

        def echoed(*args):
            goodbye(*args)
            for number in stopping.SIGNALS:
                os.kill(os.getpid(), number)
                time.sleep(0.02)

        cli_run._say_goodbye = echoed

    assert run(path, before=install).code == 75


def test_hangups_that_were_ignored_stay_ignored(path, whole):
    """As under nohup."""

    def install():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        after_round(1, lambda: os.kill(os.getpid(), signal.SIGHUP))()

    assert run(path, before=install).code == 0
    assert bits(path) == whole


def test_readers_of_the_output_may_go_and_a_full_one_is_said(path, whole):
    """As `head` does; the run goes on, and nobody sees a traceback."""

    def closed():
        end, start = os.pipe()
        os.close(end)
        os.dup2(start, 1)

    ended = run(path, before=closed)
    assert (ended.code, ended.err) == (0, "")
    assert bits(path) == whole
    ended = command("show", path, before=closed).wait()
    assert (ended.code, ended.err) == (0, "")
    full = lambda: os.dup2(os.open("/dev/full", os.O_WRONLY), 1)  # noqa: E731
    ended = command("show", path, before=full).wait()
    assert ended.code == 1
    assert ended.err == "error: cannot write the output: No space left on device\n"


def test_the_budget_stops_before_a_round_that_does_not_fit(monkeypatch):
    now = 100.0
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now)
    monkeypatch.setattr(stopping, "STARTED", 90.0)
    budget, unlimited = stopping.Budget(100.0), stopping.Budget(None)
    assert not budget.spent()
    for seconds in (4, 20, 2, 2):  # the longest of the last three counts, and a quarter more
        now += seconds
        budget.round_done()
    now = 90.0 + 100.0 - 25.0
    assert not budget.spent()
    now += 0.1
    assert budget.spent()
    monkeypatch.setattr(budget, "_lap", now - 2)
    budget.round_done()  # that of 20 seconds is forgotten
    assert not budget.spent()
    now = 90.0 + 100.0 - 2.4
    assert budget.spent()
    assert not unlimited.spent()


def slow_rounds(seconds):
    """Rounds that take longer; the program starts now."""

    def install():
        stopping.STARTED = time.monotonic()
        whole_round = NtkDfl.round

        def slow(self, *args):
            time.sleep(seconds)
            return whole_round(self, *args)

        NtkDfl.round = slow

    return install


def test_a_time_limit(path):
    changes = {"rounds": "40", "output__time_limit": "1.5"}
    ended = run(path, before=slow_rounds(0.2), **changes)
    assert ended.code == 75
    assert "(time limit); the same command with --resume goes on" in ended.out
    done = rounds_in(path)
    assert 1 <= done <= 7
    with Checkpoint_(path) as checkpoint:
        assert checkpoint.round == done
    ended = run(path, "--resume", before=slow_rounds(0.2), **changes)
    assert ended.code == 75
    assert rounds_in(path) > done


def test_a_time_limit_that_is_gone_before_the_first_round(path, whole):
    def late():
        stopping.STARTED = time.monotonic() - 3700

    ended = run(path, before=late, output__time_limit="1h")
    assert ended.code == 75
    assert "stopped after round 0 of 3 (time limit)" in ended.out
    assert "weights:" not in ended.out
    assert run(path, "--resume").code == 0
    assert bits(path) == whole


@pytest.mark.parametrize(("minutes", "kept"), [("1e-9", 1), ("60", None), ("null", None)])
def test_checkpoints_by_the_clock(path, minutes, kept):
    changes = {"output__checkpoint_every": "100", "output__checkpoint_minutes": minutes}
    ended = run(
        path, before=after_round(2, lambda: os.kill(os.getpid(), signal.SIGKILL)), **changes
    )
    assert ended.code == -signal.SIGKILL
    assert Outputs(path).checkpoint.exists() == (kept is not None)
    if kept:
        with Checkpoint_(path) as checkpoint:
            assert checkpoint.round == kept


# -------------------------------------------------------------------------------------- who looks on


def test_follow_from_before_the_start_to_the_end(path):
    """Through a stop and a second start; every evaluation once."""
    follower = command("show", path, "--follow", "--interval", "0.1")
    assert follower.says(f"waiting for {path}\n")
    with held(path, 1) as (first, go):
        assert follower.says("of 3 rounds done, by process")
        os.kill(first.pid, signal.SIGTERM)
        go()
        assert first.wait().code == 75
    assert follower.says("stopped: 2 of 3 rounds recorded")
    assert run(path, "--resume").code == 0
    ended = follower.wait()
    assert (ended.code, ended.err) == (0, "")
    lines = [line.split("  ")[0] for line in ended.out.splitlines()]
    assert [line for line in lines if line.startswith("round ") and "/" in line] == [
        f"round {done}/3" for done in range(4)
    ]
    assert ended.out.rstrip().endswith("finished: 3 rounds")
    assert "resumed after round 2 by 1 ranks" in ended.out


def test_looking_at_a_record_that_is_missing_or_damaged(path):
    assert_refused(command("show", path).wait(), f"no record at {path}")
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    for words in ((), ("--follow",)):
        assert_refused(command("show", path, *words).wait(), "is not a readable record")


def test_looking_on_disturbs_nothing(path, whole):
    """Looking all the time: the run never misses its lock, the reader never sees half a file."""
    watcher = command("show", path, "--follow", "--interval", "0.1")
    children = [command(*run_words(path, "--resume", rounds=str(rounds))) for rounds in (3,)]
    looks = 0
    while os.waitpid(children[0].pid, os.WNOHANG)[0] == 0:
        if path.exists():
            tables.summary(tables.read(path))
            looks += 1
    assert looks > 2
    assert watcher.wait().code == 0
    assert bits(path) == whole
