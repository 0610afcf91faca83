"""One table of metrics: what it says reaches every reader, and no number is lost on the way."""

import csv
import re
import shutil

import h5py
import numpy as np
import pytest
import torch

from mpi_ntkdfl import config, metrics, presets, simulation
from mpi_ntkdfl.analysis import plots, tables, traces
from mpi_ntkdfl.comm.world import SoloWorld
from mpi_ntkdfl.metrics import METRICS, Metric, recorded, register_metric
from mpi_ntkdfl.runtime.errors import InputError, SimulationError
from mpi_ntkdfl.storage.outputs import Outputs
from tests.conftest import ROOT
from tests.test_cli import answer, complaint, words
from tests.test_compare import write


@pytest.fixture
def table(monkeypatch):
    """The table of metrics, which a test may add to."""
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS))
    return METRICS


def read_csv(path):
    """The first line of numbers."""
    with path.open(newline="") as file:
        return next(csv.DictReader(file))


# -------------------------------------------------------------------------------------- documentation


def test_the_documented_schema_is_the_table():
    """docs/output.md is the schema for people; a row of its table may name several datasets."""
    rows = re.findall(
        r"^\| (`\w.*?) \| \[(.*?)\](?:, \[.*?\])* \|", (ROOT / "docs/output.md").read_text(), re.M
    )
    documented = {}
    for names, axes in rows:
        for name in re.findall(r"`([\w/]+)`", names):
            documented[name] = axes.replace(" ", "")
    silent = {m.dataset: m.axes for m in recorded()}.items() - documented.items()
    assert not silent, f"the table of docs/output.md needs a row for each of these: {silent}"
    others = set(documented) - {m.dataset for m in recorded()}
    assert {name.partition("/")[0] for name in others} <= {
        "constants",
        "topology",
        "partition",
        "params",
        "state",
    }


# --------------------------------------------------------------------------------------- user's metrics


def small_run(path, clients=True):
    changes = {
        "clients": 4,
        "rounds": 1,
        "partition": {"samples": 10},
        "topology": {"kind": "ring"},
        "algorithm": {"name": "d-psgd"},
        "evaluation": {"clients": clients},
    }
    simulation.run(
        config.parse([*presets.read_source("quickstart"), changes]),
        SoloWorld(),
        Outputs(path),
    )
    return path


def test_a_users_metric_is_measured_recorded_shown_compared_and_drawn(tmp_path, table, monkeypatch):
    seen = []

    def squared(view):
        seen.append((view.client, view.round))
        assert view.outputs.shape == (len(view.labels), 10)
        assert (view.samples is None) == (view.client is None)
        return torch.linalg.vector_norm(view.params) ** 2

    register_metric(Metric("size", "size", unit="kg", log=True, measure=squared))
    register_metric(Metric("sizes", "sizes", axes="row,client", measure=squared))
    path = small_run(tmp_path / "a.h5")
    assert sorted(seen, key=str) == sorted(
        [(client, done) for done in (0, 1) for client in (0, 1, 2, 3, None)], key=str
    )
    bare = small_run(tmp_path / "b.h5", clients=False)

    monkeypatch.setattr(METRICS, "_entries", {n: m for n, m in METRICS.items() if not m.measure})
    run = tables.read(path)
    assert (run["size"].shape, run["sizes"].shape) == ((2,), (2, 4))
    assert (run.metrics["size"].title, run.metrics["size"].log) == ("size (kg)", True)
    with h5py.File(tmp_path / "a.ckpt.h5") as file:
        params = file["params"][:].astype(float)
    assert run["sizes"][1] == pytest.approx((params**2).sum(axis=1), rel=1e-5)
    assert run["size"][1] == pytest.approx((params.mean(axis=0) ** 2).sum(), rel=1e-5)
    assert re.search(r"mean tau .* size +sizes|mean tau  +size  +sizes", answer("show", path))
    assert "sizes" not in answer("show", bare), (
        "what is measured on clients needs evaluation.clients"
    )
    answer("compare", path, "--csv", tmp_path / "t.csv")
    line = read_csv(tmp_path / "t.csv")
    assert float(line["final_size"]) == run["size"][1]
    assert float(line["final_sizes"]) == run["sizes"][1].mean()
    (panel,) = plots.panels(traces.read([path]), plots.Request(x=["rounds"], y="sizes"))
    assert panel.lines[0].mean.tolist() == run["sizes"].mean(axis=1).tolist()
    answer("plot", path, "-o", tmp_path / "f.svg", "--y", "size")


def test_a_run_goes_on_without_and_with_a_users_metric(tmp_path, table, monkeypatch):
    """Rows without it are NaN: nothing is lost, and nothing is made up."""
    from tests.test_record import CLIENTS, attributes, evaluation, round_record, write_record

    built_in = dict(METRICS)
    register_metric(Metric("size", "size", measure=lambda view: 1.0))
    mine = {**evaluation(2), "size": np.array(5.0)}
    record = write_record(tmp_path / "run.h5")
    taus, told = np.zeros(CLIENTS, int), attributes("a")
    monkeypatch.setattr(METRICS, "_entries", built_in)
    record.append(3, taus, evaluation(3), round_record(3))
    monkeypatch.setattr(
        METRICS, "_entries", dict(METRICS) | {"later": Metric("later", "later", measure=float)}
    )
    record.resume(2, config.parse([]), told)
    record.append(3, taus, {**mine, "later": np.array(7.0)}, round_record(3))
    run = tables.read(record.path)
    assert np.array_equal(run["size"], [np.nan] * 3 + [5.0], equal_nan=True)
    assert np.array_equal(run["later"], [np.nan] * 3 + [7.0], equal_nan=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "loss"}, "there is a metric 'loss' already"),
        ({"name": "No name"}, "lower-case"),
        ({"axes": "round"}, "row or row,client"),
        ({"measure": None}, "must have a measure function"),
        ({"dtype": "i8"}, "must have the dtype f8"),
        ({"dataset": "model/loss"}, "belongs to loss"),
        ({"head": "average"}, "'average' belongs to accuracy"),
    ],
)
def test_refused_metrics(table, changes, message):
    with pytest.raises(InputError, match=message):
        register_metric(Metric(**{"name": "mine", "label": "", "measure": float} | changes))


