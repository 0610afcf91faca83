"""Average, then gradient descent: against autograd, and by hand on four clients."""

import numpy as np
import pytest
import torch

from mpi_ntkdfl.algorithms.average_gd import AverageGd, AverageGdSettings
from mpi_ntkdfl.comm.ledger import TRAFFIC_PHASES
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.model.mlp import MLP
from mpi_ntkdfl.runtime.errors import SimulationError
from mpi_ntkdfl.topology.graphs import Graph
from tests import oracle
from tests.conftest import make_federation, random_weights

SIZES = (5, 3, 8, 4)
EDGES = [(0, 1), (0, 2), (1, 2)]
CLOSED = [[0, 1, 2], [0, 1, 2], [0, 1, 2], [3]]


def descended(params, inputs, labels, widths, lr, steps, loss):
    """Gradient descent by autograd, one step after another; the weights after each."""
    targets, found = torch.eye(widths[-1], dtype=params.dtype)[labels], []
    for _ in range(steps):
        point = params.detach().clone().requires_grad_()
        outputs = oracle.network(point, inputs, widths)
        if loss == "cross-entropy":
            value = -(torch.log_softmax(outputs, 1) * targets).sum(1).mean()
        else:
            value = 0.5 * ((outputs - targets) ** 2).sum(1).mean()
        params = params - lr * torch.autograd.grad(value, point)[0]
        found.append(params)
    return found


@pytest.mark.parametrize("loss", ["cross-entropy", "squared"])
@pytest.mark.parametrize("widths", [(6, 3), (6, 5, 3), (6, 5, 4, 3)])
@pytest.mark.parametrize("samples", [7, 30])  # through the Gram matrix, and past it
def test_descent_equals_autograd(loss, widths, samples):
    rng = np.random.default_rng(0)
    inputs = torch.from_numpy(rng.standard_normal((samples, 6)))
    labels = torch.from_numpy(rng.integers(3, size=samples))
    params = torch.from_numpy(MLP(widths).initial(rng))
    found = MLP(widths).descend(params, inputs, labels, 0.05, (1, 10, 60), loss)
    wanted = descended(params, inputs, labels, widths, 0.05, 60, loss)
    for row, tau in zip(found, (1, 10, 60), strict=True):
        torch.testing.assert_close(row, wanted[tau - 1], rtol=1e-10, atol=1e-12)


def one_round(number=0, memory_limit=None, dtype=torch.float64, **settings):
    federation = make_federation((6, 5, 3), SIZES, dtype, memory_limit)
    weights = random_weights(federation)
    chosen = {"taus": (5, 40), "lr": 0.05} | settings
    method = AverageGd(AverageGdSettings().model_copy(update=chosen), federation)
    with Exchange(federation, Graph.from_pairs(4, EDGES)) as exchange:
        return federation, weights, method.settings, method.round(weights, number, exchange)


@pytest.mark.parametrize("data", ["own", "neighbourhood"])
@pytest.mark.parametrize(("lr", "taus"), [(0.05, (5, 40)), (10.0, (1, 2))])
def test_round_by_hand(data, lr, taus):
    federation, weights, settings, result = one_round(number=2, data=data, lr=lr, taus=taus)
    chosen = []
    for client in range(4):
        sources = CLOSED[client] if data == "neighbourhood" else [client]
        inputs = torch.cat([federation.samples[j].inputs for j in sources])
        labels = torch.cat([federation.samples[j].labels for j in sources])
        start = sum(weights[j] for j in CLOSED[client]) / len(CLOSED[client])
        rate = lr * np.exp(-2 * settings.lr_decay)
        path = descended(start, inputs, labels, (6, 5, 3), rate, 40, "cross-entropy")
        losses = {
            tau: oracle.loss_of(
                oracle.network(path[tau - 1], inputs, (6, 5, 3)), labels, "cross-entropy"
            )
            for tau in taus
        }
        chosen.append(min(losses, key=losses.get))
        torch.testing.assert_close(
            result.weights[client], path[chosen[-1] - 1], rtol=1e-8, atol=1e-10
        )
    assert result.taus == chosen
    assert lr < 1 or 1 in chosen, "the case must have clients for which more steps are worse"


def test_own_data_stay_and_neighbours_data_are_booked():
    edges, rows = 6, 2 * (5 + 3 + 8)
    for data in ("own", "neighbourhood"):
        federation, *_ = one_round(data=data)
        busiest = federation.ledger.busiest
        booked = dict(zip(TRAFFIC_PHASES, federation.ledger.lap().tolist()[0], strict=True))
        params = federation.network.layout.size
        shared = data == "neighbourhood"
        assert booked.pop("weights") == edges * params * 8
        assert booked.pop("inputs") == (rows * 6 * 8 if shared else 0)
        assert booked.pop("labels") == (rows * 4 if shared else 0)
        assert not any(booked.values())
        # Client 2 sends its 8 samples to two neighbours, which send their 5 and 3.
        samples = (2 * 8 + 5 + 3) * (6 * 8 + 4) if shared else 0
        assert busiest == 2 * 2 * params * 8 + samples


def test_small_waves_give_the_same_bits():
    found = [
        one_round(data="neighbourhood", memory_limit=limit, dtype=torch.float32)[3].weights
        for limit in (None, 1)
    ]
    assert torch.equal(*found)


def test_divergence_says_the_way_out():
    with pytest.raises(SimulationError, match=r"non-finite.*; lower algorithm\.lr") as caught:
        one_round(lr=1e200, loss="squared")
    assert {"client 0", "round 0"} <= set(caught.value.__notes__)
