"""Files beside a run's output: which are its own, whose turn it is, what links do."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from contextlib import contextmanager

import h5py
import pytest

from mpi_ntkdfl.storage import lock, lock_file
from mpi_ntkdfl.storage.outputs import Outputs
from tests.children import (
    after_round,
    assert_refused,
    bits,
    command,
    files,
    interrupted,
    rounds_in,
    run,
)

pytestmark = pytest.mark.usefixtures("quick_starts")

ELSEWHERE = lock_file.Claim(host="other-host", process=7, place="other-host boot 1", token="t" * 12)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"


def impatient():
    """In a child: heartbeats are looked for during a moment only."""
    lock._WATCH, lock._BEAT = 0.6, 0.1


def write_claim(path, claim):
    Outputs(path).lock.write_text(claim.to_json())


# ---------------------------------------------------------------------------------- someone else's


def test_files_beside_the_output_that_a_run_did_not_make_stay(path):
    """A user's `poetry.lock` beside `-o poetry.h5`, and other names that a run once used."""
    users = dict.fromkeys(("run.lock", "run.h5.tmp", "run.ckpt.h5.tmp", ".run.h5.x.tmp"), b"mine")
    for name, text in users.items():
        path.with_name(name).write_bytes(text)
    assert run(path).code == 0
    assert run(path, "--overwrite").code == 0
    assert {name: files(path.parent)[name] for name in users} == users


@pytest.mark.parametrize("name", ["run.h5", "run.ckpt.h5", "run.ckpt-1.h5"])
@pytest.mark.parametrize("kind", ["text", "HDF5", "link"])
def test_a_run_never_replaces_what_no_run_made(path, name, kind):
    taken, target = path.with_name(name), path.with_name("elsewhere")
    if kind == "HDF5":
        with h5py.File(taken, "w") as file:
            file["features"] = [1, 2]
    elif kind == "text" or name == "run.h5":  # a record that is a link is followed
        taken.write_text("notes")
    else:
        target.write_text("notes")
        taken.symlink_to(target)
    before = files(path.parent)
    for flag in ("--overwrite", "--resume"):
        assert_refused(run(path, flag), str(taken), "a run does not replace it; move it away")
    assert files(path.parent) == before
    assert taken.is_symlink() == target.exists()


@pytest.mark.parametrize("words", [("run",), ("show",)])
def test_a_lock_that_is_a_link_or_not_a_lock(path, words):
    """Its target stays as it is; `show` tells what the record says."""
    assert interrupted(path, 1).code == 75
    victim, name = path.with_name("victim"), Outputs(path).lock
    victim.write_text("precious")
    unlike = [
        ELSEWHERE.to_json().replace(*change)
        for change in (("7", "true"), ("7", '"7"'), ("ntkdfl", "other"), ("{", '{"more": 1, '))
    ]
    broken = ("[1]", '{"host": "a"}', "{", "[" * 9_000, "\x00\x01", "9" * 20_000)
    for content in (None, *broken, *unlike):
        if content is None:
            name.symlink_to(victim)
        else:
            name.write_text(content)
        if words == ("run",):
            assert_refused(run(path, "--resume"), "is not a lock file that a run made; remove it")
            assert name.is_symlink() or name.read_text() == content
        else:
            ended = command("show", path).wait()
            assert (ended.code, ended.err) == (0, ""), ended
            assert "stopped: 1 of 3 rounds" in ended.out
        assert victim.read_text() == "precious"
        name.unlink()


# -------------------------------------------------------------------------------------- whose turn


@contextmanager
def beating(path, claim):
    """Another host's run that counts its heartbeats."""
    ended = threading.Event()

    def beat():
        for number in itertools.count(claim.beat):
            with Outputs(path).lock.open("r+") as file:  # never empty for a moment
                file.write(dataclasses.replace(claim, beat=number).to_json())
            if ended.wait(0.05):
                return

    write_claim(path, claim)
    thread = threading.Thread(target=beat)
    thread.start()
    yield
    ended.set()
    thread.join()


def test_a_run_of_another_host_is_seen_though_the_kernel_grants_its_lock(path):
    with beating(path, ELSEWHERE):
        refused = run(path, before=impatient)
        assert refused.code == 2
        assert f"another run is writing {path} (process 7 on other-host)" in refused.err
        assert not path.exists()
    assert Outputs(path).lock.exists()
    ended = run(path, before=impatient)  # its heart has stopped
    assert ended.code == 0
    assert "was locked by process 7 on other-host: waiting up to" in ended.err
    assert not Outputs(path).lock.exists()


