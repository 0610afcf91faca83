"""Any words, any damage: an answer or a line of error; no traceback, crash, hang or changed file.

Every example runs in a forked child that the kernel ends after a while, since libhdf5 could crash or
loop, which no `except` catches.
"""

from __future__ import annotations

import os
import random
import signal

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from mpi_ntkdfl.model.mlp import MLP
from mpi_ntkdfl.storage.outputs import Outputs
from tests.children import (
    assert_refused,
    before_agreeing,
    bits,
    command,
    files,
    in_parts,
    interrupted,
    restore,
    run,
    run_words,
)
from tests.conftest import examples

LIMIT = 100
"""Seconds; what takes longer hangs."""

pytestmark = pytest.mark.usefixtures("quick_starts")


def some(count):
    """Every example may begin with the files of the one before; shrinking would take minutes."""
    return examples(
        count,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        derandomize=True,
    )


def answered(*words):
    """The end of a command that may do what it is told, or refuse in one line."""
    ended = command(*words, limit=LIMIT).wait()
    assert ended.code in (0, 2, 75), (words, ended)
    assert "Traceback" not in ended.out + ended.err
    if ended.code == 2:
        errors = [line for line in ended.err.splitlines() if line.lower().startswith("error: ")]
        assert len(errors) == 1, ended
    return ended


# ------------------------------------------------------------------------------------- damaged files


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Files of a run that stopped after two of three rounds, and the weights it would end with."""
    folder = tmp_path_factory.mktemp("stopped")
    whole = folder / "whole" / "run.h5"
    assert run(whole).code == 0
    path = folder / "part" / "run.h5"
    assert interrupted(path, 2).code == 75
    return files(path.parent), bits(whole)


def damaged(content, how, places, chance):
    """`content` cut, with bits flipped, or with a stretch overwritten."""
    changed = bytearray(content)
    if how == "cut":
        return bytes(changed[: chance.randrange(len(changed))])
    used = [place for place, byte in enumerate(content) if byte]
    for _ in range(places):
        place = chance.choice(used)
        if how == "flipped":
            changed[place] ^= 1 << chance.randrange(8)
        else:
            changed[place : place + 8] = chance.randbytes(len(changed[place : place + 8]))
    return bytes(changed)


DAMAGE = {
    "how": st.sampled_from(["flipped", "flipped", "overwritten", "cut"]),
    "places": st.sampled_from([1, 1, 3, 30]),
    "seed": st.integers(0, 2**32),
}


@some(50)
@given(name=st.sampled_from(["run.h5", "run.ckpt.h5"]), **DAMAGE)
def test_damaged_outputs_are_shown_or_refused(tmp_path, stopped, name, how, places, seed):
    content = stopped[0] | {
        name: damaged(stopped[0][name], how, places, random.Random(seed)),
    }
    restore(tmp_path, content)
    path, target = tmp_path / "run.h5", tmp_path / "w.pt"
    if name == "run.h5":
        answered("show", path)
    else:
        answered("export", path, "--average", target)
        target.unlink(missing_ok=True)
    assert files(tmp_path) == content


@some(40)
@given(
    names=st.sampled_from([["run.h5"], ["run.ckpt.h5"], ["run.ckpt.h5", "run.ckpt-1.h5"]]), **DAMAGE
)
def test_damaged_outputs_are_gone_on_with_or_refused(tmp_path, stopped, names, how, places, seed):
    """Weights are the right ones or none; a record's attributes have no checksum."""
    contents, whole = stopped
    content = contents | {
        name: damaged(contents[name], how, places, random.Random(seed + number))
        for number, name in enumerate(names)
    }
    restore(tmp_path, content)
    path = tmp_path / "run.h5"
    if answered(*run_words(path, "--resume")).code:
        assert files(tmp_path) == content
    elif "run.h5" not in names:
        assert bits(path) == whole
    else:
        assert bits(path)["params"] == whole["params"]


