"""Studies: definitions, runs that are done once and only once, and reports that show what they hold."""

import csv
import dataclasses
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import time
from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from mpi_ntkdfl import simulation
from mpi_ntkdfl.analysis import compare_text
from mpi_ntkdfl.assembly import prepare
from mpi_ntkdfl.planning.costs import NOMINAL
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.storage.checkpoint import Checkpoint
from mpi_ntkdfl.storage.lock import locked
from mpi_ntkdfl.storage.outputs import Outputs
from mpi_ntkdfl.studies import (
    definition,
    draw,
    estimate,
    execute,
    grid,
    page,
    paired,
    report,
    weights,
)
from mpi_ntkdfl.studies.collect import collect
from mpi_ntkdfl.studies.series import drawing
from tests.conftest import ROOT
from tests.test_cli import answer, complaint, words

TINY = """
title: A tiny study
about: Nothing.
base: quickstart
settings:
  rounds: 2
  clients: 4
  partition: {kind: dirichlet, alpha: 0.1, samples: 10}
  topology: {kind: ring}
  algorithm: {name: d-psgd}
scales:
  small: {seeds: 2, targets: [0.1, 0.99]}
axes:
  - name: method
    variants:
      - {label: D-PSGD}
      - {label: NTK-DFL, settings: {algorithm: {name: ntk-dfl, taus: [5, 10]}}}
  - name: alpha
    log: true
    variants:
      - {label: alpha 0.1, value: 0.1}
figures:
  - {name: curves, title: Curves, kind: curves, x: [rounds], y: [accuracy], panels: alpha, limits: [0, 1]}
  - {name: ends, title: Ends, kind: ends, x: [alpha], y: [accuracy, deviation]}
"""


FIGURE = [{"name": "f", "title": "", "kind": "curves", "x": ["rounds"], "y": ["accuracy"]}]


def tiny(folder, **changes):
    """The file of the tiny study, with keys replaced."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(TINY) | changes))
    return path


def expanded(folder, source=None, seeds=None, overrides=()):
    return grid.expand(str(source or tiny(folder)), "small", folder / "out", seeds, overrides)


def work(study, runs=None, how=None):
    """Does runs in this process: the tally, and the lines said."""
    said = []
    return execute.work(study, runs or study.distinct(), how, said.append), said


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The tiny study, done."""
    study = expanded(tmp_path_factory.mktemp("study"))
    tally, _ = work(study)
    assert (tally.done, tally.failed) == (4, {})
    return study


# ---------------------------------------------------------------------------------------- definitions

ALL = [
    "ahead",
    "aids",
    "architectures",
    "availability",
    "averaging",
    "convergence",
    "deviation",
    "dynamics",
    "heterogeneity",
    "hospitals",
    "late-rounds",
    "latency",
    "messages",
    "mnist",
    "privacy",
    "selection",
    "sparsity",
]
ALL += ["starts", "stragglers", "taus", "theory", "tuning", "width"]


def test_the_studies_of_the_paper_are_there():
    assert definition.names() == ALL
    listed = answer("study", "list").splitlines()
    assert [line.split()[0] for line in listed] == ALL
    assert all(len(line) > 20 for line in listed)
    assert answer("study", "show", "theory") == definition.text("theory")


@pytest.mark.parametrize("scale", ["paper", "small"])
@pytest.mark.parametrize("name", ALL)
def test_every_study_parses_and_plans(tmp_path, name, scale):
    study = grid.expand(name, scale, tmp_path)
    runs = study.distinct()
    assert len(runs) == len(study.runs), "no two cells are the same run"
    assert {run.config.seed for run in runs} == set(range(study.seeds))
    own = {"hospitals": "heart-disease"}.get(name)
    of_paper = {"small": "digits", "paper": {"mnist": "mnist"}.get(name, "fashion-mnist")}[scale]
    assert {run.config.dataset.name for run in runs} == {own or of_paper}
    if scale == "paper" and not own:
        assert {(run.config.clients, run.config.rounds) for run in runs} == {(300, 30)}
    text = estimate.text(study, estimate.estimate(study), 2)
    assert f"{len(runs)} runs" in text
    assert "(predicted)" in text
    assert not list(tmp_path.iterdir()), "planning writes nothing"
    if scale == "paper":
        published_numbers_belong_to_lines_that_are_drawn(name, study)


def test_time_is_predicted_as_check_does_and_starting_counts(tmp_path):
    study = expanded(tmp_path)
    found = estimate.estimate(study, 3, NOMINAL)
    assert not found.measured
    for method, cost in found.left.items():
        spent = 0.0
        for run in (each for each in study.distinct() if each.config.algorithm.name == method):
            a_round = prepare(run.config, 1).round_seconds(NOMINAL, 1)
            spent += a_round["evaluate"] + 2 * sum(a_round.values())
        # Shares are rounded down, so clients have a little less than the ten samples asked for.
        assert cost.seconds - 2 * 3 * estimate.START_UP == pytest.approx(spent, rel=0.02)


