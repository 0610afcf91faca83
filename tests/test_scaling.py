"""Scaling: figures of records worked out by hand, the model's arithmetic, and the driver."""

import csv
import functools
import json
import re
import subprocess
import sys
import time
from dataclasses import replace

import h5py
import numpy as np
import pytest
import yaml

from mpi_ntkdfl.analysis import scaling, scaling_model, scaling_plot, scaling_run, scaling_text
from mpi_ntkdfl.analysis.scaling_model import Network
from mpi_ntkdfl.assembly import prepare
from mpi_ntkdfl.comm.ledger import TRAFFIC_PHASES
from mpi_ntkdfl.config import parse
from mpi_ntkdfl.planning import costs
from mpi_ntkdfl.presets import read_source
from mpi_ntkdfl.runtime.clock import PHASES
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.launching import launcher_words
from mpi_ntkdfl.storage.record import Record, RoundRecord
from tests.conftest import environment, find_mpirun, needs_fashion
from tests.test_cli import answer, complaint
from tests.test_record import attributes


def parsed(changes):
    layers = [*read_source("quickstart"), changes]
    return parse(layers)


SOME_NETWORK = Network(alpha=0.5, beta=100.0)


@functools.cache
def known_attributes():
    return attributes("a")


def write(path, evolve, exchange, clients=4, rounds=3, cores=8, **settings):
    """A record of as many ranks as `evolve` has numbers: their seconds a round, and of `exchange`.

    The first round took a hundred times as long, evaluation 30 seconds always. Clients have 10 samples
    and sit on a static ring; a round sends 100 bytes of weights over every directed edge, 100 of
    averages, 1000 of Jacobians.
    """
    ranks = len(evolve)
    config = yaml.safe_load(known_attributes()["config"])
    config |= {"clients": clients, "rounds": rounds, "topology": {"kind": "ring", "dynamic": False}}
    for key, value in settings.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    told = {"ranks": ranks, "hosts": json.dumps(["a"] * ranks), "cores": cores}
    told["host_cores"] = json.dumps({"a": cores})
    partition = {"offsets": 10 * np.arange(clients + 1), "indices": np.zeros(10 * clients, int)}
    record = Record(path)
    about = known_attributes() | told | {"config": yaml.safe_dump(config)}
    record.create(about, clients, ranks, partition)
    edges = np.array([[i, (i + 1) % clients] for i in range(clients)])
    traffic = np.zeros((2, len(TRAFFIC_PHASES)), int)
    for phase, count in {"weights": 100, "averages": 100, "jacobians": 1000}.items():
        traffic[0, TRAFFIC_PHASES.index(phase)] = 2 * clients * count
    for done in range(1, rounds + 1):
        seconds = np.zeros((ranks, len(PHASES)))
        seconds[:, PHASES.index("evolve")] = evolve
        seconds[:, PHASES.index("exchange")] = exchange
        seconds *= 100 if done == 1 else 1
        seconds[:, PHASES.index("evaluate")] = 30
        over = RoundRecord(edges, traffic, seconds, 0, seconds[:, :2])
        record.append(done, np.zeros(clients, int), None, over)
    return path


@pytest.fixture
def strong(tmp_path):
    return [
        write(tmp_path / "r1.h5", [8.0], [0.0]),
        write(tmp_path / "r2.h5", [3.0, 5.0], [2.5, 0.5]),
        write(tmp_path / "r4.h5", [2.0] * 4, [1.0] * 4),
    ]


# --------------------------------------------------------------------------------------- measured


def test_figures_of_a_strong_study_by_hand(strong):
    (study,) = scaling.studies(map(scaling.read, reversed(strong)))
    one, two, four = study.points
    assert study.kind == "strong"
    assert study.label == "strong: ntk-dfl, digits, 4 clients"
    assert [p.ranks for p in study.points] == [1, 2, 4]
    assert [p.wall for p in study.points] == [8, 5.5, 3]
    assert [p.rounds for p in study.points] == [2, 2, 2]  # the first is left out
    assert [study.speed_up(p) for p in study.points] == pytest.approx([1, 8 / 5.5, 8 / 3])
    assert [study.efficiency(p) for p in study.points] == pytest.approx([1, 4 / 5.5, 2 / 3])
    assert (one.load_balance, two.load_balance, four.load_balance) == (1, 0.8, 1)
    assert two.communication == pytest.approx(5 / 5.5)
    assert four.parallel == pytest.approx(2 / 3)
    assert (two.phase("evolve"), two.phase("exchange")) == (4, 1.5)


