"""The command line: in one process where no MPI starts, and real launches of several ranks."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from mpi_ntkdfl import __version__, presets
from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.analysis import tables
from mpi_ntkdfl.cli import main as cli
from mpi_ntkdfl.cli.options import read_config
from mpi_ntkdfl.comm.ledger import TRAFFIC_PHASES
from mpi_ntkdfl.data.image_sets import FILES
from mpi_ntkdfl.model.mlp import MLP
from mpi_ntkdfl.runtime.clock import PHASES
from mpi_ntkdfl.runtime.yaml_text import read_yaml
from tests import children
from tests.conftest import environment, examples
from tests.test_record import finished_run

TINY = {
    "rounds": "2",
    "clients": "6",
    "topology.degree": "3",
    "algorithm.taus": "[5, 10]",
    "compute.device": "cpu",
}
QUICKSTART = (64, 100, 10)
"""Widths of the quickstart's network."""


def sets(**overrides):
    """`--set` words for the tiny run, with changes; `__` stands for the dot."""
    values = TINY | {key.replace("__", "."): value for key, value in overrides.items()}
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def words(*args):
    """Runs a command in this process: exit code, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        patch.setattr(sys, "argv", ["mpi_ntkdfl", *map(str, args)])
        cli.main()
    return ended.value.code or 0, out.getvalue(), err.getvalue()


def answer(*args):
    """What a command that must succeed prints."""
    code, out, err = words(*args)
    assert (code, err) == (0, "")
    return out


def complaint(*args):
    """The one message of a command that must refuse its input."""
    code, out, err = words(*args)
    assert (code, out) == (2, "")
    assert_one_error(err)
    return err


def assert_one_error(err):
    lines = err.strip().splitlines()
    assert len([line for line in lines if line.lower().startswith("error:")]) == 1, err
    assert "Traceback" not in err
    # click says how the command is used before it says what is wrong; nothing comes after.
    assert lines[-1].lower().startswith("error:"), err


def preset_config(name="quickstart", **overrides):
    """A preset as `run` and `check` understand it."""
    return read_config(name, tuple(sets(**overrides)[1::2]))


def save_weights(path, widths=QUICKSTART, fill=None):
    """A state_dict of an MLP."""
    layout = MLP(widths).layout
    flat = torch.zeros(layout.size) if fill is None else torch.full((layout.size,), fill)
    torch.save({name: t.clone() for name, t in layout.unflatten(flat).items()}, path)


def save_partition(path, last=5):
    """A partition of six clients with one sample each."""
    with path.open("wb") as file:
        np.savez(file, offsets=np.arange(7), indices=np.array([0, 1, 2, 3, 4, last]))


@pytest.fixture
def finished(tmp_path):
    """The record of a finished run, made up, with its checkpoint beside it."""
    return finished_run(tmp_path)


# ------------------------------------------------------------------------- help, presets, words


@pytest.mark.parametrize(
    "command",
    [
        *([], ["run"], ["check"], ["presets"], ["show"], ["export"], ["doctor"]),
        *(["data"], ["data", "list"], ["data", "fetch"], ["data", "path"]),
    ],
    ids=" ".join,
)
def test_help(command):
    for option in ("-h", "--help"):
        out = answer(*command, option)
        assert out.startswith("Usage: python -m mpi_ntkdfl")
        assert "--help" in out


def test_help_names_every_option_of_the_interface():
    for command, options in {
        "run": ["--set", "-o", "--overwrite", "-q"],
        "check": ["--set", "--ranks"],
        "export": ["--client", "--average", "OUT.pt"],
        "kernel": ["--client", "--neighbourhood", "FIGURE.(pdf|png|svg)"],
    }.items():
        out = answer(command, "--help")
        assert all(option in out for option in options)


def test_version():
    assert __version__ in answer("--version")


def test_presets():
    lines = answer("presets").splitlines()
    assert [line.split()[0] for line in lines] == presets.names()
    for name in presets.names():
        raw = yaml.safe_load(answer("presets", name))
        assert raw.get("base") in presets.names() or raw["algorithm"]["name"] in METHODS


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fly"], "No such command 'fly'"),
        (["run", "--fast"], "No such option"),
        (["--fast"], "No such option"),
        (["run", "quickstart", "again"], "unexpected extra argument"),
        (["run", "--set"], "requires an argument"),
        (["check", "--ranks", "0"], "0 is not in the range"),
        (["check", "--ranks", "two"], "'two' is not a valid integer"),
        (["presets", "fast"], "unknown preset 'fast'; there are: fashion-mnist-cnn"),
        (["show"], "Missing argument 'RUN.h5'"),
        (["show", "no.h5"], "no record at no.h5"),
        (["show", "."], "is not a readable record"),
        (["export", "no.h5", "--average", "w.pt"], "no checkpoint at no.ckpt.h5"),
        (["export", ".", "--average", "w.pt"], "no checkpoint at .ckpt.h5"),
        (["export", "no.h5", "w.pt"], "choose one of --client I and --average"),
        (["export", "no.h5", "--client", "0", "--average", "w.pt"], "choose one of"),
        (["export", "no.h5", "--client", "-1", "w.pt"], "-1 is not in the range"),
        (
            ["data", "path", "imagenet"],
            "unknown data set 'imagenet'; there are: arrays, breast-cancer",
        ),
        (
            ["data", "fetch", "imagenet"],
            "unknown data set 'imagenet'; there are: arrays, breast-cancer",
        ),
        (["data", "fetch", "digits"], "it comes inside scikit-learn"),
        (["data", "shred"], "No such command 'shred'"),
        (["check", "no.yaml"], "'no.yaml' is neither a preset"),
        (["check", "--set", "raunds=3"], "raunds: unknown key, got 3"),
        (["check", "--set", "'a\n\nb'=3"], "unknown key"),
        (["check", "--set", "rounds"], "--set needs section.key=value"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refused_words(tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    assert message in complaint(*args)
    assert not list(tmp_path.iterdir())


def test_exit_codes_without_the_entry_point():
    """`cli` is a click group like any other for those who embed it."""
    assert CliRunner().invoke(cli.cli, ["presets"]).exit_code == 0
    assert CliRunner().invoke(cli.cli, ["fly"]).exit_code == 2


# -------------------------------------------------------------------------------------------- check


def test_check_prints_the_plan():
    out = answer("check", "--ranks", 4, "--measure")
    assert "as measured just now" in out
    for part in (
        *("ntk-dfl on digits: 32 clients", "10 rounds, 4 ranks", "64 - 100 - 10, 7510 parameters"),
        *(
            "graph: regular, 80 edges",
            "exchanges of Jacobians per round",
            "jacobians",
            "memory of the largest rank",
            "total",
        ),
    ):
        assert part in out


def test_check_of_methods_without_jacobians():
    out = answer("check", "--no-measure", "--set", "algorithm.name=fedavg", "--ranks", 4)
    # 32 vectors of 7,510 float32 each way. A reduction of as many 64-bit integers over 4 ranks sends
    # 2 (4 - 1) times their bytes.
    assert re.search(r"weights +961\.3 kB protocol +360\.5 kB MPI", out)
    assert re.search(r"averages +961\.3 kB protocol +0 B MPI", out)
    assert "method's own" in out
    assert "waves" not in out
    assert "method's own" not in answer("check", "--no-measure")


def test_check_reads_a_file_and_overrides(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("{clients: 8, dataset: {name: digits}, topology: {kind: ring}}")
    out = answer(
        *("check", "--no-measure", path, "--set", "clients=10", "--set", "model.hidden=[7, 6]")
    )
    assert "10 clients" in out
    assert "graph: ring, 10 edges" in out
    assert "64 - 7 - 6 - 10, 573 parameters" in out


def test_more_ranks_move_more_bytes_but_send_the_same():
    totals = []
    for ranks in (1, 4):
        out = answer("check", "--no-measure", "--ranks", ranks)
        last = [line for line in out.splitlines() if "protocol" in line][-1]
        totals.append(last.split("protocol"))
    assert totals[0][0] == totals[1][0]
    assert totals[0][1].split() == ["0", "B", "MPI"] != totals[1][1].split()


def bad_weights(path):
    save_weights(path, (64, 90, 10))


def nan_weights(path):
    save_weights(path, fill=float("nan"))


def renamed_weights(path):
    torch.save({"layer1.weight": torch.zeros(3)}, path)


def list_for_weights(path):
    torch.save([1, 2], path)


def junk(path):
    path.write_bytes(b"no such file format" * 9)


def far_partition(path):
    save_partition(path, last=99999)


def short_partition(path):
    with path.open("wb") as file:
        np.savez(file, offsets=np.arange(4), indices=np.arange(3))


@pytest.mark.parametrize(
    ("make", "override", "message"),
    [
        (None, {"model__weights": "{path}"}, "cannot be read: No such file"),
        (junk, {"model__weights": "{path}"}, "is not a readable state_dict"),
        (list_for_weights, {"model__weights": "{path}"}, "must hold a mapping of names to tensors"),
        (
            renamed_weights,
            {"model__weights": "{path}"},
            "expected the tensors fc1.weight, fc1.bias",
        ),
        (bad_weights, {"model__weights": "{path}"}, "fc1.weight must have shape [100, 64]"),
        (nan_weights, {"model__weights": "{path}"}, "fc1.weight holds values that are not finite"),
        (None, {"partition": "{{kind: file, path: {path}}}"}, "cannot be read: No such file"),
        (junk, {"partition": "{{kind: file, path: {path}}}"}, "is not an npz file"),
        (far_partition, {"partition": "{{kind: file, path: {path}}}"}, "got 99999 at position 5"),
        (short_partition, {"partition": "{{kind: file, path: {path}}}"}, "clients + 1 = 7 entries"),
        (None, {"topology": "{{kind: file, path: {path}}}"}, "No such file"),
        (None, {"dataset": "{{name: mnist, root: {path}}}"}, "mnist needs its four IDX files"),
        (None, {"dataset": "{{name: femnist, root: {path}}}"}, "data set femnist not found in"),
        (None, {"partition": "{{kind: writer}}"}, "needs a data set with sites"),
        (
            None,
            {"partition": "{{kind: shards, per_client: 1000}}"},
            "shards needs a sample per shard",
        ),
        (None, {"compute__memory_limit": "1MB"}, "compute.memory_limit must hold at least one"),
        (None, {"topology__degree": "6"}, "topology.degree must be below clients"),
    ],
)
def test_check_refuses(tmp_path, make, override, message):
    path = tmp_path / "file"
    if make is not None:
        make(path)
    override = {key: value.format(path=path) for key, value in override.items()}
    assert message in complaint("check", *sets(**override))


def test_check_refuses_more_ranks_than_clients():
    assert "got 7 ranks for 6 clients" in complaint("check", *sets(), "--ranks", 7)
    assert "6 ranks" in answer("check", "--no-measure", *sets(), "--ranks", 6)


def test_check_accepts_a_sound_partition_and_weights(tmp_path):
    save_weights(tmp_path / "w.pt", fill=0.5)
    save_partition(tmp_path / "p.npz")
    partition = f"{{kind: file, path: {tmp_path / 'p.npz'}}}"
    given = {"partition": partition, "model__weights": str(tmp_path / "w.pt")}
    out = answer("check", "--no-measure", *sets(**given))
    assert "6 clients with 1 to 1 samples" in out


# ---------------------------------------------------------------------------- show, export, and data


def test_show(finished):
    out = answer("show", finished)
    assert "ntk-dfl on digits" in out
    assert "bytes per round" in out


@pytest.mark.parametrize(("choice", "value"), [(["--client", 3], 3.2), (["--average"], 1.7)])
def test_export(finished, tmp_path, choice, value):
    assert answer("export", finished, *choice, tmp_path / "w.pt") == ""
    state = torch.load(tmp_path / "w.pt", weights_only=True)
    assert list(state) == ["fc1.weight", "fc1.bias"]
    assert all(torch.allclose(t, torch.full_like(t, value)) for t in state.values())


def test_export_refuses_clients_that_do_not_exist(finished, tmp_path):
    assert "clients are 0 to 3 in this run, got 4" in complaint(
        "export", finished, "--client", 4, tmp_path / "w.pt"
    )
    assert not (tmp_path / "w.pt").exists()


@pytest.mark.parametrize("target", ["run.h5/w.pt", "no/w.pt", "folder.pt"])
def test_export_refuses_targets_that_cannot_be_written(finished, tmp_path, target):
    (tmp_path / "folder.pt").mkdir()
    assert "cannot write" in complaint("export", finished, "--average", tmp_path / target)


def test_data_list():
    out = answer("data", "list")
    for name in ("digits", "breast-cancer", "mnist", "fashion-mnist", "femnist"):
        assert f"\n{name} " in f"\n{out}"


def test_data_path(tmp_path, monkeypatch):
    assert "inside scikit-learn" in answer("data", "path", "digits")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "data fetch mnist" in complaint("data", "path", "mnist")
    folder = tmp_path / "mpi_ntkdfl" / "mnist"
    folder.mkdir(parents=True)
    names = [f"{a}-{b}-ubyte" for a in ("train", "t10k") for b in ("images-idx3", "labels-idx1")]
    for name in names:
        (folder / name).touch()
    assert sorted(answer("data", "path", "mnist").split()) == sorted(str(folder / n) for n in names)


# --------------------------------------------------------------------------------------------- fuzz

OFFLINE = ["presets", "check", "show", "export", "data", "--help", "--version"]
OTHER_WORDS = [
    *("list", "path", "quickstart", "digits", "imagenet", "--set", "rounds=2", "clients=6"),
    *("topology.degree=3", "topology.kind=ring", "model.hidden=[3]", "rounds=[", "=", "a.b.c=1"),
    *("--ranks", "2", "-1", "0", "--client", "--average", "--junk", "-x", "--", "-", "", ".", "/"),
    *("run.h5", "run.ckpt.h5", "none.h5", "w.pt", "no/w.pt", "-h", "\udce9", "\n", "x" * 300),
]
LOCAL_NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=4
)
"""Words that may name a file to write, so nothing outside the working folder."""


@examples(250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    first=st.sampled_from(OFFLINE),
    rest=st.lists(st.sampled_from(OTHER_WORDS) | LOCAL_NAMES, max_size=5),
)
def test_any_words(tmp_path, monkeypatch, first, rest):
    if not (tmp_path / "run.h5").exists():
        finished_run(tmp_path)
        monkeypatch.chdir(tmp_path)
    code, out, err = words(first, *rest)
    assert code in (0, 2)
    if code:
        # A group without its command answers with its help, and exit code 2 as well.
        assert out == ""
        assert err.startswith(("error: ", "Error: ", "Usage: "))
        assert f"\n{err}".lower().count("\nerror: ") <= 1
    assert "Traceback" not in out + err


# -------------------------------------------------------------------------- bad input, several ranks

MANY = """
import contextlib, io, json, sys
from mpi4py import MPI
from mpi_ntkdfl.cli import main as cli