def published_numbers_belong_to_lines_that_are_drawn(name, study):
    """A label that fits nothing would silently leave published numbers out of the figure."""
    labels = {variant.label for run in study.runs for variant in run.cell}
    families = {variant.family for run in study.runs for variant in run.cell}
    for figure in study.definition.figures:
        for line in figure.published.lines if figure.published else ():
            assert line.panel in labels | set(figure.y)
            assert set(line.line.split(", ")) <= labels | families
            assert all(0.4 < y < 0.9 for y in line.y)
            source = "FLamby" if name == "hospitals" else "Thompson et al."
            assert source in figure.published.source


def test_the_studies_of_the_papers_figures_follow_those_of_the_package(tmp_path, monkeypatch):
    """Every method that is drawn has a line, and all partitions of the paper's alphas are files."""
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "docs" / "paper" / "definitions.py"), run_name="__main__")
    files = {path.stem: definition.read(str(path)) for path in tmp_path.glob("*.yaml")}
    assert {"convergence", "baselines", "sparsity", "theory"} <= set(files)
    for each in files.values():
        kept = {variant.label for axis in each.axes for variant in axis.variants}
        for figure in each.figures:
            for line in figure.published.lines if figure.published else ():
                assert line.line.split(", ")[0] in kept
    alphas = {
        v.value: v.settings["partition"]["kind"] for v in files["heterogeneity"].axes[1].variants
    }
    assert alphas == {0.1: "file", 0.2: "file", 0.3: "dirichlet", 0.4: "file", 0.5: "file"}
    assert [len(axis.variants) for axis in files["baselines"].axes] == [6, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": 1}, "unknown key"),
        ({"axis": []}, "unknown key; did you mean 'axes'"),
        (
            {
                "axes": [{"name": "a", "variants": [{"label": "x", "only": "smal"}]}],
                "figures": FIGURE,
            },
            "unknown scale 'smal'; did you mean 'small'",
        ),
        ({"scales": {}}, "scales"),
        ({"scales": {"small": {"seeds": 0, "targets": [0.5]}}}, "seeds"),
        ({"axes": [{"name": "a", "variants": [{"label": "x"}, {"label": "x"}]}]}, "twice"),
        ({"figures": [{"name": "f", "title": "", "kind": "pie"}]}, "kind"),
        ({"figures": [{"name": "f", "title": "", "kind": "curves", "x": ["rounds"]}]}, "y is"),
        (
            {"figures": [{"name": "f", "title": "", "kind": "ends", "x": ["b"], "y": ["loss"]}]},
            "axis must be one of method, alpha, got 'b'",
        ),
        (
            {"figures": [{"name": "f", "title": "", "kind": "drift", "x": ["method"]}]},
            "every variant needs a value",
        ),
        ({"figures": [dict(FIGURE[0], limits=[0.9, 0.6])]}, "limits must be [low, high]"),
        ({"base": "nothing"}, "neither a preset"),
        ({"settings": {"rounds": -1}}, "rounds"),
        ({"settings": {"algorithm": {"name": "d-psgd", "taus": [1]}}}, "D-PSGD, alpha 0.1: conf"),
    ],
)
def test_refused_definitions(tmp_path, changes, message):
    with pytest.raises(InputError, match=re.escape(message)):
        expanded(tmp_path, tiny(tmp_path, **changes))


