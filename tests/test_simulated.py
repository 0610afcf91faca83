"""Runs in simulated time: predictions, absent clients, and the bytes of those who are present."""

import json

import h5py
import numpy as np
import pytest

import mpi_ntkdfl as nd
from mpi_ntkdfl.assembly import prepare
from mpi_ntkdfl.planning.forecast import forecast
from tests.test_cli import answer, complaint, sets

OFTEN = {"availability": {"kind": "bernoulli", "p": 0.7}, "links": {"spread": 0.5}}
PARAMS = 64 * 5 + 5 + 5 * 10 + 10


def settings(algorithm, environment=None, **more):
    config = {
        "clients": 8,
        "rounds": 3,
        "partition": {"samples": 12},
        "model": {"hidden": [5]},
        "topology": {"kind": "regular", "degree": 3},
        "algorithm": algorithm,
        **more,
    }
    return nd.load_config(
        "quickstart", **config, **({"environment": environment} if environment else {})
    )


def done(folder, *args, **more):
    """The record and the last weights of a run."""
    path, record = folder / f"{len(list(folder.iterdir()))}.h5", {}
    nd.run(settings(*args, **more), path)
    with h5py.File(path) as file:
        file.visititems(
            lambda n, o: record.update({n: o[()]} if isinstance(o, h5py.Dataset) else {})
        )
        record["phases"] = list(file["traffic"].attrs["phases"])
    with h5py.File(path.with_suffix(".ckpt.h5")) as checkpoint:
        return record, checkpoint["params"][()]


NTK = {"name": "ntk-dfl", "taus": [5, 20]}
DFEDAVG = {"name": "dfedavg", "epochs": 1}


@pytest.mark.parametrize("algorithm", [NTK, DFEDAVG], ids=["ntk-dfl", "dfedavg"])
def test_full_participation_has_the_bits_of_no_environment(tmp_path, algorithm):
    _, plain = done(tmp_path, algorithm)
    everybody = {"availability": {"kind": "bernoulli", "p": 1.0}}
    record, timed = done(tmp_path, algorithm, everybody)
    assert np.array_equal(plain, timed)
    assert record["simulated/active"].all()


def test_a_round_without_anybody_passes(tmp_path):
    trace = tmp_path / "trace.json"
    trace.write_text(json.dumps({"repeat": 1000, "clients": [[[5, 900]]] * 8}))
    record, _ = done(tmp_path, NTK, {"availability": {"kind": "trace", "path": str(trace)}})
    assert record["simulated/active"].sum(axis=1).tolist() == [0, 8, 8]
    assert record["simulated/seconds"][0] == 5
    assert record["traffic/protocol_bytes"].sum(axis=1)[0] == 0
    accuracy = record["model/accuracy"]
    assert accuracy[0] == accuracy[1] != accuracy[2]


def by_edge(per_client):
    """Bytes if each present client sends `per_client` to each neighbour that is present."""

    def count(record, number):
        start, end = record["topology/offsets"][number : number + 2]
        active = record["simulated/active"][number].astype(bool)
        sizes = np.diff(record["partition/offsets"])
        edges = [(i, j) for i, j in record["topology/edges"][start:end] if active[i] and active[j]]
        return sum(per_client(int(sizes[client])) for edge in edges for client in edge)

    return count


def of_server(record, number):
    """All that are present and hold the model send Jacobians; all present receive weights."""
    active, sizes = record["simulated/active"].astype(bool), np.diff(record["partition/offsets"])
    asked = active[number] & (active[number - 1] if number else True)
    return int(sizes[asked].sum()) * ROW + active[number].sum() * PARAMS * 4


ROW = (64 + 5 + 10 + 1) * 4
"""Inputs of both layers, outputs and label of one sample."""