found = []
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
    found.append(MPI.COMM_WORLD.gather([code, out.getvalue(), err.getvalue()]))
if MPI.COMM_WORLD.rank == 0:
    print(json.dumps(found))
"""
"""Runs several command lines in one launch; prints exit code, output and errors of every rank."""


def files_below(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def bad_runs(tmp_path):
    """Words after `run`, and what the message says. `old.h5` and its checkpoint exist."""
    weights, far, junk_data = tmp_path / "w.pt", tmp_path / "p.npz", tmp_path / "junk"
    bad_weights(weights)
    far_partition(far)
    junk_data.mkdir()
    for part in FILES.values():
        (junk_data / f"{part}.gz").write_bytes(gzip.compress(b"no images")[:-3])
    old, new = tmp_path / "old.h5", tmp_path / "new.h5"
    bad = {
        "raunds: unknown key, got 3": sets(raunds="3"),
        "rounds: Input should be a valid integer, got 'many'": sets(rounds="many"),
        "topology.degree must be below clients": sets(topology__degree="6"),
        "more ranks than clients: got 3 ranks for 2 clients": sets(
            clients="2", topology__degree="1"
        ),
        "needs its four IDX files": sets(dataset=f"{{name: mnist, root: {tmp_path / 'none'}}}"),
        "junk": sets(dataset=f"{{name: mnist, root: {junk_data}}}"),
        "got 99999 at position 5": sets(partition=f"{{kind: file, path: {far}}}"),
        "fc1.weight must have shape": sets(model__weights=str(weights)),
        "compute.memory_limit must hold": sets(compute__memory_limit="1MB"),
        "compute.device cuda:99 needs": sets(compute__device="cuda:99"),
    }
    for message, overrides in bad.items():
        yield [*overrides, "-o", new], message
        yield [*overrides, "-o", old, "--overwrite"], message
    yield [*sets(), "-o", old], "old.h5 exists; choose another -o, give --resume"
    yield [*sets(), "-o", tmp_path / "w.pt" / "run.h5"], "cannot write"
    yield [*sets(), "-o", "/proc/x.h5"], "cannot write /proc/x.h5"
    yield [*sets(), "-o", tmp_path, "--overwrite"], "is not a regular file"
    yield ["--junk"], "No such option"


@pytest.mark.slow
def test_bad_input_is_said_once_and_changes_nothing(tmp_path, mpirun):
    (tmp_path / "old").mkdir()
    cases = list(bad_runs(tmp_path))
    shutil.move(finished_run(tmp_path / "old"), tmp_path / "old.h5")
    shutil.move(tmp_path / "old" / "run.ckpt.h5", tmp_path / "old.ckpt.h5")
    script = tmp_path / "many.py"
    script.write_text(MANY)
    before = files_below(tmp_path)
    lines = [["run", "quickstart", *map(str, args)] for args, _ in cases]
    done = mpirun(3, script, json.dumps(lines))
    assert (done.returncode, done.stderr) == (0, "")
    for (args, message), ranks in zip(cases, json.loads(done.stdout), strict=True):
        codes, outs, errs = zip(*ranks, strict=True)
        assert codes == (2, 2, 2), args
        assert not any(outs), args
        assert_one_error("".join(errs))
        assert message in "".join(errs)
    assert files_below(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", *sets(raunds="3")], "error: configuration: raunds: unknown key, got 3"),
        (["run", "--junk"], "No such option"),
    ],
    ids=["configuration", "option"],
)
def test_exit_code_of_a_refused_launch(tmp_path, simulate, args, message):
    done = simulate(2, *args)
    assert done.returncode == 2
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.lower().startswith("error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_launcher_of_another_mpi(tmp_path):
    """What each process sees that such a launcher started: a rank, and a world of its own."""
    errors = []
    for rank in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-m", "mpi_ntkdfl", "run", *sets(), "-o", tmp_path / "run.h5"],
            env=environment() | {"PMI_SIZE": "3", "PMI_RANK": rank},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, "")
        errors.append(done.stderr)
    assert_one_error("".join(errors))
    assert "the launcher started 3 processes but this MPI sees 1" in errors[0]
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------- real runs

ATTRIBUTES = """
schema run config version commit sources versions created seed ranks hosts cores host_cores threads memory
mpi torch device choices data contents resumed method_label method_look method_central
method_learned
"""


def assert_record(path, clients, ranks, rounds):
    """Everything the interface promises of a record with an evaluation every round."""
    rows, phases = rounds + 1, len(TRAFFIC_PHASES)
    promised = {
        "rounds/round": ((rows,), "i8"),
        "clients/accuracy": ((rows, clients), "f8"),
        "clients/loss": ((rows, clients), "f8"),
        "clients/own_accuracy": ((rows, clients), "f8"),
        "clients/tau": ((rows, clients), "i8"),
        "model/accuracy": ((rows,), "f8"),
        "model/loss": ((rows,), "f8"),
        "model/gradient_norm": ((rows,), "f8"),
        "deviation": ((rows,), "f8"),
        "traffic/protocol_bytes": ((rounds, phases), "i8"),
        "traffic/mpi_bytes": ((rounds, phases), "i8"),
        "traffic/busiest_bytes": ((rounds,), "i8"),
        "time/seconds": ((rounds, ranks, len(PHASES)), "f8"),
        "time/in_flight": ((rounds, ranks), "f8"),
        "time/waited": ((rounds, ranks), "f8"),
        "topology/edges": ((rounds * 9, 2), "i4"),
        "topology/offsets": ((rounds + 1,), "i8"),
        "partition/offsets": ((clients + 1,), "i8"),
        "partition/indices": (None, "i8"),
        "partition/labels": (None, "u1"),
    }
    with h5py.File(path, "r") as file:
        found = {}
        file.visititems(lambda name, x: found.update({name: x} if hasattr(x, "shape") else {}))
        assert set(found) == set(promised)
        for name, (shape, dtype) in promised.items():
            assert found[name].dtype == dtype, name
            assert shape is None or found[name].shape == shape, name
        assert set(file.attrs) == set(ATTRIBUTES.split())
        assert (file.attrs["schema"], file.attrs["seed"], file.attrs["ranks"]) == (2, 0, ranks)
        assert (file.attrs["version"], file.attrs["device"]) == (__version__, "cpu")
        assert len(json.loads(file.attrs["hosts"])) == ranks
        assert read_yaml(file.attrs["config"], "config") == read_yaml(
            preset_config().to_yaml(), "config"
        )
        assert tuple(file["traffic"].attrs["phases"]) == TRAFFIC_PHASES
        assert tuple(file["time"].attrs["phases"]) == PHASES
        assert file["partition/offsets"][-1] == len(file["partition/indices"])
        assert file["topology/offsets"][:].tolist() == [9 * r for r in range(rounds + 1)]


def assert_plausible(run, rounds):
    assert run.rounds.tolist() == list(range(rounds + 1))
    assert (run["mean-tau"][0] == 0).all()
    assert np.isin(run["mean-tau"][1:], [5, 10]).all()
    for name in ("client-accuracy", "accuracy"):
        assert ((run[name] >= 0) & (run[name] <= 1)).all()
    assert run["deviation"][0] == 0 < run["deviation"][1]
    assert (np.diff(run["loss"]) < 0).all()
    for name in ("client-loss", "loss", "gradient-norm", "seconds", "bytes"):
        assert (run[name] >= 0).all()
    assert (run["seconds"].sum(axis=2) > 0).all()
    assert (run["bytes"].sum(axis=1) > 0).all()
    # Everything a method sends to a client of another rank is sent once to that rank.
    method = [TRAFFIC_PHASES.index(p) for p in ("weights", "averages", "jacobians")]
    assert (run["mpi-bytes"][:, method] > 0).all()
    assert (run["mpi-bytes"][:, method] < run["bytes"][:, method]).all()


@pytest.mark.slow
def test_run_show_export_and_overwrite(tmp_path, simulate):
    path, weights = tmp_path / "new" / "run.h5", tmp_path / "w.pt"
    done = simulate(2, "run", *sets(), "-o", path)
    assert done.returncode == 0, done.stderr
    assert_record(path, clients=6, ranks=2, rounds=2)
    assert_plausible(tables.read(path), rounds=2)
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "run.ckpt-1.h5",
        "run.ckpt.h5",
        "run.h5",
    ]
    assert f"record:  {path}\nweights: {path.with_name('run.ckpt.h5')}" in done.stdout
    assert [line.split("  ")[0] for line in done.stderr.splitlines()] == [
        f"round {done}/2" for done in range(3)
    ]
    with h5py.File(path.with_name("run.ckpt.h5"), "r") as file:
        params = file["params"][:]
        assert (params.shape, params.dtype) == ((6, 7510), "f4")
        assert file.attrs["round"] == 2
    assert answer("show", path).strip() in done.stdout
    assert "\na neighbour learns: every input and every label\n" in done.stdout
    assert answer("export", path, "--client", 5, weights) == ""
    state = torch.load(weights, weights_only=True)
    assert np.array_equal(MLP(QUICKSTART).layout.flatten(state).numpy(), params[5])
    assert answer("export", path, "--average", weights, "--overwrite") == ""
    average = MLP(QUICKSTART).layout.flatten(torch.load(weights, weights_only=True)).numpy()
    assert np.allclose(average, params.astype(float).mean(axis=0), atol=1e-7)

    # The exported average as the start of another run, over the first one.
    again = sets(rounds="1", model__weights=str(weights), evaluation__clients="false")
    ended = children.command("run", "quickstart", *again, "-o", path, "--overwrite", "-q").wait()
    assert (ended.code, ended.err) == (0, "")
    second = tables.read(path)
    assert second.rounds.tolist() == [0, 1]
    assert np.isnan(second["client-accuracy"]).all()
    assert np.isnan(second["client-loss"]).all()
    with h5py.File(path.with_name("run.ckpt.h5"), "r") as file:
        assert file.attrs["round"] == 1
    assert "0  " in answer("show", path)


@pytest.mark.slow
def test_no_words_at_all_run_quickstart(tmp_path):
    """In a single process, without a launcher."""
    done = subprocess.run(
        [sys.executable, "-m", "mpi_ntkdfl"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "quickstart.ckpt-1.h5",
        "quickstart.ckpt.h5",
        "quickstart.h5",
    ]
    run = tables.read(tmp_path / "quickstart.h5")
    assert run.rounds.tolist() == list(range(11))
    assert run["accuracy"][0] < 0.3 < 0.85 < run["accuracy"][-1]
    assert not run["mpi-bytes"].any()