def test_a_definition_runs_no_code(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(f"title: !!python/object/apply:os.mkdir [{tmp_path / 'made'}]\n")
    assert "not valid YAML" in complaint("study", "plan", path)
    assert not (tmp_path / "made").exists()


def test_zipped_axes_pair_their_variants(tmp_path):
    axes = yaml.safe_load(TINY)["axes"]
    axes[1]["variants"].append(
        {"label": "alpha 1", "value": 1.0, "settings": {"partition": {"alpha": 1.0}}}
    )
    product = expanded(tmp_path, tiny(tmp_path, axes=axes), seeds=1)
    zipped = expanded(tmp_path, tiny(tmp_path, axes=axes, combine="zip"), seeds=1)
    assert len(product.runs) == 4
    assert [run.label for run in zipped.runs] == [
        *("D-PSGD, alpha 0.1, seed 0", "NTK-DFL, alpha 1, seed 0"),
    ]
    # A label may repeat on one axis, such as the title of a panel, but not a pair of labels.
    axes[1]["variants"][1]["label"] = "alpha 0.1"
    assert len(expanded(tmp_path, tiny(tmp_path, axes=axes, combine="zip"), seeds=1).runs) == 2
    axes[0]["variants"][1]["label"] = "D-PSGD"
    with pytest.raises(InputError, match="the zipped labels 'D-PSGD, alpha 0.1' twice"):
        expanded(tmp_path, tiny(tmp_path, axes=axes, combine="zip"))


def test_a_seed_may_have_settings_of_its_own(tmp_path):
    by_seed = [{"rounds": 1}, {"partition": {"kind": "iid"}}]
    scales = {"small": {"seeds": 3, "targets": [0.5], "by_seed": by_seed}}
    runs = expanded(tmp_path, tiny(tmp_path, scales=scales)).runs
    found = [(run.config.seed, run.config.rounds, run.config.partition.kind) for run in runs[::2]]
    assert found == [(0, 1, "dirichlet"), (1, 2, "iid"), (2, 2, "dirichlet")]
    over = expanded(tmp_path, tiny(tmp_path, scales=scales), overrides=["rounds=7"])
    assert {run.config.rounds for run in over.runs} == {7}


# ----------------------------------------------------------------------------------- which run is which


def test_a_run_is_known_by_what_its_result_depends_on(tmp_path):
    def keys(*overrides):
        return [run.key for run in expanded(tmp_path, overrides=overrides).runs]

    plain = keys()
    assert len(set(plain)) == 4
    free = (
        "output.checkpoint_every=3",
        "compute.threads=2",
        "compute.gpu_aware_mpi=true",
        "dataset.root=x",
        "compute.device=cpu",
    )
    assert keys(*free) == plain
    for changed in ("rounds=3", "clients=5", "compute.dtype=float64", "model.hidden=[7]"):
        assert not set(keys(changed)) & set(plain)


def test_a_later_version_with_more_settings_knows_a_run(done, tmp_path):
    """A default is in no name; a run whose record has another value is not taken for this one."""
    run = done.runs[0]
    again = dataclasses.replace(run, outputs=Outputs(tmp_path / f"{run.key}.h5"))
    shutil.copy(run.outputs.record, again.outputs.record)
    with h5py.File(again.outputs.record) as file:
        recorded = str(file.attrs["config"])
    for old, new, same in (
        ("\n  clients_every: 1\n", "\n", True),  # the earlier version did not have the setting
        ("\n  batch: 10\n", "\n  batch: 11\n", False),  # the earlier version had another default
        ("\n  hidden:", "\n  hiding:", False),  # no version knows the setting
    ):
        assert old in recorded
        with h5py.File(again.outputs.record, "r+") as file:
            file.attrs["config"] = recorded.replace(old, new)
        assert grid.is_done(again, weights=False) == same, old
    assert "batch" not in grid._chosen(run.config.algorithm, "algorithm.", run.config)


def test_studies_share_runs(tmp_path):
    small = [grid.expand(name, "small", tmp_path) for name in ("theory", "convergence", "starts")]
    theory, convergence, starts = ({run.key for run in study.runs} for study in small)
    assert theory & convergence, "DFedAvg at alpha 0.1"
    assert len(starts & convergence) == 4, "NTK-DFL and DFedAvg with shared starts, two seeds"


@pytest.mark.parametrize("tasks", range(1, 8))
def test_tasks_cover_all_runs_exactly_once(tmp_path, tasks):
    runs = expanded(tmp_path, seeds=3).distinct()
    shares = [execute.share(runs, task, tasks) for task in range(tasks)]
    assert sorted(run.key for share in shares for run in share) == sorted(r.key for r in runs)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("task", ["2/2", "1", "a/b", "0/0", "-1/2"])
def test_refused_tasks(tmp_path, task):
    out = tmp_path / "out"
    assert "task" in complaint(
        "study", "run", tiny(tmp_path), "--scale", "small", "-o", out, f"--task={task}"
    )
    assert not out.exists()


# ------------------------------------------------------------------------------- once and only once


def stamps(study):
    return {run.key: run.outputs.record.stat().st_mtime_ns for run in study.runs}


def test_what_is_done_is_not_done_again(done):
    before = stamps(done)
    tally, said = work(done)
    assert (tally.done, tally.before, said) == (0, 4, [])
    assert stamps(done) == before
    assert not list(done.folder.rglob("*-lock"))
    text = estimate.text(done, estimate.estimate(done), 1)
    assert re.search(r"ntk-dfl +2 +2 +0:00 +0 B\n", text)
    assert all(" done " in line for line in estimate.run_list(done))


def test_the_configuration_is_in_the_record(done):
    for run in done.runs:
        with h5py.File(run.outputs.record) as file:
            assert yaml.safe_load(file.attrs["config"]) == run.config.model_dump(mode="json")


def worker(folder, log, pause=0.0):
    """A process that does the tiny study and notes in `log` every run it starts and every round."""
    real = simulation.run

    def noting(config, world, outputs, mode):
        def note(progress):
            with log.open("a") as file:
                file.write(f"{outputs.record.stem} {progress.first} {progress.done}\n")
            time.sleep(pause)

        return real(config, world, outputs, mode, note)

    simulation.run = noting
    study = expanded(folder)
    execute.work(study, study.distinct(), None, lambda line: None)


def start(*args):
    # Forked: another process with the libraries loaded, at once.
    process = multiprocessing.get_context("fork").Process(target=worker, args=args)
    process.start()
    return process


def noted(log):
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def test_killed_anywhere_no_run_is_lost_and_no_round_repeated(tmp_path):
    tiny(tmp_path)
    log = tmp_path / "log"
    killed = start(tmp_path, log, 0.3)
    deadline = time.monotonic() + 60
    while len(noted(log)) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)  # the first run has its start and two rounds; the second one is going on
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    before = noted(log)
    study = expanded(tmp_path)
    finished = [run for run in study.runs if grid.is_done(run, weights=False)]
    assert 1 <= len(finished) < 4
    kept = {run.key: run.outputs.record.stat().st_mtime_ns for run in finished}

    again = start(tmp_path, log)
    again.join(60)
    assert all(grid.is_done(run, weights=True) for run in study.runs)
    assert kept.items() <= stamps(study).items(), "a finished run was touched"
    after = noted(log)[len(before) :]
    assert not {key for key, *_ in after} & set(kept)
    rounds = {(key, done) for key, _, done in noted(log)}
    assert rounds == {(run.key, str(n)) for run in study.runs for n in range(3)}