def test_a_weak_study_keeps_clients_a_rank(tmp_path):
    paths = [
        write(tmp_path / "r1.h5", [2.0], [0.0], clients=4),
        write(tmp_path / "r2.h5", [2.0, 2.0], [0.5, 0.5], clients=8),
    ]
    (study,) = scaling.studies(map(scaling.read, paths))
    assert study.kind == "weak"
    assert study.label == "weak: ntk-dfl, digits, 4 clients per rank"
    assert study.speed_up(study.points[1]) == pytest.approx(2 * 2 / 2.5)
    assert study.efficiency(study.points[1]) == pytest.approx(2 / 2.5)
    assert study.amdahl() is None


def test_two_rounds_leave_none_out(tmp_path):
    point = scaling.read(write(tmp_path / "a.h5", [1.0], [0.0], rounds=2))
    assert point.rounds == 2
    assert point.wall == pytest.approx((100 + 1) / 2)


def test_runs_of_other_configurations_are_no_study(tmp_path, strong):
    other = write(tmp_path / "o.h5", [1.0, 1.0], [0, 0], algorithm={"lr": 0.5})
    with pytest.raises(InputError, match="no two of these runs belong to one study"):
        scaling.studies(map(scaling.read, [strong[0], other]))
    both = scaling.studies(map(scaling.read, [*strong, other]))
    assert [len(study.points) for study in both] == [3]


def test_amdahls_law_is_found_again():
    fit = scaling.amdahl([1, 2, 4, 16], [2 + 6 / r for r in (1, 2, 4, 16)])
    assert (fit.single, fit.serial) == pytest.approx((8, 0.25))
    assert fit.residual == pytest.approx(0, abs=1e-12)
    assert fit.seconds(3) == pytest.approx(4)


@pytest.mark.parametrize(("seconds", "serial"), [((8, 3, 1.2), 0), ((2, 2.5, 3), 1)])
def test_amdahls_fraction_stays_between_0_and_1(seconds, serial):
    """Faster than ideal, and slower on more ranks."""
    fit = scaling.amdahl([1, 2, 4], seconds)
    assert fit.serial == serial
    assert fit.single > 0


def test_crowded_ranks_are_warned_about_and_left_out_of_the_fit(tmp_path):
    paths = [
        write(tmp_path / f"r{r}.h5", [8.0 / r] * r, [0.0] * r, cores=2, clients=8)
        for r in (1, 2, 4)
    ]
    points = [scaling.read(path) for path in paths]
    assert [point.crowded for point in points] == [False, False, True]
    (line,) = scaling.warnings(points)
    assert "4 threads shared 2 cores" in line
    (study,) = scaling.studies(points)
    assert study.amdahl().ranks == (1, 2)


def test_a_resumed_run_of_other_ranks_is_refused(tmp_path):
    path = write(tmp_path / "a.h5", [1.0], [0.0])
    Record(path).resume(2, parse([]), known_attributes() | {"ranks": 3})
    assert scaling.read(path).ranks == 1  # the second start has not done a round
    with h5py.File(path, "r+") as file:
        file.attrs["resumed"] = file.attrs["resumed"].replace('"round": 2', '"round": 1')
    with pytest.raises(InputError, match=r"another machine \(ranks 1, then 3\)"):
        scaling.read(path)


