"""A run is killed, and resumed: at every file operation, after every round, with other settings.

"Same bits" is `children.bits`: weights, and all of the record that must not depend on the ranks.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal

import h5py
import numpy as np
import pytest

from mpi_ntkdfl import assembly, config, presets
from mpi_ntkdfl.runtime import hdf5
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.yaml_text import read_yaml
from mpi_ntkdfl.storage import growing, outputs, record, resume
from mpi_ntkdfl.storage.checkpoint import Checkpoint
from mpi_ntkdfl.storage.outputs import Outputs
from mpi_ntkdfl.storage.parts import from_json
from mpi_ntkdfl.storage.record import Record
from tests.children import (
    assert_refused,
    bits,
    command,
    files,
    in_parts,
    interrupted,
    restore,
    rounds_in,
    run,
    run_words,
)

pytestmark = pytest.mark.usefixtures("quick_starts")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Bits of runs that nobody disturbed, by their changes to the tiny configuration."""
    folder = tmp_path_factory.mktemp("whole")

    @functools.cache
    def made(**changes):
        path = folder / f"{len(list(folder.iterdir()))}.h5"
        assert run(path, **changes).code == 0
        return bits(path)

    return made


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"


def clean(path):
    """Whether nothing but record, checkpoints and the parts that these name is there."""
    outputs, names = Outputs(path), {p.name for p in Outputs(path).existing()}
    for each in (outputs.checkpoint, outputs.former_checkpoint):
        if each.exists():
            with h5py.File(each) as file:
                named = [part.name for part in from_json(file.attrs.get("parts", "[]"))]
            names |= {f"{outputs.parts.name}/{name}" for name in named}
    return set(files(path.parent)) <= names and outputs.parts.exists() == ("/" in "".join(names))


def starts(path):
    """Rounds that were done at each later start."""
    with h5py.File(path) as file:
        return [start["round"] for start in json.loads(file.attrs["resumed"])]


# ------------------------------------------------------------------------- killed at every operation

OPERATIONS = {
    os: ("replace", "unlink", "link", "fsync", "mkdir", "rmdir", "ftruncate"),
    shutil: ("copyfile",),
    h5py.File: ("close",),
    hdf5._Patient: ("write",),
}


class Fuse:
    """Counts file operations of this process, and kills it at one of them."""

    def __init__(self, at=None, log=None):
        """`at`: number of the operation, from 0; `log`: file that gets the operations' names."""
        self.at, self.log, self.count = at, log, 0

    def install(self):
        for holder, names in OPERATIONS.items():
            for name in names:
                setattr(holder, name, self.wrapped(name, getattr(holder, name)))

    def wrapped(self, name, operation):
        def counted(*args, **kwargs):
            if self.count == self.at:
                if name == "copyfile":  # half a copy
                    args[1].write_bytes(args[0].read_bytes()[:1000])
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1
            if self.log is not None:
                with self.log.open("a") as file:
                    file.write(f"{name}\n")
            return operation(*args, **kwargs)

        return counted


def both(one, other):
    """For `before`: does one after the other."""
    return lambda: (one(), other())


def operations(path, *flags, prepare=lambda: None, **changes):
    """Names of the file operations of a run, in order; `prepare` is done first."""
    log = path.with_name("operations")
    ended = run(path, *flags, before=both(prepare, Fuse(log=log).install), **changes)
    assert ended.code == 0, ended.err
    names = log.read_text().split()
    log.unlink()
    assert set(names) >= {"replace", "unlink", "fsync", "copyfile", "close", "write"}
    return names


def but_writes(names):
    """Numbers of operations; writes to a temporary file all leave the same, half of one."""
    return [number for number, name in enumerate(names) if name not in ("write", "fsync")]


def kill_at(path, number, *flags, prepare=lambda: None, **changes):
    ended = run(path, *flags, before=both(prepare, Fuse(number).install), **changes)
    assert ended.code == -signal.SIGKILL, (number, ended)


def assert_goes_on(path, expected, prepare=lambda: None, **changes):
    """Resumes a killed run to its end."""
    before = rounds_in(path)
    outputs = Outputs(path)
    for each in (outputs.checkpoint, outputs.former_checkpoint):
        assert not (each.exists() and unreadable(each)), each
    ended = run(path, "--resume", before=prepare, **changes)
    assert (ended.code, ended.err) == (0, ""), ended
    assert bits(path) == expected
    assert clean(path), list(path.parent.iterdir())
    if before > 0 and "nothing to do" not in ended.out:
        begun = starts(path)
        assert before - 1 <= (begun[-1] if begun else 0), "more than the running round was lost"