def test_two_workers_never_do_the_same_run(tmp_path):
    tiny(tmp_path)
    log = tmp_path / "log"
    both = [start(tmp_path, log, 0.05) for _ in range(2)]
    for process in both:
        process.join(120)
        assert process.exitcode == 0
    study = expanded(tmp_path)
    started = [key for key, _, done in noted(log) if done == "0"]
    assert sorted(started) == sorted(run.key for run in study.runs)
    assert all(grid.is_done(run, weights=True) for run in study.runs)


def test_a_run_that_is_held_is_left_to_its_holder(tmp_path):
    study = expanded(tmp_path, seeds=1)
    first = study.runs[0]
    with locked(first.outputs):
        tally, said = work(study)
    assert (tally.done, tally.elsewhere) == (1, 1)
    assert "another worker" in said[0]
    tally, _ = work(study)
    assert (tally.done, tally.before) == (1, 1)


def test_a_run_whose_weights_are_gone_is_done_again_where_a_report_needs_them(tmp_path):
    study = expanded(tmp_path, seeds=1)
    work(study)
    study.runs[0].outputs.checkpoint.unlink()
    assert work(study)[0].before == 2
    figures = [{"name": "f", "title": "f", "kind": "selection"}]
    needing = expanded(tmp_path, tiny(tmp_path, figures=figures), seeds=1)
    tally, _ = work(needing)
    assert (tally.done, tally.before, tally.failed) == (1, 1, {})
    assert len(collect(needing).cells) == 2


def test_a_failed_run_does_not_stop_the_others(tmp_path):
    axes = yaml.safe_load(TINY)["axes"]
    axes[0]["variants"][0]["settings"] = {"partition": {"kind": "file", "path": "missing.npz"}}
    source = tiny(tmp_path, axes=axes)
    options = (source, "--scale", "small", "--seeds", 1, "-o", tmp_path / "out")
    code, out, _ = words("study", "run", *options)
    assert code == 1
    assert "failed: " in out
    assert "missing.npz" in out
    assert "1 done, 0 done before, 0 with other workers, 1 failed, of 2" in out


# ---------------------------------------------------------------------------------------- launchers


def test_launchers():
    assert execute.launch(None, 1) is None
    how = execute.launch("srun -n {ranks} --mpi=pmi2", 4)
    command = how.command(Path("c.yaml"), Path("r.h5"))
    assert command[:4] == ["srun", "-n", "4", "--mpi=pmi2"]
    assert command[5:] == ["-m", "mpi_ntkdfl", "run", "c.yaml", "-o", "r.h5", "--resume", "-q"]
    for bad in ("", "'"):
        with pytest.raises(InputError, match="--launcher"):
            execute.launch(bad, 1)


def test_a_launcher_that_fails_is_reported(tmp_path):
    study = expanded(tmp_path, seeds=1)
    script = "sh -c 'echo error: no such thing; exit 3' {ranks}"
    tally, _ = work(study, study.runs[:1], execute.launch(script, 1))
    assert re.search(r"exit code 3: error: no such thing \(see .*\.log\)", *tally.failed.values())
    tally, _ = work(study, study.runs[:1], execute.launch("no-such-launcher {ranks}", 1))
    assert "cannot start no-such-launcher" in next(iter(tally.failed.values()))
    tally, _ = work(study, study.runs, execute.launch("sh -c 'exit 75' {ranks}", 1))
    assert tally.stopped


