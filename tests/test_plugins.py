"""Code of users: registered data sets and methods, files given by --plugin, installed entry points."""

import hashlib
import importlib
import json
import sys

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from mpi_ntkdfl import config
from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.cli.main import cli
from mpi_ntkdfl.cli.run import _load_plugins
from mpi_ntkdfl.comm.world import SoloWorld
from mpi_ntkdfl.config import sections
from mpi_ntkdfl.data import partition, sources
from mpi_ntkdfl.runtime import plugins
from mpi_ntkdfl.runtime.errors import InputError
from tests import children

PLUGIN = """
from __future__ import annotations
from typing import Literal
import numpy as np
from mpi_ntkdfl.algorithms import register_method
from mpi_ntkdfl.algorithms.base import Method, Needs, RoundResult
from mpi_ntkdfl.config import MethodSettings
from mpi_ntkdfl.data.sources import register_dataset

def loader(n: int = 60):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 2, 3))
    y = np.where(x.sum((1, 2)) > 0, "up", "down")
    return {"x_train": x[20:], "y_train": y[20:], "x_test": x[:20], "y_test": y[:20],
            "site_train": np.arange(n - 20) % 4}

class ShrinkSettings(MethodSettings):
    name: Literal["shrink"] = "shrink"
    by: float = 0.5

class Shrink(Method[ShrinkSettings]):
    Settings = ShrinkSettings
    label = "Shrink"

    @classmethod
    def needs(cls, settings, network, dtype):
        return Needs()

    def round(self, weights, number, exchange):
        return RoundResult(weights * self.settings.by, [0] * len(weights))

register_dataset("mine", loader)
register_method(Shrink)
"""
SETS = [
    *("dataset={name: mine, options: {n: 80}}", "algorithm={name: shrink, by: 0.25}", "clients=4"),
    *("partition.kind=writer", "topology={kind: ring}", "rounds=2"),
]


def sets(assignments=SETS):
    return [word for each in assignments for word in ("--set", each)]


@pytest.fixture
def tables(monkeypatch):
    """What a test registers or loads is forgotten afterwards."""
    for table in (sources.DATASETS, METHODS):
        monkeypatch.setattr(table, "_entries", dict(table._entries))
    monkeypatch.setattr(plugins, "_loaded", {})


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    return path


def refused(message, **arrays):
    """What is said about a loader that returns `arrays` over sound ones."""
    sound = {
        "x_train": np.arange(8.0).reshape(4, 2),
        "y_train": [0, 1, 0, 1],
        "x_test": [[1, 2], [5, 5]],
        "y_test": [1, 0],
    }
    returned = {k: v for k, v in (sound | arrays).items() if v is not None}
    sources.DATASETS._entries.pop("wrong", None)
    sources.register_dataset("wrong", lambda: returned)
    with pytest.raises(InputError, match=message) as caught:
        sources.load(config.dataset_settings("wrong"))
    assert str(caught.value).startswith("data set wrong")
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------ registered data sets


def test_a_registered_data_set_becomes_classes_sites_and_flat_samples(tables):
    x = np.arange(24.0).reshape(4, 2, 3)
    arrays = {
        "x_train": x,
        "y_train": [7, 3, 7, 7],
        "x_test": x[:2] + 1,
        "y_test": np.array([3.0, 7.0]),
        "site_train": ["b", "a", "b", "a"],
        "site_test": ["a", "a"],
    }
    sources.register_dataset("mine", lambda scale: arrays | {"x_train": x * scale})
    got = sources.load(config.dataset_settings("mine", options={"scale": 2}))
    assert got.train_inputs.tolist() == (2 * x).reshape(4, 6).tolist()
    assert (got.train_inputs.dtype, got.shape, got.classes) == (np.float32, (2, 3), 2)
    assert got.train_labels.tolist() == [1, 0, 1, 1]
    assert got.test_labels.tolist() == [0, 1]
    assert (got.sites.tolist(), got.test_sites.tolist()) == ([1, 0, 1, 0], [0, 0])
    # Samples of more dimensions share one mean and deviation.
    assert np.allclose([got.scaling.mean, got.scaling.deviation], [[23], [(2 * x).std()]])
    shares = partition.make(
        sections.WriterPartition(kind="writer"), got.train_labels, 2, 0, got.sites
    )
    assert [shares.client(i).tolist() for i in range(2)] == [[1, 3], [0, 2]]


@pytest.mark.parametrize(
    ("standardize", "inputs"),
    [
        ("none", [[0, 10], [2, 30]]),
        ("measured", [[-1, -1], [1, 1]]),  # per feature, since samples are vectors
        ([1, 2], [[-0.5, 4.5], [0.5, 14.5]]),
    ],
)
def test_registered_data_are_standardised_as_asked(tables, standardize, inputs):
    x = np.array([[0, 10], [2, 30]])
    arrays = {"x_train": x, "y_train": [0, 1], "x_test": x + 1, "y_test": [0, 1]}
    sources.register_dataset("mine", lambda: arrays)
    got = sources.load(config.dataset_settings("mine", standardize=standardize))
    assert got.scaling.apply(got.train_inputs).tolist() == inputs


