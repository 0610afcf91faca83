"""While a run goes on: the target that finishes it, callbacks, loggers, limits that are too short."""

import contextlib
import csv
import io
import json
import sys
import time
import types

import h5py
import pytest

import mpi_ntkdfl as nd
from mpi_ntkdfl import loggers
from mpi_ntkdfl.analysis import fairness, traces
from mpi_ntkdfl.cli.run import _say_goodbye
from mpi_ntkdfl.comm.world import SoloWorld
from mpi_ntkdfl.runtime.clock import PHASES
from mpi_ntkdfl.simulation import Outcome, run
from mpi_ntkdfl.storage.outputs import Outputs
from mpi_ntkdfl.studies.grid import StudyRun, is_done
from tests.test_cli import answer

SMALL = {
    "clients": 6,
    "rounds": 5,
    "partition.samples": 30,
    "topology.degree": 3,
    "algorithm.taus": [20],
}


def small(**more):
    return nd.load_config("quickstart", **(SMALL | more))


def go(config, path, mode="resume"):
    return run(config, SoloWorld(), Outputs.at(path), mode)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return nd.run(small(), tmp_path_factory.mktemp("whole") / "a.h5")


@pytest.fixture(scope="module")
def target(whole):
    """An accuracy that is first reached after round 2 or later, and that round."""
    accuracy = whole.table()["accuracy"]
    best = max(range(2, 5), key=lambda k: accuracy[k] - max(accuracy[:k]))
    assert accuracy[best] > max(accuracy[:best])
    return float(accuracy[best]), best


# ------------------------------------------------------------------------------------------ stop_at


def test_a_run_is_finished_at_its_target(whole, target, tmp_path):
    path, (goal, last) = tmp_path / "a.h5", target
    config = small(stop_at=goal)
    assert go(config, path) == Outcome(0, last, 5, "stop_at", reached=True)
    record = nd.open_record(path)
    assert record.config.stop_at == goal
    assert record.table()["accuracy"].tolist() == whole.table()["accuracy"][: last + 1].tolist()
    assert f"finished: {last} of 5 rounds, the average reached stop_at" in answer("show", path)
    assert fairness.warnings(traces.read([path])) == []
    assert is_done(StudyRun(0, (), config, Outputs.at(path)), weights=True)
    # The same command again has nothing to do; without checkpoints neither.
    written = path.read_bytes()
    assert go(config, path) == Outcome(last, last, 5, reached=True)
    for checkpoint in tmp_path.glob("*.ckpt*"):
        checkpoint.rename(checkpoint.with_suffix(".kept"))
    assert go(config, path).finished
    assert path.read_bytes() == written
    for kept in tmp_path.glob("*.kept"):
        kept.rename(kept.with_suffix(".h5"))
    # Without the target it goes on, with the numbers of a run that never had one.
    assert go(small(), path) == Outcome(last, 5, 5)
    assert nd.open_record(path).table()["accuracy"].tolist() == whole.table()["accuracy"].tolist()


def test_a_target_may_be_set_for_a_run_that_goes_on(target, tmp_path):
    goal, last = target
    assert go(small(rounds=last - 1), tmp_path / "a.h5").done == last - 1
    assert go(small(stop_at=goal), tmp_path / "a.h5") == Outcome(
        last - 1, last, 5, "stop_at", reached=True
    )


def test_a_target_out_of_reach_changes_nothing(whole, tmp_path):
    assert go(small(stop_at=1.0), tmp_path / "a.h5") == Outcome(0, 5, 5)
    accuracy = nd.open_record(tmp_path / "a.h5").table()["accuracy"]
    assert accuracy.tolist() == whole.table()["accuracy"].tolist()
    assert "stop_at" not in small().to_yaml()


@pytest.mark.slow
def test_ranks_stop_together_with_exit_code_0(target, tmp_path, simulate):
    goal, last = target
    words = [word for k, v in SMALL.items() for word in ("--set", f"{k}={v}")]
    record = tmp_path / "a.h5"
    told = simulate(2, "run", "quickstart", *words, "--set", f"stop_at={goal}", "-o", record)
    assert f"finished: {last} of 5 rounds, the average reached stop_at" in told.stdout


# ---------------------------------------------------------------------------- callbacks and loggers