# ------------------------------------------------------------------------------------------- reports


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def recorded(run, name):
    with h5py.File(run.outputs.record) as file:
        return file[name][:]


def test_tables_hold_what_the_figures_show_and_both_what_the_records_say(done):
    made = report.make(done)
    files = report.write(made)
    assert {path.name for path in files} == {
        *("table.csv", "report.txt", "curves.csv", "curves.pdf", "curves.svg"),
        *("ends.csv", "ends.pdf", "ends.svg"),
    }
    assert all(path.stat().st_size > 100 for path in files)

    (axes,) = draw.figure(made.drawings[0]).axes
    assert axes.get_ylim() == (0, 1)
    drawn = {line.get_label(): np.array(line.get_data()) for line in axes.lines}
    rows = table(done.reports / "curves.csv")
    assert list(drawn) == ["D-PSGD", "NTK-DFL"]
    for label, points in drawn.items():
        mine = [row for row in rows if row["line"] == label]
        values = np.array(
            [recorded(r, "model/accuracy") for r in done.runs if r.cell[0].label == label]
        )
        assert [float(row["x"]) for row in mine] == [0, 1, 2] == points[0].tolist()
        assert [float(row["y"]) for row in mine] == points[1].tolist()
        assert points[1] == pytest.approx(values.mean(axis=0), abs=1e-15)
        assert [float(row["sd"]) for row in mine] == pytest.approx(values.std(axis=0, ddof=1))
        assert {(row["seeds"], row["source"], row["panel"]) for row in mine} == {
            ("2", "runs", "alpha 0.1")
        }

    ends = draw.figure(made.drawings[1]).axes
    rows = table(done.reports / "ends.csv")
    for ax, name, y in zip(
        ends, ("model/accuracy", "deviation"), ("accuracy", "deviation"), strict=True
    ):
        for line in ax.lines:
            last = [recorded(r, name)[-1] for r in done.runs if r.cell[0].label == line.get_label()]
            (row,) = [r for r in rows if (r["line"], r["y_name"]) == (line.get_label(), y)]
            assert (float(row["x"]), float(row["y"])) == (0.1, line.get_ydata()[0])
            assert float(row["y"]) == pytest.approx(np.mean(last))

    outcomes = table(done.reports / "table.csv")
    assert [(row["label"], row["target"]) for row in outcomes] == [
        *[("D-PSGD, alpha 0.1", "0.1"), ("D-PSGD, alpha 0.1", "0.99")],
        *[("NTK-DFL, alpha 0.1", "0.1"), ("NTK-DFL, alpha 0.1", "0.99")],
    ]
    by_hand = np.mean([recorded(run, "model/accuracy")[-1] for run in done.runs[::2]])
    assert float(outcomes[0]["final_accuracy"]) == pytest.approx(by_hand)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_stay_none_in_reports(done, tmp_path, value):
    shutil.copytree(done.folder, tmp_path / "out")
    study = expanded(tmp_path)
    for run in study.runs:
        with h5py.File(run.outputs.record, "r+") as file:
            file["model/accuracy"][-1] = value
    made = report.make(study)
    for drawn, last in zip(made.drawings, (2, 0.1), strict=True):
        report.write_numbers(tmp_path / "figure.csv", drawn)
        rows = table(tmp_path / "figure.csv")
        ends = [row for row in rows if row["y_name"] == "accuracy" and float(row["x"]) == last]
        assert [(row["y"], row["sd"]) for row in ends] == [(str(value), "nan")] * 2
    compare_text.write_csv(tmp_path / "table.csv", made.outcomes)
    assert {row["final_accuracy"] for row in table(tmp_path / "table.csv")} == {str(value)}
    drawn = draw.figure(made.drawings[0]).axes[0].lines[0].get_ydata()
    assert np.isfinite(drawn[:-1]).all()
    assert np.array_equal(drawn[-1], value, equal_nan=True)
    assert f"<td>{value} " in page.html([made])


def test_a_method_looks_the_same_in_all_figures(done):
    for each in report.make(done).drawings:
        for axes in draw.figure(each).axes:
            looks = {line.get_label(): (line.get_color(), line.get_marker()) for line in axes.lines}
            assert looks == {"D-PSGD": ("#E69F00", "s"), "NTK-DFL": ("#0072B2", "o")}


