"""Simulated time: rounds by hand, availability, files, and SimGrid as an oracle."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mpi_ntkdfl import config
from mpi_ntkdfl.config.environment import (
    Barrier,
    Bernoulli,
    Deadline,
    EnvironmentSettings,
    LinkSettings,
    Neighbours,
    OnOff,
    TraceFile,
)
from mpi_ntkdfl.environment.availability import availability
from mpi_ntkdfl.environment.links import Links
from mpi_ntkdfl.environment.rounds import Leg, simulate
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.topology.graphs import Graph
from mpi_ntkdfl.topology.pairing import random_regular
from mpi_ntkdfl.topology.present import Hearing, among

BARRIER, NEIGHBOURS = Barrier(), Neighbours(kind="neighbours")


def links(up, down, latency):
    """Links of clients and a server with these rates in bytes per second."""
    region = np.zeros(len(up), dtype=np.int64)
    return Links(np.array(up, float), np.array(down, float), region, np.array([[latency]]))


def leg(messages, compute):
    source, target, nbytes = (np.array(column) for column in zip(*messages, strict=True))
    return Leg(np.array(compute, float), source, target, nbytes.astype(float))


def line(nbytes, compute=(0, 0, 0, 0)):
    """One leg on the path 0 - 1 - 2, with a server that does nothing."""
    return leg([(0, 1, nbytes), (1, 0, nbytes), (1, 2, nbytes), (2, 1, nbytes)], compute)


def run(legs, rest, waiting, where, present=(1, 1, 1, 0), start=0.0, clocks=None):
    clocks = np.zeros(len(rest)) if clocks is None else np.array(clocks, float)
    took = np.array(present, dtype=bool)
    return simulate(legs, np.array(rest, float), took, start, clocks, where, waiting)


# Client 1 has two neighbours, so each of its messages has half of its rates.
PATH = links([1000, 1000, 500, 1], [2000, 1000, 4000, 1], 0.25)
# 0 -> 1: 1000 / min(1000, 500); 1 -> 0: 1000 / min(500, 2000); 1 -> 2: 500; 2 -> 1: min(500, 500)


def test_a_barrier_adds_up_the_slowest_of_every_step():
    told = run([line(1000, (1, 3, 2, 0)), line(500)], (0.5, 0.125, 0, 0), BARRIER, PATH, start=10)
    # 3 to compute, 2.25 for the messages, 1.25 for those of the second leg, 0.5 to compute.
    assert told.end == pytest.approx(10 + 3 + 2.25 + 1.25 + 0.5, abs=1e-6)
    assert told.nodes[:3] == pytest.approx([17, 16.625, 16.5], abs=1e-6)


def test_neighbours_wait_for_their_own_neighbours_only():
    told = run([line(1000, (1, 3, 9, 0))], (0, 0, 0, 0), NEIGHBOURS, PATH, clocks=(1, 0, 0, 0))
    # 0 sends at 2 and hears 1 at 5.25; 2 sends at 9, so 1 hears it at 11.25; 2 was slower than 1.
    assert told.nodes[:3] == pytest.approx([5.25, 11.25, 9], abs=1e-6)
    assert told.end == pytest.approx(11.25, abs=1e-6)


def test_late_messages_are_late_for_one_receiver_and_a_deadline_ends_the_round():
    told = run([line(1000, (0, 0, 4, 0))], (0, 0, 0, 0), Deadline(kind="deadline", seconds=5), PATH)
    (late,) = told.late
    assert late.tolist() == [False, False, False, True]  # client 2's message comes at 6.25
    assert told.end == pytest.approx(5, abs=1e-6)
    assert told.nodes[:3] == pytest.approx([5, 5, 5], abs=1e-6)
    busy = run([line(1000, (0, 0, 9, 0))], (0, 0, 0, 0), Deadline(kind="deadline", seconds=5), PATH)
    assert busy.nodes[2] == pytest.approx(9, abs=1e-6)  # its clock is beyond the round's end


def test_steps_of_a_deadline_close_one_after_another_and_early_if_all_is_done():
    waiting = Deadline(kind="deadline", seconds=9)
    legs = [line(500), line(500, (0, 0, 4, 0)), line(500)]
    told = run(legs, (0, 0, 0, 0), waiting, PATH)
    # Leg 1 ends at 1.25. Client 2 sends at 5.25; 6.5 is beyond 6, where leg 2 closes. In leg 3 nobody
    # waits for it, but it hears the others at 7.25.
    assert [late.tolist()[3] for late in told.late] == [False, True, True]
    assert told.end == pytest.approx(6 + 1.25, abs=1e-6)


def test_an_absent_client_costs_nothing_and_its_clock_keeps_up():
    alone = leg([(0, 1, 1000), (1, 0, 1000)], (0, 0, 0, 0))
    told = run([alone], (0, 0, 0, 0), NEIGHBOURS, PATH, present=(1, 1, 0, 0), clocks=(0, 0, 0.5, 0))
    assert told.nodes[:3] == pytest.approx([1.25, 1.25, 1.25], abs=1e-6)


def test_four_clients_and_a_server():
    where = links([1000] * 4 + [4000], [1000] * 4 + [2000], 0.1)
    up = leg([(i, 4, 1000) for i in range(4)], (1, 2, 0, 0, 0))
    down = leg([(4, i, 500) for i in range(4)], (0, 0, 0, 0, 0.5))
    told = run([up, down], (0,) * 5, BARRIER, where, present=(1,) * 5)
    assert told.end == pytest.approx(2 + 0.1 + 2 + 0.5 + 0.1 + 0.5, abs=1e-6)


def test_factors_and_regions(tmp_path):
    spread = LinkSettings(spread=0.5, up="8kbit/s")
    made = Links.of(spread, 2000, seed=3)
    assert np.log(made.up[:-1] / 1000).std() == pytest.approx(0.5, abs=0.03)
    assert np.allclose(made.up[:-1] / 1000, made.down[:-1] / 6.25e6)
    assert np.array_equal(made.up, Links.of(spread, 2000, seed=3).up)
    file = tmp_path / "r.csv"
    file.write_text(",north,south\nnorth,2,30\nsouth,40,4\n")
    made = Links.of(LinkSettings(regions=str(file)), 3, seed=0)
    seconds = made.latency(np.array([0, 1, 1, 0, 3]), np.array([1, 0, 1, 2, 1]))
    assert seconds.tolist() == [0.015, 0.02, 0.002, 0.001, 0.015]
    for text in ("1,2\n3\n", "1,-2\n3,4\n", "1,x\n2,3\n", ""):
        file.write_text(text)
        with pytest.raises(InputError, match="environment.links.regions"):
            Links.of(LinkSettings(regions=str(file)), 3, seed=0)


def test_availability_is_drawn_from_the_seed():
    often = EnvironmentSettings(availability=Bernoulli(kind="bernoulli", p=0.7))
    drawn = availability(often, 10_000, seed=1)
    assert drawn.at(3, np.zeros(10_000)).mean() == pytest.approx(0.7, abs=0.02)
    settings = EnvironmentSettings(availability=OnOff(kind="on-off", on="3s", off="1s"))
    times = np.linspace(0, 400, 81)
    process = availability(settings, 500, seed=1)
    every = np.array([process.at(0, np.full(500, t)) for t in times])
    assert every.mean() == pytest.approx(0.75, abs=0.01)
    assert np.array_equal(availability(settings, 500, seed=1).at(9, np.full(500, 400.0)), every[-1])
    assert 0.2 < (every[1:] != every[:-1]).mean() < 0.4  # 5 s are more than a mean stay


def trace(path, content, clients=2):
    path.write_text(json.dumps(content))
    kind = TraceFile(kind="trace", path=str(path))
    return availability(EnvironmentSettings(availability=kind), clients, seed=0)


def test_traces_repeat_and_both_forms_say_the_same(tmp_path):
    own = {"repeat": 10, "clients": [[[0, 2], [4, 5]], [[3, 10]]]}
    fedscale = {
        "1": {"active": [0, 4], "inactive": [2, 5], "finish_time": 10},
        "2": {"active": [3], "inactive": [10], "finish_time": 10, "model": "any"},
    }
    for content in (own, fedscale):
        read = trace(tmp_path / "t.json", content)
        present = [read.at(0, np.full(2, t)).tolist() for t in (0, 2, 4.5, 11, 25)]
        assert present == [[1, 0], [0, 0], [1, 1], [1, 0], [0, 1]]
        assert read.next_arrival(12.5) == 13


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"repeat": 10, "clients": [[]]}, "of 1 clients, but clients=2"),
        ({"repeat": 10, "clients": [[], []]}, "at least one client"),
        ({"repeat": 10, "clients": [[[0, 3], [2, 4]], []]}, "overlaps"),
        ({"repeat": 10, "clients": [[[3, 3]], []]}, "end after its start"),
        ({"repeat": 10, "clients": [[[-1, 3]], []]}, "below 0"),
        ({"repeat": 10, "clients": [[[0, 11]], []]}, "after repeat"),
        ({"repeat": 0, "clients": [[[0, 1]], []]}, "above 0"),
        ({"clients": [[[0, 1]], []]}, "above 0"),
        ({"repeat": 10, "clients": [["x"], []]}, "START, END"),
        ({"repeat": 10, "clients": 3}, "must be a list"),
        ({"repeat": 10, "clients": [], "more": 1}, "unknown keys"),
        ([{"active": [1], "inactive": []}, {}], "needs the keys"),
        ("text", "expected"),
    ],
)
def test_bad_traces_are_one_message(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        trace(tmp_path / "t.json", content)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("links.latency", 20),
        ("links.latency", "-5ms"),
        ("links.up", "0Mbit/s"),
        ("links.up", "10MB/s"),
        ("links.spread", -1.0),
        ("devices.speed", 2e10),
        ("availability", {"kind": "bernoulli", "p": 1.5}),
        ("availability", {"kind": "on-off", "on": "0s"}),
        ("availability", {"kind": "sometimes"}),
        ("waiting", {"kind": "deadline", "seconds": 0}),
        ("links.latancy", "5ms"),
    ],
)
def test_bad_values_name_their_key(key, value):
    section, _, name = key.partition(".")
    with pytest.raises(InputError, match=rf"environment\.{key}"):
        config.parse([{"environment": {section: {name: value} if name else value}}])


def test_layers_of_an_environment_keep_what_they_do_not_name():
    first = {"environment": {"links": {"up": "1Gbit/s"}, "availability": {"kind": "on-off"}}}
    second = {"environment": {"links": {"latency": "1ms"}, "availability": {"on": "1h"}}}
    made = config.parse([first, second]).environment
    assert (made.links.up, made.links.latency, made.availability.on) == ("1Gbit/s", "1ms", "1h")
    assert config.effect("environment.links.regions") == "place"
    assert config.effect("environment.availability.path") == "place"
    assert config.effect("environment.links.up") == "result"
    assert "environment" not in config.parse([]).to_yaml()


def test_hearing_leaves_out_directed_messages():
    graph = Graph.from_pairs(4, [(0, 1), (1, 2), (2, 3)])
    heard = Hearing.without(graph, np.array([1, 3]), np.array([0, 2]))
    assert [heard.closed(i).tolist() for i in range(4)] == [[0], [0, 1, 2], [1, 2], [2, 3]]
    assert heard.degrees.tolist() == [0, 2, 1, 1]
    present = np.array([True, True, False, True])
    assert among(graph, present).edges.tolist() == [[0, 1]]
    assert among(graph, np.ones(4, bool)) is graph


SIMGRID = Path(__file__).parent / "simgrid_oracle.py"


@pytest.mark.slow
def test_barrier_rounds_are_those_of_simgrid():
    """20 random regular graphs of 10 to 100 clients, with other rates for every client."""
    python = "/usr/bin/python3"
    found = subprocess.run([python, "-c", "import simgrid"], capture_output=True, check=False)
    if found.returncode:
        pytest.skip("python3-simgrid is not installed for /usr/bin/python3")
    generator = np.random.default_rng(5)
    cases, expected = [], []
    for _ in range(20):
        clients = int(generator.integers(5, 51)) * 2
        edges = random_regular(int(generator.integers(2, 6)), clients, int(generator.integers(999)))
        up, down = generator.uniform(0.2, 6, (2, clients)) * 1e6
        latency, nbytes = float(generator.uniform(0.001, 0.5)), float(generator.uniform(1e5, 1e7))
        messages = np.concatenate([edges, edges[:, ::-1]])
        one = Leg(np.zeros(clients + 1), *messages.T, np.full(len(messages), nbytes))
        where = links(np.append(up, 1), np.append(down, 1), latency)
        present = np.append(np.ones(clients, bool), False)
        start = np.zeros(clients + 1)
        barrier = simulate([one], start, present, 0.0, start, where, BARRIER)
        own = simulate([one], start, present, 0.0, start, where, NEIGHBOURS)
        expected.append((barrier.end, own.nodes[:-1]))
        rates = {"up": up.tolist(), "down": down.tolist()}
        cases.append({**rates, "latency": latency, "nbytes": nbytes, "messages": messages.tolist()})
    worst = 0.0
    for case, (end, nodes) in zip(cases, expected, strict=True):
        told = subprocess.run(
            [python, SIMGRID], input=json.dumps(case), capture_output=True, text=True, check=True
        )
        oracle = np.array(json.loads(told.stdout.splitlines()[-1]))
        assert end == pytest.approx(oracle.max(), rel=1e-4)
        worst = max(worst, float((nodes / oracle - 1).max()))
        assert (nodes > oracle * (1 - 1e-4)).all()  # single clients are late at most, never early
    assert 1 < worst < 1.5  # docs/simulated-time.md says how much