@pytest.mark.parametrize(("how", "step"), [("copied", 11), ("in place", 6), ("in parts", 11)])
def test_killed_at_file_operations(path, whole, monkeypatch, how, step):
    """Some of them and the last ones, after the last checkpoint.

    Each time no more than the running round is lost, nothing is left, and the bits are the same.
    """
    expected, changes = whole(rounds="2"), {"rounds": "2"}
    prepare = in_parts if how == "in parts" else lambda: None
    if how == "in place":
        monkeypatch.setattr(growing, "IN_PLACE_FROM", 0)
    names = operations(path, prepare=prepare, **changes)
    assert names.count("copyfile") == (1 if how == "in place" else 3)
    assert Outputs(path).parts.exists() == (how == "in parts")
    numbers = but_writes(names)
    for number in sorted({*numbers[::step], *numbers[-3:]}):
        restore(path.parent, {})
        kill_at(path, number, prepare=prepare, **changes)
        assert_goes_on(path, expected, prepare, **changes)


@pytest.mark.parametrize("step", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_file_system_without_hard_links(path, whole, step):
    """Killed around the second checkpoint, when for a moment only the former has a name."""

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    log = path.with_name("operations")

    def install(**options):
        os.link = refuse
        Fuse(**options).install()

    assert run(path, rounds="2", before=lambda: install(log=log)).code == 0
    numbers = but_writes(log.read_text().split())[-8:]
    for number in numbers[::step]:
        restore(path.parent, {})
        ended = run(path, rounds="2", before=lambda at=number: install(at=at))
        assert ended.code == -signal.SIGKILL
        ended = run(path, "--resume", rounds="2", before=lambda: setattr(os, "link", refuse))
        assert (ended.code, bits(path)) == (0, whole(rounds="2"))
        assert (
            "checkpoint" not in ended.err
            or "the checkpoint before, after round 1, is used instead" in ended.err
        )
        assert clean(path)


@pytest.mark.slow
@pytest.mark.parametrize("parted", [False, True])
def test_killed_at_every_file_operation_and_again_when_it_goes_on(path, whole, parted):
    """Two rounds have every kind of operation; a third would repeat those of the second.

    Parts are removed after the third checkpoint. A run in parts goes on in one file, or in parts, by
    chance, and it is killed at a fifth of its operations only.
    """
    changes = {"rounds": "3" if parted else "2"}
    expected, chance = whole(**changes), random.Random(0)
    ways = [in_parts, lambda: None] if parted else [lambda: None]
    names = operations(path, prepare=ways[0], **changes)
    writes = [number for number, name in enumerate(names) if name == "write"]
    numbers = sorted([*but_writes(names), *writes[::12]])
    for number in numbers[:: 5 if parted else 1]:
        restore(path.parent, {})
        kill_at(path, number, prepare=ways[0], **changes)
        # It may die again, anywhere, or get to the end.
        before = both(chance.choice(ways), Fuse(chance.randrange(len(names))).install)
        ended = run(path, "--resume", before=before, **changes)
        assert ended.code in (0, -signal.SIGKILL), ended
        assert_goes_on(path, expected, chance.choice(ways), **changes)


def test_killed_while_it_replaces_another_run(path, whole):
    """What is left is the old run, nothing, or the new one; never a mixture."""
    assert run(path, seed="1").code == 0
    old = files(path.parent)
    count = operations(path, "--overwrite", rounds="1").index("close")
    for number in range(count + 1):
        restore(path.parent, old)
        kill_at(path, number, "--overwrite", rounds="1")
        ended = run(path, "--resume", rounds="1")
        if ended.code == 2:
            assert "seed was 1, is 0" in ended.err
            assert run(path, "--resume", seed="1").code == 0
            assert bits(path) == whole(seed="1")
        else:
            assert (ended.code, bits(path)) == (0, whole(rounds="1"))
        assert clean(path)


# ------------------------------------------------------------------------------- other ways to go on

OTHER_CADENCES = ((1, 2), (1, 4), (2, 1), (2, 4))
"""Rounds between checkpoints and between evaluations."""


@pytest.mark.parametrize(
    ("checkpoint_every", "every"),
    [(1, 1), (2, 2), *(pytest.param(*each, marks=pytest.mark.slow) for each in OTHER_CADENCES)],
)
def test_stopped_after_any_round(path, whole, every, checkpoint_every):
    changes = {
        "rounds": "4",
        "evaluation__every": str(every),
        "output__checkpoint_every": str(checkpoint_every),
    }
    ended = interrupted(path, 0, **changes)
    assert ended.code == 75
    assert "stopped after round 0 of 4 (SIGTERM); the same command with --resume" in ended.out
    for done in (1, 2, 3):
        assert interrupted(path, done, "--resume", **changes).code == 75
        assert rounds_in(path) == done
    assert run(path, "--resume", **changes).code == 0
    assert starts(path) == [1, 2, 3]
    expected = whole(**{**changes, "output__checkpoint_every": "1"})
    assert bits(path) == expected
    assert clean(path)


@pytest.mark.parametrize(
    ("finished", "cadence"),
    [
        *((4, {}), (3, {"every": "2"}), (4, {"every": "4"}), (5, {"every": "4"})),
        (3, {"clients_every": "4"}),
    ],
)
def test_rounds_may_grow(path, whole, cadence, finished):
    """The longer run's record has neither rows nor tests of clients that only the shorter run had.

    Chunks hold one row, as with many clients.
    """
    changes = {f"evaluation__{key}": value for key, value in cadence.items()}
    small = functools.partial(setattr, record, "_CHUNK", 1)
    assert run(path, before=small, rounds=str(finished), **changes).code == 0
    assert run(path, "--resume", rounds="6", **changes).code == 0
    assert bits(path) == whole(rounds="6", **changes)


def test_rounds_grow_and_shrink_in_between(path, whole):
    assert run(path, rounds="3", evaluation__every="2").code == 0
    assert interrupted(path, 4, "--resume", rounds="6", evaluation__every="2").code == 75
    for rounds, words in (
        ("3", "rounds must be at least 4"),
        ("4", "can only be changed to more than 4"),
    ):
        ended = run(path, "--resume", rounds=rounds, evaluation__every="2")
        assert ended.code == 2
        assert words in ended.err
    assert run(path, "--resume", rounds="5", evaluation__every="2").code == 0
    assert bits(path) == whole(rounds="5", evaluation__every="2")


def test_a_finished_run_says_so_and_changes_nothing(path):
    assert run(path).code == 0
    before = files(path.parent)
    ended = run(path, "--resume")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"{path} is finished: 3 rounds; nothing to do\n"
    assert files(path.parent) == before


def test_nothing_there_to_go_on_with_is_a_start(path, whole):
    assert run(path, "--resume").code == 0
    assert bits(path) == whole()
    assert starts(path) == []


def test_killed_before_the_first_checkpoint(path, whole):
    assert interrupted(path, 0).code == 75
    assert [p.name for p in path.parent.iterdir()] == ["run.h5"]
    ended = run(path, "--resume", seed="1")
    assert ended.code == 2
    assert "seed was 0, is 1" in ended.err
    assert run(path, "--resume").code == 0
    assert bits(path) == whole()


def test_former_state_of_a_run_with_more_ranks_is_readable(path):
    """Columns for ranks that came later hold NaN."""
    assert interrupted(path, 2).code == 75
    start = {"ranks": 500}
    Record(path).resume(2, config.parse([]), start)
    with h5py.File(path) as file:
        seconds = file["time/seconds"]
        assert seconds.shape[:2] == (2, 500)
        assert np.isnan(seconds[:, 1:]).all()
        assert np.isfinite(seconds[:, 0]).all()
        assert seconds.nbytes < file.id.get_filesize(), "readers take it for damaged"


# --------------------------------------------------------------------------------- changed settings

REFUSED = (
    {
        "seed was 0, is 5": {"seed": "5"},
        "clients was 4, is 5": {"clients": "5", "topology__degree": "2"},
        "on_divergence was stop, is continue": {"on_divergence": "continue"},
        "partition.alpha was 0.1, is 0.2": {"partition__alpha": "0.2"},
        "topology.dynamic was True, is False": {"topology__dynamic": "false"},
        "model.hidden was [4], is [5]": {"model__hidden": "[5]"},
        "model.init was shared, is per-client": {"model__init": "per-client"},
        "algorithm.lr was 0.01, is 0.02": {"algorithm__lr": "0.02"},
        "algorithm.lr_decay was 0.07, is 0": {"algorithm__lr_decay": "0"},
        "algorithm.taus was [5, 10], is [5]": {"algorithm__taus": "[5]"},
        "algorithm.averaging was plain, is samples": {"algorithm__averaging": "samples"},
        "evaluation.every was 1, is 2": {"evaluation__every": "2"},
        "evaluation.clients was True, is False": {"evaluation__clients": "false"},
        "compute.dtype was float32, is float64": {"compute__dtype": "float64"},
    },
    {
        "dataset.name was digits, is breast-cancer": {"dataset__name": "breast-cancer"},
        "partition.kind was dirichlet, is iid": {
            "partition": "{kind: iid}",
            "partition__samples": None,
        },
        "topology.kind was regular, is ring": {
            "topology": "{kind: ring}",
            "topology__degree": None,
        },
    },
    {"rounds must be at least 2, because so many are done; got 1": {"rounds": "1"}},
)
"""What one start is told about each of its changes."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Files of a run that stopped after two of three rounds."""
    path = tmp_path_factory.mktemp("stopped") / "run.h5"
    assert interrupted(path, 2).code == 75
    return files(path.parent)


@pytest.fixture
def again(path, stopped):
    """Such a run."""
    restore(path.parent, stopped)
    return path


@pytest.mark.parametrize("refused", REFUSED, ids=len)
def test_changes_that_are_refused(again, stopped, refused):
    changes = {key: value for each in refused.values() for key, value in each.items()}
    assert_refused(run(again, "--resume", **changes), *refused)
    assert files(again.parent) == stopped


def test_changes_that_are_free(again, whole, tmp_path):
    ended = run(
        *(again, "--resume"),
        output__checkpoint_every="7",
        output__time_limit="1h",
        output__checkpoint_minutes="3",
        dataset__root=str(tmp_path),
    )
    assert (ended.code, ended.err) == (0, "")
    assert bits(again) == whole()


def test_changes_that_may_change_the_rounding_warn(again):
    changes = {"threads": "2", "memory_limit": "900MB", "device": "auto"}
    ended = run(again, "--resume", **{f"compute__{key}": each for key, each in changes.items()})
    assert ended.code == 0
    for key, value in changes.items():
        assert f"compute.{key} was " in ended.err
        assert f"is {value}: the last bits of the result may differ" in ended.err


def test_the_way_of_messages_may_change(again):
    """What refuses it here is that there is no GPU, not that it is another setting."""
    ended = run(again, "--resume", compute__gpu_aware_mpi="true")
    assert ended.code == 2
    assert "compute.gpu_aware_mpi hands MPI memory of a CUDA device" in ended.err
    assert "changed configuration" not in ended.err


def test_files_that_changed(path):
    """Under the same name; another name with the same content is fine."""
    parent = path.parent
    shares, graph = parent / "p.npz", parent / "g.txt"

    def save(first):
        with shares.open("wb") as file:
            np.savez(file, offsets=np.arange(5) * 3, indices=np.arange(first, first + 12))

    changes = {
        "partition": f"{{kind: file, path: {shares}}}",
        "partition__samples": None,
        "topology": f"{{kind: file, path: {graph}}}",
        "topology__degree": None,
    }
    ring = "0 1\n1 2\n2 3\n0 3\n"
    save(0)
    graph.write_text(ring)
    assert interrupted(path, 1, **changes).code == 75
    before = path.read_bytes()
    save(1)
    assert_refused(run(path, "--resume", **changes), "cannot go on: the partition is not")
    save(0)
    graph.write_text(ring + "0 2\n")
    assert_refused(run(path, "--resume", **changes), "cannot go on: the graph of the last round")
    graph.unlink()
    assert_refused(run(path, "--resume", **changes), "No such file")
    assert path.read_bytes() == before
    moved = parent / "moved.txt"
    moved.write_text(ring)
    changes["topology"] = f"{{kind: file, path: {moved}}}"
    assert run(path, "--resume", **changes).code == 0


def test_data_that_changed(again, stopped):
    def spoil():
        load = assembly.sources.load

        def changed(settings):
            data = load(settings)
            data.test_labels[0] += 1
            return data

        assembly.sources.load = changed

    assert_refused(run(again, "--resume", before=spoil), "cannot go on: the data set is not")
    assert files(again.parent) == stopped


def test_every_setting_is_compared():
    """Those that may change are in docs/design.md; here is that none escapes the comparison."""
    settings = config.parse(presets.read_source("quickstart"))
    old = settings.model_dump(mode="json")
    new = {key: {} if isinstance(value, dict) else None for key, value in old.items()}
    keys = set(resume.differences(old, new))
    assert {"seed", "clients", "algorithm.lr", "evaluation.every", "compute.dtype"} < keys


# ------------------------------------------------------------------------------------ damaged files


def truncated(content, chance):
    return content[: chance.randrange(len(content))]


def flipped(content, chance):
    """One bit somewhere among the bytes that say something."""
    changed = bytearray(content)
    used = [place for place, byte in enumerate(content) if byte]
    changed[chance.choice(used)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def unreadable(path):
    try:
        Checkpoint(path).close()
    except InputError:
        return True
    return False


@pytest.mark.parametrize("damage", [truncated, flipped])
@pytest.mark.parametrize("seed", range(2))
def test_the_checkpoint_before_serves_if_the_newest_is_damaged(again, whole, damage, seed):
    chance, newest = random.Random(seed), Outputs(again).checkpoint
    content = newest.read_bytes()
    while not unreadable(newest):  # some bits mean nothing
        newest.write_bytes(damage(content, chance))
    ended = run(again, "--resume")
    assert ended.code == 0
    assert "run.ckpt.h5 is not a readable checkpoint" in ended.err
    assert "the checkpoint before, after round 1, is used instead" in ended.err
    assert starts(again) == [1]
    assert bits(again) == whole()
    assert clean(again)


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_does_not_push_out_the_whole_one(again, step):
    """Killed right after going on from the former, there is still one to go on from."""
    newest = Outputs(again).checkpoint
    newest.write_bytes(newest.read_bytes()[:-9])
    before = files(again.parent)
    names = operations(again, "--resume")
    for number in but_writes(names)[::step]:
        restore(again.parent, before)
        kill_at(again, number, "--resume")
        kept = Outputs(again).existing()[1:]
        assert sum(unreadable(file) for file in kept) <= (number < names.index("copyfile")), number
        assert not all(unreadable(file) for file in kept), number


@pytest.mark.parametrize("which", ["record", "both", "missing record", "short record", "foreign"])
def test_damage_that_leaves_nothing_to_go_on_with(again, which):
    record, newest, former = again, *map(again.with_name, ("run.ckpt.h5", "run.ckpt-1.h5"))
    way_out = "give --overwrite"
    if which == "record":
        record.write_bytes(record.read_bytes()[:-500])
        said = "run.h5 is not a readable record"
    elif which == "both":
        for file in (newest, former):
            file.write_bytes(file.read_bytes()[:-50])
        said, way_out = (
            "run.ckpt.h5 is not a readable checkpoint",
            "run.ckpt-1.h5 is not a readable",
        )
    elif which == "missing record":
        record.unlink()
        said = "the record"
    elif which == "short record":
        with h5py.File(record) as file:
            own = config.parse([read_yaml(file.attrs["config"], "the configuration")])
        Record(record).resume(1, own, {"ranks": 1})
        said = "holds 1 rounds and its checkpoint 2"
    else:
        shutil.copy(newest, record)
        said = "is not a readable record"
    before = files(again.parent)
    assert_refused(run(again, "--resume"), said, way_out)
    assert files(again.parent) == before
    assert run(again, "--overwrite").code == 0


# ---------------------------------------------------------------------------- the command's own words


def test_resume_finds_its_files_without_o(tmp_path, whole, monkeypatch):
    """The last name taken; a new run takes the next."""
    monkeypatch.chdir(tmp_path)
    words = run_words(tmp_path / "x")
    del words[2:4]
    for _ in range(2):
        assert command(*words).wait().code == 0
    assert interrupted(tmp_path / "quickstart-3.h5", 1).code == 75
    assert command(*words, "--resume").wait().code == 0
    assert bits(tmp_path / "quickstart-3.h5") == whole()
    assert not (tmp_path / "quickstart-4.h5").exists()


def test_resume_and_overwrite_contradict_each_other(path):
    ended = run(path, "--resume", "--overwrite")
    assert ended.code == 2
    assert "choose one of --resume and --overwrite" in ended.err


def test_without_resume_an_unfinished_run_is_refused(again, stopped):
    assert_refused(run(again), "run.h5 exists; choose another -o, give --resume to go on")
    assert files(again.parent) == stopped


def test_leftovers_of_a_kill_are_no_outputs(path):
    for name in ("run.h5", "run.ckpt.h5", "run.ckpt-1.h5"):
        path.with_name(f".{name}.0123456789ab.mpi_ntkdfl-tmp").write_bytes(b"half a file")
    Outputs(path).lock.touch()
    assert outputs.choose(path, "", False).existing() == []
    assert run(path).code == 0
    assert clean(path)