def test_show_sees_a_run_of_another_host(path, monkeypatch):
    monkeypatch.setattr(lock, "_WATCH", 0.6)
    monkeypatch.setattr(lock, "_BEAT", 0.1)
    with beating(path, ELSEWHERE):
        assert lock.holder(Outputs(path)) == "process 7 on other-host"
    assert lock.holder(Outputs(path)) is None


def test_a_lock_that_goes_while_one_looks_is_held_by_nobody(path, monkeypatch):
    with lock.locked(Outputs(path)):
        read = lock_file.read

        def gone(name):
            name.unlink()
            return read(name)

        monkeypatch.setattr(lock_file, "read", gone)
        assert lock.holder(Outputs(path)) is None
        monkeypatch.undo()


@pytest.mark.parametrize("removed", [False, True])
def test_a_run_whose_lock_is_no_longer_its_own_stops_and_touches_nothing(path, removed):
    seen = path.with_name("seen")

    def take_over():
        Outputs(path).lock.unlink()
        if not removed:
            write_claim(path, ELSEWHERE)
        seen.write_text(repr(files(path.parent)))

    def install():
        impatient()
        after_round(1, take_over)()

    ended = run(path, before=install)
    assert ended.code == 1
    assert f"{path} no longer belongs to this run" in ended.err
    assert "Traceback" not in ended.err
    former = seen.read_text()
    seen.unlink()
    assert repr(files(path.parent)) == former
    assert Outputs(path).lock.exists() != removed
    assert rounds_in(path) == 1


def test_a_heart_beats(path, monkeypatch):
    monkeypatch.setattr(lock, "_BEAT", 0.02)
    with lock.locked(Outputs(path)):
        first = lock_file.read(Outputs(path).lock)
        assert lock._beats(Outputs(path).lock, first)
    assert not Outputs(path).lock.exists()


# -------------------------------------------------------------------------------- links to a record


def test_a_record_that_is_a_link_is_followed(tmp_path):
    """A dangling one, one in a linked folder, and to go on through it."""
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    real, link = tmp_path / "real" / "run.h5", tmp_path / "link.h5"
    link.symlink_to("linked/run.h5")
    assert interrupted(link, 1).code == 75
    assert link.is_symlink()
    assert Outputs(real).checkpoint.exists()
    assert "stopped: 1 of 3 rounds" in command("show", link).wait().out
    assert run(link, "--resume").code == 0
    assert link.is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.h5", "linked", "real"]
    assert run(tmp_path / "whole.h5").code == 0
    assert bits(real) == bits(tmp_path / "whole.h5")
    assert command("export", link, "--average", tmp_path / "w.pt").wait().code == 0


def test_a_checkpoint_is_not_taken_for_a_record(path):
    assert run(path).code == 0
    before = files(path.parent)
    for name in ("run.ckpt.h5", "run.ckpt-1.h5"):
        assert_refused(run(path.with_name(name), "--overwrite"), "name of a checkpoint", "run.h5")
    assert files(path.parent) == before


# ------------------------------------------------------------------------- checkpoints that are gone


def delete_checkpoints(path):
    Outputs(path).checkpoint.unlink()
    Outputs(path).former_checkpoint.unlink(missing_ok=True)


def test_a_finished_record_without_checkpoints_is_finished(path):
    assert run(path).code == 0
    delete_checkpoints(path)
    before = files(path.parent)
    ended = run(path, "--resume")
    assert ended.code == 0
    assert "is finished: 3 rounds; nothing to do" in ended.out
    assert "its checkpoints are missing" in ended.err
    assert_refused(
        run(path, "--resume", rounds="4"), "holds 3 rounds, but its checkpoints are missing"
    )
    assert_refused(run(path, "--resume", rounds="2"), "rounds must be at least 3")
    assert files(path.parent) == before


def test_an_unfinished_record_without_checkpoints_is_refused(path):
    assert interrupted(path, 2).code == 75
    delete_checkpoints(path)
    before = files(path.parent)
    assert_refused(run(path, "--resume"), "its checkpoints are missing", "give --overwrite")
    assert files(path.parent) == before
    assert run(path, "--overwrite").code == 0
