"""How long exchanges are in flight, and how much of that is waited for."""

import numpy as np
import pytest
import torch

from mpi_ntkdfl.algorithms.ntk_dfl import NtkDfl, NtkDflSettings
from mpi_ntkdfl.comm import flight
from mpi_ntkdfl.comm.flight import Flight
from mpi_ntkdfl.config.sections import RegularTopology
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.runtime.clock import Clock
from mpi_ntkdfl.topology.schedule import Schedule
from tests.conftest import make_federation, random_weights


class Hands:
    """A clock that stands still unless it is moved."""

    now = 0.0

    def __call__(self):
        return self.now


class FakePending:
    """Complete from `when` on; waiting moves the hands there."""

    def __init__(self, hands, when):
        self.hands, self.when, self.pokes = hands, when, 0

    def poke(self):
        self.pokes += 1
        return self.hands.now >= self.when

    def wait(self):
        self.hands.now = max(self.hands.now, self.when)
        return torch.arange(3, dtype=torch.uint8)


@pytest.fixture
def hands(monkeypatch):
    made = Hands()
    monkeypatch.setattr(flight, "perf_counter", made)
    return made


@pytest.mark.parametrize(
    ("when", "pokes", "waits", "flown", "waited"),
    [
        (4.0, [], 0.0, 4.0, 4.0),  # nothing to do meanwhile
        (4.0, [1.0, 2.0], 3.0, 4.0, 1.0),
        (4.0, [1.0, 6.0], 9.0, 6.0, 0.0),  # noticed at the second poke
        (4.0, [1.0], 7.0, 7.0, 0.0),  # noticed on waiting, which does not block
        (0.0, [0.0], 5.0, 0.0, 0.0),
    ],
)
def test_a_flight_ends_when_it_is_noticed(hands, when, pokes, waits, flown, waited):
    clock, pending = Clock(), FakePending(hands, when)
    each = Flight(pending, clock)
    for moment in pokes:
        hands.now = moment
        assert each.poke() == (moment >= when)
    hands.now = waits
    assert each.wait().tolist() == [0, 1, 2]
    assert clock.lap_flights() == (flown, waited)
    assert each.poke()
    assert clock.lap_flights() == (0.0, 0.0), "booked once, and a lap starts anew"


def test_a_landed_flight_leaves_mpi_alone(hands):
    pending = FakePending(hands, 0.0)
    each = Flight(pending, Clock())
    assert [each.poke() for _ in range(3)] == [True] * 3
    assert pending.pokes == 1


def test_flights_add_up(hands):
    clock = Clock()
    first, second = (Flight(FakePending(hands, when), clock) for when in (2.0, 5.0))
    hands.now = 1.0
    first.wait()
    second.wait()
    assert clock.lap_flights() == (2.0 + 5.0, 1.0 + 3.0)


def test_alone_nothing_is_waited_for():
    """The next wave of one process is there before its clients are looked at."""
    federation = make_federation((6, 5, 3), (5, 3, 8, 4, 6, 7), memory_limit=1)
    graph = Schedule(RegularTopology(kind="regular", degree=3), 6, 0).graph(0)
    with Exchange(federation, graph) as exchange:
        NtkDfl(NtkDflSettings(taus=(5,)), federation).round(random_weights(federation), 0, exchange)
    flown, waited = federation.clock.lap_flights()
    assert 0 <= waited <= flown < np.inf