def test_bytes_stay_bytes_and_labels_stay_with_classes(tables):
    x = np.arange(6, dtype=np.uint8).reshape(3, 2)
    arrays = {"x_train": x, "y_train": [2, 0, 2], "x_test": x[:1] + 1, "y_test": [1], "classes": 4}
    sources.register_dataset("mine", lambda: arrays)
    got = sources.load(config.dataset_settings("mine"))
    assert (got.train_inputs.dtype, got.classes, got.train_labels.tolist()) == (
        np.uint8,
        4,
        [2, 0, 2],
    )


def test_arrays_that_are_wrong(tables):
    nan = np.full((4, 2), np.nan)
    refused("lacks y_test and has unknown none", y_test=None)
    refused("has unknown z", z=3)
    refused("x_train is no array|x_train must be", x_train=[[1, 2], [3], [4], [5]])
    refused("x_train must be an array of numbers.* got object", x_train=np.array([[{}]] * 4))
    refused("x_train must be numbers", x_train=np.array([["a"]] * 4))
    refused(r"x_train must be numbers \[sample, ...\].*\(4,\)", x_train=np.zeros(4))
    refused("x_train must be numbers", x_train=np.zeros((0, 2)))
    refused("x_train must be an array of numbers", x_train=np.zeros((4, 2), complex))
    refused("finite.*training sample 0", x_train=nan)
    refused("finite.*training sample 0", x_train=np.full((4, 2), 1e300))
    refused(r"samples of one shape, got \(2,\) and \(3,\)", x_test=np.ones((2, 3)))
    refused("y_train must have one entry for each of the 4 samples", y_train=[0, 1])
    refused("y_train must have one entry", y_train=np.eye(4))
    refused("y_train must be whole numbers or text", y_train=[0.5, 1, 0, 1])
    refused("y_test has 5 at sample 1, which no training sample has", y_test=[0, 5])
    refused("labels must be in 0..2, got 5 at test sample 1", y_test=[0, 5], classes=3)
    refused("y_test must be of one type", y_test=["0", "1"])
    refused("classes must be a number from 1", classes=0)
    refused("classes must be a number from 1", classes="two")
    refused("site_train must have one entry", site_train=[1])
    refused("site_test needs site_train", site_test=[1, 2])
    refused("site_test has 9 at sample 1", site_train=[1, 2, 1, 2], site_test=[1, 9])
    refused(
        "all 4 test samples occur in training",
        x_test=np.arange(8.0).reshape(4, 2),
        y_test=[0, 1, 0, 1],
    )


def test_a_loader_that_fails_and_settings_that_are_wrong(tables):
    def loader(folder, size=3):
        raise OSError("disk is gone")

    sources.register_dataset("broken", loader)
    sources.register_dataset("listed", lambda: [1])
    for name, settings, message in (
        (
            "broken",
            {"options": {"folder": "a"}},
            r"test_plugins\.py, line \d+: OSError: disk is gone",
        ),
        ("broken", {"options": {"foldr": "a"}}, "dataset.options.*'foldr'; did you mean 'folder'"),
        ("broken", {}, "missing a required argument: 'folder'"),
        ("listed", {}, "must return a mapping, got list"),
        ("listed", {"standardize": [1, 0]}, "expected none, measured, or"),
        ("listed", {"standardize": "yes"}, "expected none, measured, or"),
        ("listed", {"option": {}}, "option: unknown key"),
    ):
        with pytest.raises(InputError, match=message):
            sources.load(config.dataset_settings(name, **settings))
    with pytest.raises(InputError, match="there is a data set 'digits' already"):
        sources.register_dataset("digits", loader)


# ------------------------------------------------------------------------------------- plugin files


def test_a_file_runs_once_and_is_known_by_its_hash(tables, tmp_path):
    path = tmp_path / "counting.py"
    path.write_text("import sys\nsys.ran = getattr(sys, 'ran', 0) + 1\n")
    first, again = plugins.load([path, str(path)])
    assert sys.ran == 1
    assert first is again
    assert first == plugins.Plugin("counting.py", hashlib.sha256(path.read_bytes()).hexdigest())
    assert json.loads(plugins.as_json(plugins.loaded())) == [
        {"name": "counting.py", "sha256": first.sha256}
    ]
    assert plugins.files() == [str(path)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n1 / 0\n", "bad.py, line 2: ZeroDivisionError: division by zero"),
        ("x = (\n", "bad.py, line 1: SyntaxError: '\\(' was never closed"),
        ("import sys\nsys.exit(3)\n", "bad.py, line 2: SystemExit: 3"),
        ("import no_such_module\n", "bad.py, line 1: ModuleNotFoundError: No module named"),
        ("x = '\0'\n", "bad.py"),
        (
            "from mpi_ntkdfl.data.sources import register_dataset\nregister_dataset('digits', len)\n",
            "bad.py, line 2: there is a data set 'digits' already",
        ),
        (None, "bad.py cannot be read: No such file"),
    ],
)
def test_a_file_that_fails_is_one_message_with_file_and_line(tables, tmp_path, text, message):
    path = tmp_path / "bad.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=f"--plugin: .*{message}") as caught:
        plugins.load([path])
    assert "\n" not in str(caught.value)
    assert plugins.loaded() == []