def test_reports_on_incomplete_studies_say_what_is_missing(done):
    more = grid.expand(str(done.folder.parent / "tiny.yaml"), "small", done.folder, 3)
    text = report.make(more).text
    assert "incomplete: 4 of 6 runs are finished; missing:" in text
    missing = text[text.index("missing:") :]
    assert "D-PSGD, alpha 0.1, seed 2" in missing
    assert "NTK-DFL, alpha 0.1, seed 2" in missing
    assert "seed 1" not in missing
    assert "incomplete" not in report.make(done).text
    assert "incomplete" in page.html([report.make(more)])


def test_reports_without_any_run_say_what_to_do(tmp_path):
    options = (tiny(tmp_path), "--scale", "small", "-o", tmp_path / "out")
    assert "study run tiny --scale small" in complaint("study", "report", *options)


def published(folder):
    """The tiny study at the paper's scale with published points, all its runs shared with `done`."""
    said = yaml.safe_load(TINY)
    said["scales"]["paper"] = dict(said["scales"]["small"], targets=[0.1])
    lines = [{"panel": "alpha 0.1", "line": "NTK-DFL", "x": [1, 2], "y": [0.5, 0.6]}]
    said["figures"][0]["published"] = {"source": "Somebody, 2025", "lines": lines}
    path = folder / "published.yaml"
    path.write_text(yaml.safe_dump(said))
    return path


def test_published_numbers_stand_beside_ours_and_are_named(done, tmp_path):
    study = grid.expand(str(published(tmp_path)), "paper", done.folder)
    made = report.make(study)
    rows = report.numbers(made.drawings[0])
    theirs = [row for row in rows if row["source"] == "Somebody, 2025"]
    assert [(row["line"], row["x"], row["y"]) for row in theirs] == [
        *(("NTK-DFL", 1.0, 0.5), ("NTK-DFL", 2.0, 0.6)),
    ]
    (axes,) = draw.figure(made.drawings[0]).axes
    (line,) = [line for line in axes.lines if line.get_label() == "published"]
    assert line.get_ydata().tolist() == [0.5, 0.6]
    assert line.get_linestyle() == "None"
    found = {
        row["x"]: row["y"]
        for row in rows
        if (row["panel"], row["line"], row["source"]) == ("alpha 0.1", "NTK-DFL", "runs")
    }
    largest, place = max((abs(found[x] - y), x) for x, y in ((1, 0.5), (2, 0.6)))
    assert "Somebody, 2025" in made.text
    assert f"largest difference: {largest:.3f} at {place:g}" in made.text
    assert f"runs      {found[1]:8.3f}{found[2]:8.3f}" in made.text

    small = report.make(grid.expand(str(tmp_path / "published.yaml"), "small", done.folder))
    assert {row["source"] for row in report.numbers(small.drawings[0])} == {"runs"}
    assert "at the paper's scale (Somebody, 2025)" in small.text
    assert "largest difference" not in small.text