def test_streams_of_lines_follow_a_run_and_its_resumption(tmp_path):
    def logs():
        return [nd.CsvLog(tmp_path / "a.csv"), nd.JsonLinesLog(tmp_path / "a.jsonl")]

    seen = []

    def follow(progress):
        seen.append(progress.done)
        time.sleep(0.2 * (progress.done == 0))

    nd.run(small(rounds=2), tmp_path / "a.h5", callbacks=[*logs(), follow])
    assert seen == [0, 1, 2]
    with h5py.File(tmp_path / "a.h5") as file:
        recording = file["time/seconds"][:, 0, PHASES.index("record")].max()
    assert recording > 0.2, "the time of callbacks is not the time of the method"
    # Lines beyond the checkpoint, as a killed run leaves them, are written anew; a half line goes.
    with (tmp_path / "a.csv").open("a") as file:
        file.write("3,0.5\n4,")
    record = nd.run(small(rounds=4), tmp_path / "a.h5", resume=True, callbacks=logs())
    table = record.table()
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    for told in (rows, lines):
        assert [float(row["rounds"]) for row in told] == [0, 1, 2, 3, 4]
        for name in ("accuracy", "client-accuracy", "loss", "deviation", "bytes"):
            assert [float(row[name]) for row in told] == pytest.approx(table[name].tolist()), name
    # A run that begins replaces the file; a file of something else is refused.
    nd.run(small(rounds=1), tmp_path / "b.h5", callbacks=logs())
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 3
    (tmp_path / "mine.csv").write_text("x,y\n1,2\n")
    with pytest.raises(nd.InputError, match="mine.csv exists and is no log of a run"):
        nd.CsvLog(tmp_path / "mine.csv")


class FakeWandb(types.ModuleType):
    def __init__(self):
        super().__init__("wandb")
        self.told = []

    def init(self, project):
        self.project = project
        return self

    def log(self, numbers, step):
        self.told.append((step, numbers))


class FakeMlflow(FakeWandb):
    def set_experiment(self, name):
        self.project = name

    def start_run(self):
        pass

    def log_metrics(self, numbers, step):
        self.log(numbers, step)


@pytest.mark.parametrize(("kind", "fake"), [("wandb", FakeWandb()), ("mlflow", FakeMlflow())])
def test_tracking_programs_get_every_round(kind, fake, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, kind, fake)
    nd.run(small(rounds=1), tmp_path / "a.h5", callbacks=[loggers.logger(f"{kind}:mine")])
    assert fake.project == "mine"
    assert [step for step, _ in fake.told] == [0, 1]
    assert "accuracy" in fake.told[0][1]


@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "mlflow"])
def test_a_tracking_program_that_is_not_installed_is_left_out(kind, tmp_path, monkeypatch, caplog):
    module = loggers._TRACKERS[kind].module
    monkeypatch.setitem(sys.modules, module, None)
    nd.run(small(rounds=1), tmp_path / "a.h5", callbacks=[loggers.logger(f"{kind}:{tmp_path}")])
    assert f"{kind} is not installed" in caplog.text
    assert f"mpi_ntkdfl[{kind}]" in caplog.text


def test_a_failing_log_of_the_command_line_does_not_end_the_run(caplog):
    def failing(progress):
        raise RuntimeError("no network")

    forgiving = loggers.forgiving(failing)
    forgiving(None)
    forgiving(None)
    assert caplog.text.count("not logged any more: RuntimeError: no network") == 1


@pytest.mark.parametrize(
    ("word", "hint"), [("a.txt", "takes FILE.csv"), ("tensorbord:x", "did you mean 'tensorboard'")]
)
def test_words_that_name_no_log(word, hint):
    with pytest.raises(nd.InputError, match=hint):
        loggers.logger(word)


# --------------------------------------------------------------------------------------- too short


def test_a_start_that_finished_no_round_says_that_its_limit_is_too_short(tmp_path):
    path = tmp_path / "a.h5"
    nd.run(small(rounds=1), path)
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        _say_goodbye(Outputs.at(path), Outcome(1, 1, 5, "time limit"))
    assert "this start finished no round" in told.getvalue()
    assert "(round 1 took 0:0" in told.getvalue()


def test_names_of_a_graph_are_recorded_and_metropolis_weights_run(tmp_path):
    graph = tmp_path / "g.txt"
    graph.write_text("fay eve {}\neve dan {}\ndan ann {}\nann bob {}\nbob cem {}\nann cem {}\n")
    kind = {"kind": "file", "path": str(graph)}
    config = nd.load_config(
        "quickstart",
        clients=6,
        rounds=1,
        topology=kind,
        **{"partition.samples": 30},
        algorithm={"taus": [20], "averaging": "metropolis"},
    )
    nd.run(config, tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        names = [name.decode() for name in file["topology/nodes"][:]]
    assert names == ["ann", "bob", "cem", "dan", "eve", "fay"]