def test_commands_of_data_and_studies_take_plugins(tables, plugin):
    of_data = sets([each for each in SETS if not each.startswith("algorithm")])
    for words, said in {
        ("data", "show", "mine"): "mine: 40 training and 20 test samples",
        ("study", "plan", "averaging", *of_data, "--no-measure"): "in studies",
    }.items():
        told = CliRunner().invoke(cli, [*words, "--plugin", str(plugin)])
        assert told.exit_code == 0, told.exception
        assert said in told.output
        for table in (plugins._loaded, sources.DATASETS._entries, METHODS._entries):
            del table[list(table)[-1]]  # the next command must load the file itself


def test_commands_take_plugins(tables, plugin):
    runner = CliRunner()
    unknown = runner.invoke(cli, ["check", *sets(), "--no-measure"])
    assert isinstance(unknown.exception, InputError)
    assert "unknown data set 'mine'" in str(unknown.exception)
    told = runner.invoke(cli, ["check", "--plugin", str(plugin), *sets(), "--no-measure"])
    assert told.exit_code == 0, told.exception
    assert "shrink on mine: 4 clients with 15 to 15 samples" in told.output
    assert "without the steps of the method" in told.output
    words = ["submit", *("--plugin", str(plugin)), *sets(), *("--ranks", "2", "--time", "1:00:00")]
    script = runner.invoke(cli, words)
    assert f"--plugin {plugin}" in script.output


@pytest.mark.slow
def test_ranks_share_a_plugin_and_its_record_is_read_without_it(mpirun, tmp_path, plugin):
    records = []
    for ranks in (1, 2):
        records.append(tmp_path / f"{ranks}.h5")
        words = ["run", *sets(), "-q", "-o", records[-1], "--plugin", plugin]
        if ranks == 1:
            assert children.command(*words).wait().code == 0
            continue
        done = mpirun(ranks, "-m", "mpi_ntkdfl", *words)
        assert done.returncode == 0, done.stderr
    one, two = (h5py.File(record.with_suffix(".ckpt.h5"))["params"][:] for record in records)
    assert one.tobytes() == two.tobytes()
    with h5py.File(records[1]) as file:
        found = json.loads(file.attrs["plugins"])
    assert found == [{"name": "mine.py", "sha256": hashlib.sha256(plugin.read_bytes()).hexdigest()}]
    for command in (["show", str(records[0])], ["compare", *map(str, records), "--target", "0.5"]):
        shown = CliRunner().invoke(cli, command)
        assert shown.exit_code == 0, shown.exception
        assert "shrink" in shown.output


def test_ranks_with_different_files_all_refuse(tables, tmp_path):
    """A file that is not the same on all nodes."""

    class Second(SoloWorld):
        rank, hosts = 1, ("here", "there")

        def on_root(self, task):
            return [plugins.Plugin("p.py", "0" * 64)]

    path = tmp_path / "p.py"
    path.write_text("number = 1\n")
    message = f"all ranks must run the same file, but {path} is another one on there"
    with pytest.raises(InputError, match=message):
        _load_plugins(Second(), (str(path),))


# ------------------------------------------------------------------------------------ entry points


def test_an_installed_entry_point_is_loaded_when_its_name_is_asked_for(
    tables, tmp_path, monkeypatch
):
    module = tmp_path / "their_package.py"
    module.write_text(
        "x = [[1], [2]]\n"
        "def loader(): return {'x_train': x, 'y_train': [0, 1], 'x_test': [[3]], 'y_test': [1]}\n"
    )
    info = tmp_path / "their_package-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(
        "[mpi_ntkdfl.datasets]\ntheirs = their_package:loader\ngone = their_package:nothing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(InputError, match="unknown data set 'their'; did you mean 'theirs'"):
        config.dataset_settings("their")
    assert "their_package" not in sys.modules
    got = sources.load(config.dataset_settings("theirs"))
    assert got.train_inputs.tolist() == [[1], [2]]
    digest = hashlib.sha256(module.read_bytes()).hexdigest()
    assert plugins.loaded() == [plugins.Plugin("their-package 1.5", digest)]
    with pytest.raises(
        InputError, match="entry point 'gone' .* their-package 1.5 fails: .*nothing"
    ):
        config.dataset_settings("gone")