def test_a_metric_that_is_no_number(tmp_path, table):
    register_metric(Metric("mine", "", measure=lambda view: None))
    with pytest.raises(SimulationError, match="of metric mine must return one number, got None"):
        small_run(tmp_path / "a.h5")


def test_totals_per_round_may_be_cumulative_already():
    """Both say what was spent after 0, 2 and 3 rounds."""
    about = metrics.About(np.array([0, 2, 3]))
    each = Metric("x", "x", axes="round").curve(np.array([1.0, 2.0, 4.0]), about)
    total = Metric("x", "x", axes="round", cumulative=True).curve(np.array([1.0, 3.0, 7.0]), about)
    assert each.tolist() == total.tolist() == [0, 3, 7]


# ------------------------------------------------------------------------------ numbers that are none


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("error")
def test_no_number_is_made_of_what_is_none(tmp_path, value):
    """From the record to the summary, the comparison, the figure and its table, for every metric."""
    path = write(tmp_path / "a.h5", (0.1, 0.9, 0.9, 0.9))
    with h5py.File(path, "r+") as file:
        for metric in recorded():
            if metric.dtype == "f8" and not metric.when:
                file[metric.dataset][-2:] = value
    groups = traces.read([path])
    run, curves = tables.read(path), groups[0].traces[0].curves
    shown, compared = answer("show", path), answer("compare", path, "--csv", tmp_path / "t.csv")
    line = read_csv(tmp_path / "t.csv")
    ends = compared[compared.index("at the last") :].split("\n")[2].split()
    for metric in (each for each in METRICS.values() if not each.when):
        number = curves[metric.name][-1]
        if metric.dtype == "i8":
            assert metric.name in ("mean-tau", "steps") or np.isfinite(number)
            continue
        if np.isfinite(number):
            assert metric.name == "least-squared-gradient", "infinity squared is not the least"
            continue
        assert np.array_equal(run[metric][-1], np.full_like(run[metric][-1], value), equal_nan=True)
        if "end" in metric.places:
            assert line[f"final_{metric.column}"] == str(number)
            assert str(number) in ends
        if "y" in metric.places:
            figure = plots.figure(groups, plots.Request(x=["rounds"], y=metric.name))
            drawn = figure.axes[0].lines[0].get_ydata()
            assert np.array_equal(drawn, curves[metric.name], equal_nan=True)
    (last,) = re.findall(r"\n +3 (.*)", shown)
    columns = [m.name for m in metrics.at("show") if not m.when and m.name != "rounds"]
    assert last.split() == ["-" if name == "mean-tau" else str(value) for name in columns]
    answer("plot", path, "-o", tmp_path / "f.svg")


def test_two_seeds_of_which_one_is_no_number(tmp_path):
    """The mean and the deviation are none either; nothing crashes, and the other rows stay."""
    paths = [write(tmp_path / f"{seed}.h5", seed=seed) for seed in (0, 1)]
    with h5py.File(paths[1], "r+") as file:
        file["deviation"][2:4] = np.inf, np.nan
    (panel,) = plots.panels(traces.read(paths), plots.Request(x=["rounds"], y="deviation"))
    assert panel.lines[0].mean.tolist()[:3] == [0, 0.25, np.inf]
    assert np.isnan(panel.lines[0].mean[3]) and np.isnan(panel.lines[0].sd[2:4]).all()
    answer("plot", *paths, "-o", tmp_path / "f.svg", "--y", "deviation")


def test_ranks_that_a_round_did_not_have_are_no_missing_numbers():
    seconds = np.full((3, 2, 2), 1.0)
    seconds[0, 1] = np.nan  # the round had one rank
    seconds[1, 1, 0] = np.nan  # a number of a rank is missing
    seconds[2] = np.nan
    totals = metrics.slowest_rank(seconds, ["train", "evaluate"])
    assert np.array_equal(totals, [1, np.nan, np.nan], equal_nan=True)


# ---------------------------------------------------------------------------------------- checkpoints


def test_checkpoints_are_told_from_records(tmp_path):
    from tests.test_record import finished_run

    record = finished_run(tmp_path)
    weights = tmp_path / "run.ckpt.h5"
    told = complaint("show", weights)
    assert (
        f"it is a checkpoint, the weights of 4 clients after 2 rounds; its record is {record}"
        in told
    )
    older = tmp_path / "older.ckpt.h5"
    shutil.copy(weights, older)
    for command in (("compare",), ("plot", "-o", tmp_path / "f.svg")):
        code, _, err = words(command[0], *sorted(tmp_path.glob("*.h5")), *command[1:])
        assert code == 0
        left_out = f"because they are checkpoints and not records: {older}, {weights}\n"
        assert f"warning: left out, {left_out}" in err
        (tmp_path / "f.svg").unlink(missing_ok=True)
        assert "a record (RUN.h5) is needed" in complaint(command[0], weights, *command[1:])
