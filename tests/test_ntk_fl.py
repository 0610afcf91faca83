"""NTK-FL: one round by hand, who takes part, what a server is told and what it costs."""

import numpy as np
import pytest
import torch

from mpi_ntkdfl.algorithms.ntk_fl import NtkFl, NtkFlSettings
from mpi_ntkdfl.assembly import prepare
from mpi_ntkdfl.comm.ledger import TRAFFIC_PHASES
from mpi_ntkdfl.config import parse
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.presets import read_overrides, read_source
from mpi_ntkdfl.runtime.errors import InputError, SimulationError
from mpi_ntkdfl.topology.graphs import Graph
from mpi_ntkdfl.topology.schedule import participants
from tests import oracle
from tests.conftest import make_federation, random_weights

SIZES = (5, 3, 8, 4)
WIDTHS = (6, 5, 3)


def one_round(number=0, edges=((0, 1),), **settings):
    federation = make_federation(WIDTHS, SIZES)
    weights = random_weights(federation)[:1].repeat(4, 1)
    chosen = {"taus": (5, 40), "lr": 0.05, "tolerance": 1e-9, "clients_per_round": 3} | settings
    method = NtkFl(NtkFlSettings().model_copy(update=chosen), federation)
    with Exchange(federation, Graph.from_pairs(4, edges)) as exchange:
        return federation, weights[0], method.settings, method.round(weights, number, exchange)


@pytest.mark.parametrize("number", [0, 5])
@pytest.mark.parametrize(
    "settings",
    [{"loss": "cross-entropy"}, {"loss": "squared"}, {"lr": 3.0, "taus": (1, 50)}],
    ids=str,
)
def test_round_equals_oracle(number, settings):
    federation, w, s, result = one_round(number, **settings)
    asked = participants(4, 3, federation.seed, number).tolist()
    x = torch.cat([federation.samples[c].inputs for c in asked])
    labels = torch.cat([federation.samples[c].labels for c in asked])
    lr = s.lr * np.exp(-s.lr_decay * number)
    wanted, tau = oracle.ntk_step(w, x, labels, WIDTHS, lr, list(s.taus), s.loss)
    assert result.taus == [tau] * 4
    for row in result.weights:
        assert (row - wanted).norm() < 1e-6 * (wanted - w).norm()


def test_the_graph_does_not_matter():
    found = [one_round(edges=edges)[3].weights for edges in ([], [(0, 1), (1, 2), (2, 3)])]
    assert torch.equal(*found)


def test_participants_are_drawn_anew_each_round_and_everybody_is_some_time():
    rounds = [participants(300, 21, 7, k).tolist() for k in range(200)]
    assert all(asked == sorted(set(asked)) and len(asked) == 21 for asked in rounds)
    times = np.bincount(np.concatenate(rounds), minlength=300)
    # 14 a client on average, with a deviation of 3.6.
    assert times.min() > 0
    assert times.max() < 32
    assert participants(300, 21, 7, 3).tolist() == rounds[3] != participants(300, 21, 8, 3).tolist()


def test_the_server_is_the_busiest_node():
    federation, *_ = one_round()
    busiest = federation.ledger.busiest
    booked = dict(zip(TRAFFIC_PHASES, federation.ledger.lap().tolist()[0], strict=True))
    rows = sum(SIZES[c] for c in participants(4, 3, federation.seed, 0))
    assert booked.pop("jacobians") == rows * (6 + 5) * 8
    assert booked.pop("outputs") == rows * 3 * 8
    assert booked.pop("labels") == rows * 4
    assert booked.pop("weights") == 4 * federation.network.layout.size * 8
    assert not any(booked.values())
    assert busiest == rows * ((6 + 5 + 3) * 8 + 4) + 4 * federation.network.layout.size * 8


def test_divergence_names_the_round():
    with pytest.raises(SimulationError, match="non-finite|failed") as caught:
        one_round(number=3, lr=1e200)
    assert "round 3" in caught.value.__notes__


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "algorithm.clients_per_round=33",
            "clients_per_round must be at most clients, got 33 of 32",
        ),
        ("model.init=per-client", "ntk-fl holds one model for all clients.* got per-client"),
        ("compute.memory_limit=1MB", "what the server gathers.* lower algorithm.clients_per_round"),
    ],
)
def test_what_cannot_be_is_refused_before_the_run(override, message):
    layers = [*read_source("quickstart"), read_overrides(["algorithm.name=ntk-fl", override])]
    config = parse(layers)
    with pytest.raises(InputError, match=message):
        prepare(config, 1)