class Page(HTMLParser):
    """What a page refers to, and whether its elements close."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self):
        super().__init__()
        self.tags, self.ids, self.references, self.open = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "data", "srcset"):
                self.references.append(value)
            self.references += re.findall(r"url\((.*?)\)", value or "")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_but_itself(done, tmp_path):
    options = ("--scale", "small", "-o", done.folder, "--html", tmp_path / "page.html")
    answer("study", "report", done.folder.parent / "tiny.yaml", *options)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    found = Page()
    found.feed(text)
    assert found.open == []
    assert found.tags.count("svg") == 2
    assert found.tags.count("table") == 5
    assert not set(found.tags) & {"script", "link", "img", "iframe", "object", "embed"}
    assert found.references
    assert all(reference.startswith("#") for reference in found.references)
    assert {reference[1:] for reference in found.references} <= set(found.ids)
    assert len(set(found.ids)) == len(found.ids)
    assert "@import" not in text
    made = report.make(done)
    runs = made.results.distinct()
    assert {run.run.key for run in runs} == {run.key for run in done.distinct()}
    for told in (
        f"Computed by mpi_ntkdfl {runs[0].record.attributes['version']} (commit ",
        f"{len(runs)} runs, started from ",
        '<td class="text">partition.samples</td>',
        *(run.run.outputs.record.name for run in runs),
        *(run.record.attributes["created"][11:19] for run in runs),
    ):
        assert told in text
    assert "algorithm.name</td>" not in text, "methods differ between the runs"
    for row in report.numbers(report.make(done).drawings[0]):
        assert f"{row['y']:.6g}" in text


# ---------------------------------------------------------------------------------- from the weights


def test_averages_of_all_clients_do_not_depend_on_their_order(done):
    cell = collect(done).cells[1]
    numbers, found = weights.selection(cell)
    assert numbers.tolist() == [1, 2, 3, 4]
    assert list(found) == ["best first", "random", "worst first"]
    assert all(values.shape == (2, 4) for values in found.values())
    last = [values[:, -1].tolist() for values in found.values()]
    assert last[0] == last[1] == last[2]


def test_clients_are_chosen_on_one_half_and_reported_on_the_other(done):
    cell = collect(done).cells[0]
    (finished, run), *_ = weights._runs(cell)
    chosen_on, reported_on = weights._halves(run, finished.run.config.seed)
    assert len(chosen_on.labels) + len(reported_on.labels) == len(run.data.test_labels)
    both = torch.cat([chosen_on.inputs, reported_on.inputs])
    test = run.samples(run.data.test_inputs, run.data.test_labels).inputs
    assert torch.equal(both.sum(1).sort()[0], test.sum(1).sort()[0]), "each sample is in one half"
    ranks = [weights._accuracy(run, p, chosen_on) for p in run.params]
    _, found = weights.selection(cell)
    best = run.params[int(np.argmax(ranks))]
    assert found["best first"][0, 0] == weights._accuracy(run, best, reported_on)


def test_drift_compares_start_end_and_the_last_two_rounds(done):
    cell = collect(done).cells[1]
    found = weights.drift(cell)
    assert list(found) == ["start to end", "last round"]
    assert all((values > 0).all() and values.shape == (2,) for values in found.values())
    for finished in cell.finished:
        outputs = finished.run.outputs
        assert Checkpoint(outputs.former_checkpoint).round == 1

    # Where the last two checkpoints are alike nothing has changed between them.
    (finished, run), *_ = weights._runs(cell)
    samples = run.samples(run.data.train_inputs[:9], run.data.train_labels[:9])
    kernels = weights._kernels(run, [samples])
    assert weights._change(kernels, run.params, run.params) == 0
    # A linear readout twice as large makes the hidden part of the kernel four times as large.
    assert weights._change(kernels, run.params, 2 * run.params) > 1


@pytest.mark.parametrize("kind", ["selection", "drift", "taus"])
def test_figures_of_every_kind(done, tmp_path, kind):
    figure = {"name": kind, "title": kind, "kind": kind}
    figure |= {"x": ["alpha"]} if kind == "drift" else {}
    study = expanded(done.folder.parent, tiny(done.folder.parent, figures=[figure]))
    made = drawing(collect(study), study.definition.figures[0])
    tiny(done.folder.parent)
    assert len(made.panels) == {"drift": 1, "selection": 2, "taus": 1}[kind]
    assert all(len(line.x) for panel in made.panels for line in panel.lines)
    if kind == "taus":
        shares = {line.label: line.mean for line in made.panels[0].lines}
        assert "tau = 0" not in shares, "D-PSGD has no panel"
        assert sum(shares.values()).tolist() == [1, 1]
    draw.write(tmp_path / "figure.svg", made)
    assert "<svg" in (tmp_path / "figure.svg").read_text()


# ------------------------------------------------------------------------------------------ for real


@pytest.mark.slow
def test_a_launched_study_on_two_ranks(tmp_path, mpirun):
    study = expanded(tmp_path, seeds=1)
    tally, _ = work(study, None, execute.launch(None, 2))
    assert (tally.done, tally.failed) == (2, {})
    for run in study.runs:
        with h5py.File(run.outputs.record) as file:
            assert file.attrs["ranks"] == 2
    assert not list(study.folder.rglob("*.yaml"))
    alone = expanded(tmp_path / "alone", tiny(tmp_path), seeds=1)
    work(alone)
    for one, other in zip(study.runs, alone.runs, strict=True):
        assert one.key == other.key
        name = "model/accuracy"
        assert recorded(one, name).tobytes() == recorded(other, name).tobytes()


@pytest.mark.slow
def test_hospitals_stand_apart_in_its_figures(tmp_path):
    options = ("--scale", "small", "-o", tmp_path, "--seeds", 1, "--set", "rounds=1")
    answer("study", "run", "hospitals", *options)
    answer("study", "report", "hospitals", *options)
    with (tmp_path / "hospitals-small" / "cross.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # Whoever communicates ends with one model, which has no matrix.
    assert {row["panel"].partition(",")[0] for row in rows} == {"alone"}
    assert {row["line"] for row in rows} >= {"model of cleveland", "model of va"}
    assert [float(row["x"]) for row in rows[:4]] == [0, 1, 2, 3]
    drawn = (tmp_path / "hospitals-small" / "sites.svg").read_text()
    assert "switzerland" in drawn


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_studies_at_their_small_size(tmp_path):
    out = ("--scale", "small", "-o", tmp_path)
    for name in ("selection", "starts"):
        code, said, _ = words("study", "run", name, *out)
        assert (code, "0 failed" in said) == (0, True)
    assert "2 done before" in said or "4 done before" in said, "studies share runs"
    answer("study", "report", "selection", "starts", *out, "--html", tmp_path / "page.html")
    rows = table(tmp_path / "selection-small" / "selection.csv")
    ends = {(row["panel"], row["line"]): float(row["y"]) for row in rows if float(row["x"]) == 1}
    for method in ("NTK-DFL", "DFedAvg"):
        assert ends[method, "best first"] > ends[method, "worst first"]
    final = {
        row["label"]: float(row["final_accuracy"])
        for row in table(tmp_path / "starts-small" / "table.csv")
    }
    assert final["NTK-DFL, shared"] > final["DFedAvg, shared"] > 0.5


def test_a_scale_may_have_any_name(tmp_path):
    axes = yaml.safe_load(TINY)["axes"]
    axes[0]["variants"][0]["at"] = {"a-night": {"rounds": 3}}
    scales = {"a-night": {"seeds": 1, "targets": [0.5]}, "small": {"seeds": 1, "targets": [0.5]}}
    source = str(tiny(tmp_path, scales=scales, axes=axes))
    assert [run.config.rounds for run in grid.expand(source, "a-night", tmp_path).runs] == [3, 2]
    shown = answer("study", "plan", source, "--scale", "a-night", "--no-measure", "-o", tmp_path)
    assert "scale a-night" in shown
    wrong = complaint("study", "plan", source, "--scale", "a-nihgt", "-o", tmp_path)
    assert "unknown scale 'a-nihgt'; did you mean 'a-night'" in wrong


def test_the_last_task_names_the_next_command_and_the_plan_shows_begun_runs(tmp_path):
    source = tiny(tmp_path)
    options = (source, "--scale", "small", "--seeds", "1", "-o", tmp_path / "out")
    study = grid.expand(str(source), "small", tmp_path / "out", 1)
    run = study.distinct()[0]
    shorter = run.config.model_copy(update={"rounds": 1})
    run.outputs.record.parent.mkdir(parents=True)
    execute.simulation.run(shorter, execute.SoloWorld(), run.outputs)
    assert "(1 begun: 1 of 2 rounds)" in answer("study", "plan", *options, "--no-measure")
    first = answer("study", "run", *options, "--task", "0/2")
    command = f"study report {source} --scale small --seeds 1 -o {tmp_path / 'out'}"
    assert "1 runs of the study are not done yet; when they are, the next command is: " in first
    last = answer("study", "run", *options, "--task", "1/2")
    assert last.splitlines()[-1].startswith("all runs of the study are done; the next command is: ")
    assert last.splitlines()[-1].endswith(command)


# ------------------------------------------------------------------------------------ seed by seed


def test_a_single_variant_is_not_compared(tmp_path):
    axes = yaml.safe_load(TINY)["axes"]
    axes[0]["variants"] = axes[0]["variants"][:1]
    study = expanded(tmp_path, tiny(tmp_path, axes=axes, compared=axes[0]["name"]), seeds=1)
    work(study)
    made = report.make(study)
    assert made.pairs is None
    assert report.write(made)


def test_differences_and_ranks_by_hand():
    """Student's t for two differences has one degree of freedom: t = 12.7062."""
    each = paired.Difference("", "accuracy at the end", "b", (0.01, 0.03), 2)
    half = 12.7062 * np.std([0.01, 0.03], ddof=1) / np.sqrt(2)
    assert each.interval == pytest.approx((0.02 - half, 0.02 + half), rel=1e-5)
    assert np.isnan(paired.Difference("", "", "b", (0.01,), 1).interval).all()
    accuracy = np.array([[0.9, 0.8, 0.7], [0.9, 0.7, 0.8], [0.6, 0.5, 0.5], [0.9, 0.8, 0.7]])
    ranks = paired._ranks(["a", "b", "c"], accuracy)
    assert dict(ranks.means) == {"a": 1.0, "b": 2.375, "c": 2.625}
    assert list(ranks.means) == ["a", "b", "c"]
    assert ranks.critical == pytest.approx(
        2.343 * np.sqrt(3 * 4 / (6 * 4)), rel=1e-3
    )  # Demsar, table 5
    assert 0 < ranks.chance < 0.1


def test_a_report_compares_methods_seed_by_seed(done, tmp_path):
    study = dataclasses.replace(
        done, definition=done.definition.model_copy(update={"compared": "method"})
    )
    made = report.make(study)
    ends = {
        cell.variants[0].label: [f.trace.curves["accuracy"][-1] for f in cell.finished]
        for cell in made.results.cells
    }
    (first, *_) = made.pairs.differences
    assert (first.variant, made.pairs.reference) == ("NTK-DFL", "D-PSGD")
    expected = np.subtract(ends["NTK-DFL"], ends["D-PSGD"])
    assert np.array_equal(first.values, expected)
    assert f"{expected.mean():+.4f}" in made.text
    assert re.search(r"rounds to 0.99 +0 of 2 seeds", made.text)
    assert "differences to D-PSGD" in page.html([made])