def test_report_writes_text_csv_and_a_figure_with_the_numbers(strong, tmp_path):
    table, figure = tmp_path / "t.csv", tmp_path / "f.pdf"
    said = answer("scaling", "report", *strong, "--csv", table, "-o", figure)
    assert "Amdahl: serial fraction" in said
    rows = list(csv.DictReader(table.open()))
    assert [float(row["seconds"]) for row in rows] == [8, 5.5, 3]
    assert [float(row["load_balance"]) for row in rows] == [1, 0.8, 1]
    assert float(rows[1]["evolve_seconds"]) == 4
    assert figure.read_bytes().startswith(b"%PDF")
    drawn = scaling_plot.figure(scaling.studies(map(scaling.read, strong)))
    left, right = drawn.axes
    assert left.lines[0].get_xdata().tolist() == [1, 2, 4]
    assert left.lines[0].get_ydata().tolist() == pytest.approx([1, 8 / 5.5, 8 / 3])
    # The figure shows the numbers of the table, each under its own name.
    efficiency = [float(row["efficiency"]) for row in rows]
    assert efficiency == pytest.approx([1, 4 / 5.5, 2 / 3])
    assert right.lines[0].get_ydata().tolist() == efficiency
    assert right.lines[1].get_ydata().tolist() == [float(row["load_balance"]) for row in rows]
    assert right.lines[1].get_linestyle() == ":"
    assert left.lines[0].get_ydata().tolist() == [float(row["speed_up"]) for row in rows]
    assert right.get_ylabel() == "efficiency"
    (told,) = drawn.legends
    named = [text.get_text() for text in told.get_texts()]
    assert named == [
        "strong: ntk-dfl, digits, 4 clients",
        "ideal speed-up",
        "load balance (dotted)",
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_seconds_that_are_none_are_reported_as_such(strong, tmp_path, value):
    with h5py.File(strong[1], "r+") as file:
        file["time/seconds"][:, 1] = value
    said = answer("scaling", "report", *strong, "-o", tmp_path / "f.svg")
    assert re.search(rf"\n +2 .* {value} ", said)
    assert "serial fraction nan" in said


# -------------------------------------------------------------------------------------- the model


def test_the_models_arithmetic_by_hand(strong):
    """Two ranks of two clients on a ring: two edges cross each way, to one neighbouring rank."""
    known = scaling_model.model([scaling.read(strong[0])])
    assert known.client_seconds == {"evolve": 2.0}
    assert known.edge_bytes == {"weights": 100, "averages": 100, "jacobians": 1000}
    found = scaling_model.predict(known, 2, 4, SOME_NETWORK)
    sent = 2 * (100 + 100) + 2 * 1000
    assert found.sent == sent
    assert found.seconds["evolve"] == pytest.approx(4)
    assert found.seconds["exchange"] == pytest.approx(3 * 0.5 + sent / 100)
    assert found.seconds["agree"] == pytest.approx(0.5)  # two ranks agree in one step
    assert found.wall == pytest.approx(4 + 1.5 + 24 + 0.5)
    assert (found.neighbours, found.imbalance) == (1, 1)
    # Rank 0 writes meanwhile, for which a run with one rank need not wait.
    known = replace(known, record_seconds=7.0)
    assert scaling_model.predict(known, 2, 4, SOME_NETWORK).wall == pytest.approx(found.wall + 7)
    assert scaling_model.predict(known, 1, 4, SOME_NETWORK).wall == pytest.approx(8)
    many = scaling_model.predict(known, 33, 33, SOME_NETWORK)
    assert many.seconds["agree"] == pytest.approx(6 * 0.5)  # too many for messages between all


def test_a_vector_crosses_once_to_a_rank_and_a_jacobian_once_to_a_client(tmp_path):
    path = write(tmp_path / "a.h5", [8.0], [0.0], topology={"kind": "complete"})
    known = scaling_model.model([scaling.read(path)])
    # On a complete graph of 4 each of 2 own clients has 2 neighbours on the other rank. The record
    # has a ring's bytes an edge.
    found = scaling_model.predict(known, 2, 4, SOME_NETWORK)
    assert found.sent == 2 * 200 + 4 * 1000


def test_the_model_gives_back_what_it_was_made_from(strong):
    known = scaling_model.model([scaling.read(strong[0])])
    assert scaling_model.predict(known, 1, 4, SOME_NETWORK).wall == pytest.approx(8)
    point = scaling.read(strong[1])
    assert scaling_text.predicted_on(known, point, SOME_NETWORK) == pytest.approx(30)


def regular(path):
    settings = {"kind": "regular", "degree": 5, "dynamic": True}
    return scaling_model.model([scaling.read(write(path, [8.0], [0.0], topology=settings))])


def test_a_hundred_thousand_clients_are_predicted_at_once(tmp_path, monkeypatch):
    known, start = regular(tmp_path / "a.h5"), time.process_time()
    found = scaling_model.predict(known, 1000, 100_000, Network(1e-6, 1e10))
    assert time.process_time() - start < 3
    assert found.sent == pytest.approx(100 * 5 * 1200, rel=0.02)
    assert found.seconds["evolve"] == pytest.approx(100 * 2)
    for built, seconds in ((True, 0.15), (False, 0.3)):
        monkeypatch.setattr(scaling_model, "is_compiled", lambda built=built: built)
        again = scaling_model.predict(known, 1000, 100_000, Network(1e-6, 1e10))
        assert again.seconds["graph"] == pytest.approx(seconds)


def test_sampled_neighbours_move_what_drawn_ones_do(tmp_path, monkeypatch):
    known = regular(tmp_path / "a.h5")
    drawn = scaling_model.predict(known, 8, 2000, SOME_NETWORK)
    monkeypatch.setattr(scaling_model, "_DRAWN", 0)
    sampled = scaling_model.predict(known, 8, 2000, SOME_NETWORK)
    assert sampled.sent == pytest.approx(drawn.sent, rel=0.03)
    assert sampled.neighbours == drawn.neighbours == 7


def test_networks_by_name_and_by_number():
    assert scaling_model.network("hdr200").beta == 25e9
    assert scaling_model.network("1e-6,2e9") == Network(1e-6, 2e9)
    for text in ("ethernet", "1", "1,0", "1e-6,nan", "-1,5"):
        with pytest.raises(InputError, match="--network is one of"):
            scaling_model.network(text)


def test_predict_keeps_measured_and_predicted_apart(strong):
    said = answer("scaling", "predict", strong[0], "--ranks", 2, "--network", "0.5,100")
    measured, predicted = said.split("PREDICTED, not measured")
    assert "2000.000" in measured
    assert "30.0000 s" in predicted


def test_methods_with_a_server_are_refused(tmp_path):
    path = write(tmp_path / "a.h5", [1.0], [0.0], algorithm={"name": "ntk-fl"})
    with h5py.File(path, "r+") as file:
        file.attrs["method_central"] = 1
    assert "has a server" in complaint("scaling", "predict", path, "--ranks", 2)


# ------------------------------------------------------------------------------ costs of clients


@needs_fashion
@pytest.mark.parametrize(
    ("preset", "costs_sum", "seconds", "traffic", "memory", "offsets"),
    [
        ("quickstart", 604350, 0.3325524, 20973180, 389114588, [0, 11, 22, 32]),
        (
            *("paper-fashion-mnist-dfedsam", 27565575, 14.21099, 642779680, 536089740),
            [0, 100, 200, 300],
        ),
        (
            *("paper-fashion-mnist-ntk-fl", 13693270, 11.358105, 121196204, 832433092),
            [0, 100, 200, 300],
        ),
    ],
)
def test_what_check_predicts(preset, costs_sum, seconds, traffic, memory, offsets):
    """Numbers of an earlier version: ranks share clients out by them, so they change on purpose only."""
    problem = prepare(parse(read_source(preset)), 3)
    assert costs.placement_costs(costs.round_work(problem.first)).sum() == costs_sum
    assert problem.placement.offsets.tolist() == offsets
    found = problem.round_seconds(costs.NOMINAL, 2)
    assert sum(found.values()) == pytest.approx(seconds, rel=1e-6)
    assert problem.plan.traffic.sum() == traffic
    assert sum(problem.plan.memory.values()) == memory


def test_costs_follow_samples_and_are_equal_for_equal_clients():
    small = {"dataset": {"name": "digits"}, "clients": 8, "topology": {"kind": "ring"}}
    equal = prepare(parsed(small | {"partition": {"kind": "iid"}}), 2)
    each = costs.placement_costs(costs.round_work(equal.first))
    assert np.ptp(each) <= 0.05 * each.max()
    skewed = prepare(parsed(small | {"partition": {"kind": "shards", "per_client": 2}}), 2)
    assert skewed.placement.ranks == 2
    for method in ("ntk-dfl", "dfedavg", "average-gd", "ntk-fl", "local"):
        named = {"algorithm": {"name": method}}
        if method == "ntk-fl":
            named["algorithm"]["clients_per_round"] = 3
        problem = prepare(parsed(small | named), 2)
        found = problem.round_seconds(costs.NOMINAL, 2)
        assert all(seconds >= 0 for seconds in found.values())
        assert 0.001 < sum(found.values()) < 60


def test_seconds_double_when_ranks_outnumber_cores_twofold():
    config = parsed({"dataset": {"name": "digits"}, "clients": 8, "topology": {"kind": "ring"}})
    problem = prepare(config, 4)
    roomy, crowded = (sum(problem.round_seconds(costs.NOMINAL, cores).values()) for cores in (4, 2))
    assert crowded == pytest.approx(2 * roomy)


@pytest.mark.parametrize(("method", "phase"), [("dfedavg", "train"), ("ntk-dfl", "evolve")])
def test_the_prediction_follows_the_version_that_runs(method, phase):
    """Clients are placed alike for both versions, since ranks may be on different machines."""
    change = {"algorithm": {"name": method}}
    problem = prepare(parse([*read_source("quickstart"), change]), 2)
    tensor = problem.round_seconds(costs.NOMINAL, 2)
    compiled = problem.round_seconds(costs.NOMINAL, 2, {phase})
    assert {name for name in tensor if tensor[name] != compiled[name]} == {phase}
    assert compiled[phase] < tensor[phase]
    fast = prepare(
        parse([*read_source("quickstart"), change, {"compute": {"evolution": "tensor"}}]), 2
    )
    assert fast.placement == problem.placement


# ------------------------------------------------------------------------------------- the driver


def test_a_weak_study_multiplies_clients_and_a_strong_one_keeps_them():
    config = parsed({"clients": 8, "partition": {"samples": 20}, "topology": {"kind": "ring"}})
    weak = scaling_run.plan(config, "weak", [4, 1, 2, 2])
    assert {ranks: each.clients for ranks, each in weak.items()} == {1: 8, 2: 16, 4: 32}
    assert {each.clients for each in scaling_run.plan(config, "strong", [1, 8]).values()} == {8}
    with pytest.raises(InputError, match="more ranks than clients"):
        scaling_run.plan(config, "strong", [1, 9])
    with pytest.raises(InputError, match=r"set partition\.samples"):
        scaling_run.plan(parsed({"clients": 8}), "weak", [1, 2])


def test_launchers(tmp_path):
    assert launcher_words("srun -n {ranks} --mpi=pmix")[2] == "{ranks}"
    for bad, message in {"srun -n 4": "must hold", "'{ranks}": "no command line"}.items():
        with pytest.raises(InputError, match=message):
            launcher_words(bad)


def test_the_driver_refuses_to_run_under_a_launcher(tmp_path, monkeypatch):
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "1")
    told = complaint("scaling", "run", "quickstart", "--ranks", "1,2", "-o", tmp_path / "x")
    assert "start it without mpirun" in told
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.skipif(find_mpirun() is None, reason="needs mpirun")
def test_a_study_is_launched_reported_and_not_run_again(tmp_path):
    small = ["--set", "clients=4", "--set", "topology.kind=ring", "--set", "algorithm.taus=[5]"]
    folder = tmp_path / "study"
    command = [sys.executable, "-m", "mpi_ntkdfl", "scaling", "run", "quickstart", *small]
    command += ["--ranks", "1,2", "--rounds", "2", "-o", str(folder)]
    options = {"capture_output": True, "text": True, "timeout": 200, "check": False}
    first = subprocess.run(command, env=environment(), **options)
    assert first.returncode == 0, first.stderr
    records = [folder / "strong-1.h5", folder / "strong-2.h5"]
    before = [record.read_bytes() for record in records]
    assert "strong: ntk-dfl, digits, 4 clients" in answer("scaling", "report", *records)
    again = subprocess.run(command, env=environment(), **options)
    assert again.stdout.count("finished before") == 2
    assert [record.read_bytes() for record in records] == before
