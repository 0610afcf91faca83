"""One round of NTK-DFL, by hand: the method on an in-process exchange against the plain oracle."""

import numpy as np
import pytest
import torch
from torch import nn

from mpi_ntkdfl.algorithms.ntk_dfl import NtkDfl, NtkDflSettings
from mpi_ntkdfl.comm.ledger import TRAFFIC_PHASES
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.model.module import ModuleNetwork
from mpi_ntkdfl.runtime.errors import SimulationError
from mpi_ntkdfl.topology.graphs import Graph
from tests import oracle
from tests.conftest import make_federation, random_weights

RING = {(0, 1), (1, 2), (2, 3), (0, 3)}
STAR = {(0, 1), (0, 2), (0, 3)}
COMPLETE = {(i, j) for j in range(4) for i in range(j)}
LONELY = {(0, 1)}
SIZES = (5, 3, 8, 4)


def one_round(widths, edges, number=0, memory_limit=None, dtype=torch.float64, **settings):
    federation = make_federation(widths, SIZES, dtype, memory_limit)
    weights = random_weights(federation)
    settings = NtkDflSettings(**{"taus": (5, 40), "lr": 0.05, "tolerance": 1e-9, **settings})
    method = NtkDfl(settings, federation)
    with Exchange(federation, Graph(4, np.array(sorted(edges)))) as exchange:
        result = method.round(weights, number, exchange)
    return federation, weights, settings, result


def expected_round(federation, weights, settings, edges, number=0):
    data = [(s.inputs.double(), s.labels) for s in federation.samples.values()]
    return oracle.ntk_dfl_round(
        list(weights.double()),
        data,
        edges,
        federation.network.widths,
        settings.lr * np.exp(-settings.lr_decay * number),
        list(settings.taus),
        settings.loss,
        settings.averaging == "samples",
    )


def check(widths, edges, tolerance, number=0, **settings):
    federation, weights, settings, result = one_round(widths, edges, number, **settings)
    expected, taus = expected_round(federation, weights, settings, edges, number)
    for client, (found, wanted) in enumerate(zip(result.weights, expected, strict=True)):
        step = (wanted - weights[client]).norm()
        assert (found - wanted).norm() < tolerance * step, f"client {client}"
    assert result.taus == taus


@pytest.mark.parametrize(
    "edges", [RING, STAR, COMPLETE, LONELY], ids=["ring", "star", "complete", "lonely"]
)
@pytest.mark.parametrize("loss", ["cross-entropy", "squared"])
def test_round_equals_oracle(edges, loss):
    check((6, 5, 3), edges, 1e-6, loss=loss)


@pytest.mark.parametrize("widths", [(6, 3), (6, 5, 4, 3)])
def test_other_depths(widths):
    check(widths, RING, 1e-6)


def test_later_round_uses_decayed_lr():
    check((6, 5, 3), RING, 1e-6, number=7)


def test_average_weighted_by_samples():
    check((6, 5, 3), STAR, 1e-6, averaging="samples")


def test_without_averaging_own_weights_evolve_with_the_neighbours_jacobians():
    federation, weights, settings, result = one_round((6, 5, 3), STAR, averaging="none")
    data = federation.samples
    for client in range(4):
        closed = [0, 1, 2, 3] if client == 0 else [0, client]
        wanted, tau = oracle.ntk_step(
            weights[client],
            torch.cat([data[j].inputs for j in closed]),
            torch.cat([data[j].labels for j in closed]),
            federation.network.widths,
            settings.lr,
            list(settings.taus),
            "cross-entropy",
        )
        step = (wanted - weights[client]).norm()
        assert (result.weights[client] - wanted).norm() < 1e-6 * step
        assert result.taus[client] == tau
    booked = dict(zip(TRAFFIC_PHASES, federation.ledger.lap()[0], strict=True))
    assert booked["weights"] == 0
    assert booked["averages"] == 2 * len(STAR) * federation.network.layout.size * 8


@pytest.mark.parametrize("memory_limit", [None, 200_000])
def test_dense_blocks_give_the_same_update(memory_limit):
    check((6, 5, 3), RING, 1e-6, jacobian="dense", memory_limit=memory_limit)


@pytest.mark.parametrize("kind", ["dense", "inputs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("widths", [(6, 5, 3), (6, 5, 4, 3)])
def test_all_messages_give_the_update_of_the_factored_one(kind, dtype, widths):
    exact = dtype is torch.float64
    found = [
        one_round(widths, RING, dtype=dtype, tolerance=1e-12 if exact else 1e-6, jacobian=message)
        for message in (kind, "factored")
    ]
    weights, (other, factored) = found[0][1], (f[3].weights for f in found)
    distance = (other - factored).norm() / (factored - weights).norm()
    assert distance < (1e-10 if exact else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_and_entries_of_convolutions_give_one_update(dtype):
    def cnn():
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))

    exact = dtype is torch.float64
    network = ModuleNetwork(cnn, (1, 4, 4), 3, "cnn")
    found = [
        one_round(network, RING, dtype=dtype, tolerance=1e-12 if exact else 1e-6, jacobian=kind)
        for kind in ("inputs", "dense")
    ]
    weights, (inputs, dense) = found[0][1], (f[3].weights for f in found)
    distance = (inputs - dense).norm() / (dense - weights).norm()
    assert distance < (1e-10 if exact else 1e-5)


def test_linearised_selection_prefers_the_lowest_linearised_loss():
    """On a convex problem longer evolution always fits better, so the largest tau must win."""
    *_, result = one_round((6, 5, 3), RING, selection="linearised")
    assert result.taus == [40] * 4


def test_network_selection_avoids_steps_that_overshoot():
    federation, weights, settings, result = one_round((6, 5, 3), COMPLETE, lr=3.0, taus=(1, 40))
    expected, taus = expected_round(federation, weights, settings, COMPLETE)
    assert result.taus == taus
    assert 1 in taus, "the case must have clients for which the long evolution is worse"


def test_divergence_names_the_client():
    federation = make_federation((6, 5, 3), SIZES)
    weights = random_weights(federation)
    weights[2] = float("nan")
    method = NtkDfl(NtkDflSettings(taus=(5,)), federation)
    with (
        pytest.raises(SimulationError, match="not finite") as caught,
        Exchange(federation, Graph(4, np.array(sorted(RING)))) as exchange,
    ):
        method.round(weights, 3, exchange)
    assert {"client 1", "round 3"} <= set(caught.value.__notes__)


def test_settings_refuse_unsorted_taus():
    with pytest.raises(ValueError, match="ascending"):
        NtkDflSettings(taus=(10, 5))