@pytest.mark.parametrize(
    ("algorithm", "count"),
    [
        (NTK, by_edge(lambda samples: 2 * PARAMS * 4 + samples * ROW)),
        ({**NTK, "jacobian": "inputs"}, by_edge(lambda n: PARAMS * 4 + n * (64 + 4))),
        (DFEDAVG, by_edge(lambda samples: PARAMS * 4)),
        ({"name": "ntk-fl", "clients_per_round": 8, "taus": [5, 20]}, of_server),
    ],
    ids=["ntk-dfl", "inputs", "dfedavg", "ntk-fl"],
)
def test_protocol_bytes_are_what_those_present_sent(tmp_path, algorithm, count):
    record, _ = done(tmp_path, algorithm, OFTEN)
    assert 0 < record["simulated/active"].mean() < 1
    sent = np.delete(record["traffic/protocol_bytes"], record["phases"].index("statistics"), axis=1)
    assert sent.sum(axis=1).tolist() == [count(record, number) for number in range(3)]


@pytest.mark.parametrize(
    ("algorithm", "waiting"),
    [
        (NTK, {"kind": "barrier"}),
        ({**NTK, "jacobian": "inputs"}, {"kind": "neighbours"}),
        ({"name": "fedavg"}, {"kind": "deadline", "seconds": 0.13}),
    ],
    ids=["barrier", "neighbours", "deadline"],
)
def test_check_predicts_the_seconds_of_a_run(tmp_path, algorithm, waiting):
    environment = {
        "links": {"spread": 0.5},
        "devices": {"speed": "20MFLOP/s", "spread": 0.5},
        "waiting": waiting,
    }
    config = settings(algorithm, environment, topology={"kind": "ring", "dynamic": False})
    problem = prepare(config, 1)
    first, later = (forecast(problem.first, problem.conditions, kept) for kept in (False, True))
    record, _ = done(tmp_path, algorithm, environment, topology={"kind": "ring", "dynamic": False})
    seconds = record["simulated/seconds"]
    assert first.seconds == pytest.approx(seconds[0], abs=1e-9)
    if waiting["kind"] == "barrier":
        assert seconds[2] == pytest.approx(first.seconds + 2 * later.seconds, abs=1e-9)
        assert sum(first.parts.values()) == pytest.approx(first.seconds)
        assert first.slowest[1] <= first.seconds
    assert (first.late > 0) == (waiting["kind"] == "deadline")


def test_two_vectors_of_one_phase_travel_together_and_count_once():
    links = {"links": {"latency": "100ms"}}
    parts = []
    for algorithm in (DFEDAVG, {"name": "k-gt", "epochs": 1}):
        problem = prepare(settings(algorithm, links), 1)
        parts.append(forecast(problem.first, problem.conditions, False).parts)
    one, two = parts
    assert one["latency"] == two["latency"] == pytest.approx(0.1)
    assert two["sending"] == pytest.approx(2 * one["sending"])


def test_check_says_where_the_time_goes():
    shown = answer("check", "--no-measure", *sets(environment__links__latency="250ms"))
    assert "simulated seconds of round 0, if all clients take part (barrier):" in shown
    assert "latency          0.750 s" in shown  # three legs
    assert "slowest client: " in shown
    assert "simulated" not in answer("check", "--no-measure", *sets())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("links.latency=-5ms", "links.latency: expected a time with its unit from 0ms"),
        ("links.up=0Mbit/s", "links.up: expected a rate with its unit from 1bit/s"),
        ("links.down=10", "links.down: expected a rate with its unit"),
        ("devices.speed=-1GFLOP/s", "devices.speed: expected a speed with its unit"),
        ("waiting={kind: deadline, seconds: 0}", "waiting.seconds: Input should be greater than 0"),
        ("availability={kind: trace, path: SHORT}", "the trace is of 2 clients, but clients=6"),
        ("availability={kind: trace, path: OVERLAP}", "overlaps the one before"),
    ],
)
def test_bad_values_are_one_message(tmp_path, setting, message):
    for name, clients in (("SHORT", [[[0, 1]]] * 2), ("OVERLAP", [[[0, 3], [2, 4]]] * 6)):
        (tmp_path / name).write_text(json.dumps({"repeat": 10, "clients": clients}))
        setting = setting.replace(f"path: {name}", f"path: {tmp_path / name}")
    assert message in complaint("check", *sets(), "--set", f"environment.{setting}")
