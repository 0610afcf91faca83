"""What a run is beyond its settings: its id, the content of its files, its code and its machine."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

import mpi_ntkdfl as nd
from mpi_ntkdfl import config, simulation
from mpi_ntkdfl.analysis import fairness, tables, traces
from mpi_ntkdfl.comm.world import SoloWorld
from mpi_ntkdfl.config import dataset_settings
from mpi_ntkdfl.data import dataset, sources
from mpi_ntkdfl.presets import read_source
from mpi_ntkdfl.runtime import identity, limits, plugins
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.storage.outputs import Outputs
from mpi_ntkdfl.studies import execute, grid, report
from tests.test_cli import answer, complaint
from tests.test_compare import write
from tests.test_studies import tiny

TINY = {
    "clients": 4,
    "rounds": 1,
    "partition": {"kind": "iid"},
    "model": {"hidden": [3]},
    "algorithm": {"name": "dfedavg", "epochs": 1},
}


def run(path, mode="new", **changes):
    """A run of a round or more in this process."""
    settings = config.parse(
        [*read_source("quickstart"), TINY, {"topology": {"kind": "ring"}}, changes]
    )
    return simulation.run(settings, SoloWorld(), Outputs(path), mode)


def ring(path, clients=4):
    path.write_text("# a comment\n" + "".join(f"{i} {(i + 1) % clients}\n" for i in range(clients)))
    return {"topology": {"kind": "file", "path": str(path)}}


def test_files_of_two_runs_are_refused_by_whoever_reads_both(tmp_path):
    first, second = tmp_path / "a.h5", tmp_path / "b.h5"
    for path in (first, second):
        run(path, output={"trace": True})
    with h5py.File(first) as record, h5py.File(Outputs(first).checkpoint) as checkpoint:
        assert len(record.attrs["run"]) == 16
        assert record.attrs["run"] == checkpoint.attrs["run"]
    own = Outputs(first).trace.read_bytes()
    Outputs(first).trace.write_bytes(Outputs(second).trace.read_bytes())
    with pytest.raises(InputError, match=r"a\.trace\.json \(run .* from different runs"):
        run(first, "resume", rounds=2)
    Outputs(first).trace.write_bytes(own)
    Outputs(first).checkpoint.write_bytes(Outputs(second).checkpoint.read_bytes())
    before = first.read_bytes()
    with pytest.raises(InputError, match=r"a\.ckpt\.h5 \(run .* from different runs"):
        run(first, "resume", rounds=2)
    assert "from different runs" in complaint("export", first, tmp_path / "w.pt", "--average")
    for weights in (nd.open_record(first).average, lambda: nd.open_record(first).weights(0)):
        with pytest.raises(InputError, match="from different runs"):
            weights()
    assert first.read_bytes() == before


def test_records_of_earlier_versions_are_told_apart_by_their_settings(tmp_path):
    first, second = tmp_path / "a.h5", tmp_path / "b.h5"
    run(first)
    run(second, algorithm={"name": "dfedavg", "lr": 0.5})
    Outputs(first).checkpoint.write_bytes(Outputs(second).checkpoint.read_bytes())
    with h5py.File(second) as other, h5py.File(first, "r+") as record:
        record.attrs["run"] = other.attrs["run"]
    with pytest.raises(InputError, match=r"from different runs.*differ in algorithm\.lr"):
        run(first, "resume", rounds=2, algorithm={"name": "dfedavg", "lr": 0.5})


def test_starting_weights_may_be_missing_but_not_others(tmp_path):
    shapes = {"fc1.weight": (3, 64), "fc1.bias": (3,), "fc2.weight": (10, 3), "fc2.bias": (10,)}
    weights, path = tmp_path / "w.pt", tmp_path / "a.h5"
    torch.save({name: torch.zeros(shape) for name, shape in shapes.items()}, weights)
    given = {"model": {"hidden": [3], "weights": str(weights)}}
    run(path, **given)
    weights.rename(tmp_path / "moved.pt")
    assert run(path, "resume", rounds=2, **given).done == 2
    torch.save({name: torch.ones(shape) for name, shape in shapes.items()}, weights)
    with pytest.raises(InputError, match=r"the file of model\.weights is not the one"):
        run(path, "resume", rounds=3, **given)
    with pytest.raises(InputError, match=r"model\.weights was .* is None"):
        run(path, "resume", rounds=3)


def test_other_code_goes_on_with_a_warning_and_is_recorded_per_start(tmp_path, caplog, monkeypatch):
    path, former = tmp_path / "a.h5", identity.own()
    run(path)
    monkeypatch.setattr(identity, "own", lambda: former | {"sources": "f" * 64})
    run(path, "resume", rounds=2)
    assert "sources have changed since the last start" in caplog.text
    assert "after round 1" in caplog.text
    assert "with other sources" in tables.summary(tables.read(path))
    (line,) = fairness.warnings(traces.read([path, path]))[:1]
    assert "one seed" in line  # the same code in both
    plain = tmp_path / "b.h5"
    run(plain, rounds=2)
    said = " ".join(fairness.warnings(traces.read([path, plain])))
    assert f"sources {former['sources'][:12]}, then ffffffffffff / ffffffffffff" in said


def test_a_study_does_runs_again_whose_files_changed_and_keeps_the_former(tmp_path, monkeypatch):
    graph = tmp_path / "g.txt"
    settings = {**TINY, **ring(graph)}
    axes = [{"name": "method", "variants": [{"label": "DFedAvg"}]}]
    figures = [{"name": "f", "title": "F", "kind": "curves", "x": ["rounds"], "y": ["accuracy"]}]
    scales = {"small": {"seeds": 1, "targets": [0.1]}}
    source = tiny(tmp_path, settings=settings, axes=axes, figures=figures, scales=scales)

    def study():
        return grid.expand(str(source), "small", tmp_path / "out")

    def work(**words):
        planned = study()
        return execute.work(planned, planned.distinct(), None, lambda _: None, **words)

    assert work().done == 1
    assert work().before == 1
    first = study().runs[0].outputs.record
    graph.write_text("0 1\n0 2\n0 3\n")
    with pytest.raises(InputError, match="no finished runs"):
        report.make(study())
    assert work().done == 1
    second = study().runs[0].outputs.record
    assert first.exists() and second != first
    ring(graph)
    assert work().before == 1, "the former run is still there"
    second.unlink()
    graph.unlink()
    assert study().runs[0].outputs.record == first, "where a file is missing the only run is taken"
    ring(graph)
    former = identity.own()
    monkeypatch.setattr(identity, "own", lambda: former | {"sources": "f" * 64})
    assert work().other_code == 1
    assert "`study run --fresh` does them again" in report.make(study()).text
    assert work(fresh=True).done == 1
    assert work(fresh=True).before == 1
    mine = plugins.Plugin("mine.py", "a" * 64)
    monkeypatch.setitem(plugins._loaded, "mine", mine)
    assert work().other_code == 0, "the run did without the plugin"
    with h5py.File(first, "r+") as file:
        file.attrs["plugins"] = plugins.as_json([mine])
    assert work().other_code == 0
    monkeypatch.setitem(plugins._loaded, "mine", replace(mine, sha256="b" * 64))
    assert work().other_code == 1
    assert "other plugins" in report.make(study()).text
    assert work(fresh=True).done == 1
    assert work(fresh=True).before == 1


def test_a_file_is_read_once_as_long_as_it_stays_the_same(tmp_path):
    path = tmp_path / "f"
    path.write_text("a")
    before = identity._of_file.cache_info().misses
    first = identity.of_file(path)
    assert identity.of_file(path) == first
    assert identity._of_file.cache_info().misses == before + 1
    path.write_text("bb")
    assert identity.of_file(path) != first


def test_published_sets_have_no_content_of_their_own():
    assert sources.content(dataset_settings("digits")) is None


@pytest.mark.parametrize("name", ["data", "graph", "weights"])
def test_other_content_is_another_line(tmp_path, name):
    kind = {"topology__kind": "file", "topology__path": "g.txt", "topology__dynamic": True}
    more = {"graph": kind, "weights": {"model__weights": "w.pt"}}.get(name, {})
    paths = [write(tmp_path / f"{n}.h5", seed=n, **more) for n in range(3)]
    for path, digest in zip(paths, ("a" * 64, "a" * 64, "b" * 64), strict=True):
        with h5py.File(path, "r+") as file:
            file.attrs["contents"] = json.dumps({name: digest})
            file.attrs["data"] = digest if name == "data" else "c"
    groups = traces.read(paths)
    assert [len(group.traces) for group in groups] == [2, 1]
    assert groups[1].label == f"{name} {'b' * 12}"
    assert f"{name} {'a' * 12} / {'b' * 12}" in fairness.warnings(groups)[0]


def test_seconds_follow_from_all_starts_that_did_a_round(tmp_path):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        start = {
            k: str(v)
            for k, v in file.attrs.items()
            if k in ("hosts", "device", "cores", "host_cores")
        }
        starts = [{**start, "round": 2, "ranks": 9}, {**start, "round": 2, "ranks": 3}]
        file.attrs["resumed"] = json.dumps(starts)
    (line,) = fairness.warnings(traces.read([path]))
    assert line == f"{path} was resumed on another machine: ranks 2, then 3"


def test_limits_of_control_groups(tmp_path):
    """Version 2, the limit of a group above; version 1; none."""
    mine = tmp_path / "mine"
    mine.write_text("0::/job/step\n")
    inner = tmp_path / "job/step"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000\n")
    assert limits.core_limit(tmp_path, mine) == 0
    (inner.parent / "cpu.max").write_text("150000 100000\n")
    (inner.parent / "memory.max").write_text("1000000\n")
    assert (limits.core_limit(tmp_path, mine), limits.memory(tmp_path, mine)) == (2, 1_000_000)
    mine.write_text("4:cpu,cpuacct:/job\n5:memory:/job\n")
    for name, value in (
        ("cpu/job/cpu.cfs_quota_us", 50_000),
        ("cpu/job/cpu.cfs_period_us", 100_000),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
    assert limits.core_limit(tmp_path, mine) == 1
    assert limits.core_limit(tmp_path, tmp_path / "none") == 0


def test_cores_of_hosts_are_those_that_some_rank_may_use():
    ranks = [{"cores": "1"}, {"cores": "6", "core limit": "0"}, {"cores": "ff", "core limit": "2"}]
    assert identity.cores(["a", "a", "b"], ranks) == {"a": 3, "b": 2}


def test_test_samples_in_training_are_counted_and_said_once(caplog):
    one = np.arange(12, dtype=np.uint8).reshape(6, 2)
    labels = np.zeros(6, dtype=np.int64)
    scaling = dataset.Scaling(1.0, np.zeros(1), np.ones(1))
    whole = np.vstack([one[3:5], one[:1] + 90])
    data = dataset.Dataset("mine", one, labels, whole, labels[3:], 1, scaling)
    data.check()
    data.check()
    assert caplog.text.count("mine: 2 of 3 test samples occur in training as well") == 1


@pytest.mark.parametrize(
    ("text", "name"), [("graph [\n", "GML"), ("*Vertices 2\n", "Pajek"), ("graph G {\n", "DOT")]
)
def test_formats_of_graphs_that_are_not_read_are_named(tmp_path, text, name):
    (tmp_path / "g.txt").write_text(text)
    words = ("--set", "topology.kind=file", "--set", f"topology.path={tmp_path / 'g.txt'}")
    said = complaint("check", "quickstart", "--no-measure", *words)
    assert (
        f"g.txt is a {name} file; only edge lists (one pair of clients per line) and GraphML "
        "(.graphml, .xml) can be read: convert it, for example with networkx.write_graphml"
    ) in said


def test_a_name_must_leave_room_for_what_a_run_adds(tmp_path):
    with pytest.raises(InputError, match="may have 215 bytes"):
        run(tmp_path / ("n" * 213 + ".h5"))
    path = tmp_path / ("n" * 212 + ".h5")
    run(path)
    assert "finished" in answer("show", path)
