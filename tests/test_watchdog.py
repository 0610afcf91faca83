"""Ranks that fall silent, and ranks that only take long."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from mpi_ntkdfl.comm import watchdog
from mpi_ntkdfl.runtime.stopping import SILENT, STARTED, UNFINISHED

PATIENCE = 0.6


@pytest.fixture
def ended(monkeypatch):
    """Codes and messages with which a rank would have ended, in order."""
    said: list[tuple[int, str]] = []

    def end_now(code, message):
        said.append((code, message))
        threading.Event().wait()  # as at the end of a process, this thread does nothing more

    monkeypatch.setattr(watchdog, "end_now", end_now)
    return said


def world(rank):
    return SimpleNamespace(rank=rank, hosts=("a", "b", "c"), round=5)


def pack(patience=PATIENCE, limit=None):
    """The dogs of three ranks in one process, at work."""
    leader = watchdog.Leader(world(0), patience, limit)
    followers = [watchdog.Follower(world(r), patience, limit, leader.meeting()) for r in (1, 2)]
    for dog in (leader, *followers):
        dog.interval = min(dog.interval, 0.05)
    leader.start()
    assert all(each.greet() for each in followers)
    leader.watch_over([1, 2])
    for each in followers:
        each.start()
    return leader, *followers


def wait_for(ended, count=1, limit=10):
    deadline = time.monotonic() + limit
    while len(ended) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    return ended


def close(dogs):
    for dog in dogs:
        dog.close()


def test_a_silent_rank_is_named_and_all_end(ended):
    dogs = pack()
    dogs[2].close()
    said = wait_for(ended, 2)
    assert (SILENT, "") in said  # rank 1, told by rank 0
    (message,) = [text for code, text in said if text]
    assert "nothing was heard of rank 2 on c for 1 s, in round 5" in message
    close(dogs)


def test_a_silent_rank_0_is_named_by_the_others(ended):
    dogs = pack()
    dogs[0].close()
    for code, message in wait_for(ended, 2):
        assert code == SILENT
        assert "nothing was heard of rank 0 on a" in message
    assert len(ended) == 2
    close(dogs)


@pytest.mark.parametrize("busy", ["computing", "in a message"])
def test_ranks_that_compute_or_exchange_are_left_alone(ended, busy):
    """For more than twice as long as ranks wait for a silent one."""
    dogs, end = pack(), time.monotonic() + 2.5 * PATIENCE
    while time.monotonic() < end:
        if busy == "in a message":
            watchdog.mark()
            time.sleep(0.01)
    assert ended == []
    close(dogs)


def test_ranks_that_all_wait_end(ended):
    dogs = pack()
    ctypes.CDLL(None).usleep(int(3 * PATIENCE * 1e6))  # neither computes nor moves
    said = " ".join(message for _, message in wait_for(ended, 3))
    assert "no rank has made progress for 1 s; rank 0 on a" in said
    assert "neither computes nor waits for others" in said
    close(dogs)


def test_a_process_that_was_stopped_and_continued_blames_nobody(ended):
    """Its clock went on: to it all others seem silent."""
    leader = watchdog.Leader(world(0), PATIENCE, None)
    leader.watch_over([1, 2])
    monotonic, leap = time.monotonic, [0.0]
    talk = leader._talk

    def leaping(until):
        talk(until)
        leap[0] += 100 if leap[0] == 0 else 0

    leader._talk = leaping
    watchdog.time = SimpleNamespace(
        **{
            name: getattr(time, name)
            for name in ("sleep", "clock_gettime", "pthread_getcpuclockid")
        },
        monotonic=lambda: monotonic() + leap[0],
    )
    try:
        leader.start()
        time.sleep(PATIENCE / 2)
        assert ended == []
        assert wait_for(ended)  # but then they are silent in earnest
        leader.close()
    finally:
        watchdog.time = time


def test_the_time_limit_holds_while_ranks_wait(ended, monkeypatch):
    monkeypatch.setattr(watchdog, "_SHORT", PATIENCE)
    dogs = pack(patience=1000.0, limit=time.monotonic() - STARTED)
    dogs[1].close()
    code, message = next(each for each in wait_for(ended, 2) if each[1])
    assert code == UNFINISHED
    assert "output.time_limit is over and nothing was heard of rank 1 on b" in message
    close(dogs)


def test_strangers_change_nothing(ended):
    leader, *others = pack()
    for port in (leader.socket.getsockname()[1], others[0].socket.getsockname()[1]):
        for data in (b"", b"x", os.urandom(200), bytes(watchdog._PACKET.size)):
            others[0].socket.sendto(data, ("127.0.0.1", port))
    time.sleep(2 * PATIENCE)
    assert not [each for each in ended if "heard" in each[1]]
    close((leader, *others))


@pytest.mark.parametrize(("name", "killed"), [("mpirun", True), ("bash", False)])
def test_a_launcher_that_stays_is_killed(tmp_path, name, killed):
    """It runs the rank, which ends, and then waits for a host that is gone."""
    script = tmp_path / name
    script.write_text('#!/bin/sh\n"$@"\nsleep 2\n')
    script.chmod(0o755)
    rank = "from mpi_ntkdfl.comm.launcher import end_launcher_later; end_launcher_later(0.1)"
    ended = subprocess.run([script, sys.executable, "-c", rank], timeout=60, check=False)
    assert ended.returncode == (-signal.SIGKILL if killed else 0)