@pytest.fixture(scope="module")
def parted(tmp_path_factory, stopped):
    """The same, of a run whose checkpoints consist of parts."""
    path = tmp_path_factory.mktemp("parted") / "run.h5"
    stop = before_agreeing(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert run(path, before=lambda: (in_parts(), stop())).code == 75
    return files(path.parent), stopped[1]


@some(15)
@given(part=st.sampled_from([0, 1, None]), gone=st.booleans(), **DAMAGE)
def test_a_damaged_part_is_never_gone_on_with(tmp_path, parted, part, gone, how, places, seed):
    """None: the file that joins the parts."""
    contents, whole = parted
    parts = [name for name in contents if "/" in name]
    name, content = "run.ckpt.h5" if part is None else parts[part], dict(contents)
    content[name] = damaged(content[name], how, places, random.Random(seed))
    if gone and part is not None:
        del content[name]
    restore(tmp_path, content)
    path = tmp_path / "run.h5"
    if answered(*run_words(path, "--resume")).code:
        assert files(tmp_path) == content
    else:
        assert bits(path) == whole


@pytest.mark.parametrize("group", ["time", "traffic"])
def test_a_record_with_an_unknown_phase_is_refused(tmp_path, stopped, group):
    restore(tmp_path, stopped[0])
    path = tmp_path / "run.h5"
    with h5py.File(path, "r+") as file:
        names = file[group].attrs["phases"].tolist()
        file[group].attrs["phases"] = [*names[:-1], "othep"]
    assert_refused(run(path, "--resume"), "unknown phases", "othep")


def save_partition(path):
    with path.open("wb") as file:
        np.savez(file, offsets=np.arange(5) * 3, indices=np.arange(12))
    return f"partition={{kind: file, path: {path}}}"


def save_weights(path):
    layout = MLP((64, 4, 10)).layout
    torch.save(dict(layout.unflatten(torch.ones(layout.size))), path)
    return f"model.weights={path}"


def save_graph(path):
    path.write_text("0 1\n1 2\n2 3\n3 0\n")
    return f"topology={{kind: file, path: {path}}}"


@some(30)
@given(save=st.sampled_from([save_partition, save_weights, save_graph]), **DAMAGE)
def test_damaged_input_is_checked_or_refused(tmp_path, save, how, places, seed):
    path = tmp_path / "file"
    setting = save(path)
    path.write_bytes(damaged(path.read_bytes(), how, places, random.Random(seed)))
    before = files(tmp_path)
    sets = ["clients=4", "topology.degree=3", "model.hidden=[4]", "partition.samples=5"]
    taken = setting.partition("=")[0] + "."
    kept = [each for each in sets if not each.startswith(taken)]
    answered(
        "check", "--no-measure", *(word for each in (*kept, setting) for word in ("--set", each))
    )
    assert files(tmp_path) == before


# --------------------------------------------------------------------------------------------- words

VALUES = st.sampled_from(
    [
        "0",
        "1",
        "2",
        "-1",
        "1e-9",
        "1e400",
        ".nan",
        "90m",
        "1:00:00",
        "0:0:0",
        "99-1:2:3",
        "''",
        "[1]",
    ]
    + ["null", "true", "stop", "continue", "{}", "2GB", "1", "cpu", "x" * 50, "\u00e9", "9" * 400]
)
KEYS = st.sampled_from(
    ["output.checkpoint_every", "output.checkpoint_minutes", "output.time_limit", "on_divergence"]
    + ["rounds", "seed", "evaluation.every", "evaluation.clients", "compute.threads", "output"]
    + ["compute.memory_limit", "algorithm.lr", "algorithm.taus", "output.time_limit.x", "output.x"]
)
FLAGS = st.sampled_from(["--resume", "--overwrite", "-q", "--resume=1", "--follow", "-o", "", "--"])
SETTINGS = st.builds("{}={}".format, KEYS, VALUES)


@some(50)
@given(flags=st.lists(FLAGS, max_size=2), sets=st.lists(SETTINGS, min_size=1, max_size=3))
def test_any_words_to_run(tmp_path, monkeypatch, stopped, flags, sets):
    """On top of a run that was interrupted; refused words change nothing."""
    restore(tmp_path, stopped[0])
    monkeypatch.chdir(tmp_path)
    words = run_words(tmp_path / "run.h5", "--resume", *flags)
    ended = answered(*words, *(word for each in sets for word in ("--set", each)))
    if ended.code == 2:
        assert files(tmp_path) == stopped[0]
    assert not Outputs(tmp_path / "run.h5").lock.exists()


@some(30)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
    | st.lists(SETTINGS.map(lambda each: each.replace("=", ": ")), max_size=3).map("\n".join)
)
def test_any_file_to_run(tmp_path, stopped, text):
    restore(tmp_path, {})
    source = tmp_path / "run.yaml"
    source.write_text(text, encoding="utf-8", newline="")
    words = run_words(tmp_path / "out" / "run.h5")
    words[1] = str(source)
    ended = answered(*words, "--set", "dataset.name=digits")
    assert ended.code in (0, 75) or not (tmp_path / "out").exists()
    if (tmp_path / "out").exists():
        restore(tmp_path / "out", {})
        (tmp_path / "out").rmdir()
