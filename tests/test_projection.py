"""Projected Jacobians: the matrices, their errors, and a round by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from mpi_ntkdfl.algorithms.ntk_dfl import NtkDfl, NtkDflSettings
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.model.mlp import MLP
from mpi_ntkdfl.model.module import ModuleNetwork
from mpi_ntkdfl.model.params import Layout
from mpi_ntkdfl.model.projection import Projection, layers
from mpi_ntkdfl.topology.graphs import Graph
from tests import oracle
from tests.conftest import make_federation, random_weights

WIDTHS = (6, 5, 3)
LIKE = torch.empty(0, dtype=torch.float64)


def cnn():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


def whole(projection, size):
    """The matrix `[param, column]` that projects all layers."""
    matrix = torch.zeros(size, projection.columns, dtype=torch.float64)
    for part in projection.parts:
        block = torch.eye(part.size, dtype=torch.float64)
        if part.projected:
            (block,) = projection.rows(part, [part.size])
        matrix[part.start : part.stop, part.columns] = block
    return matrix


@pytest.mark.parametrize(
    "network", [MLP((6, 5, 4, 3)), ModuleNetwork(cnn, (1, 4, 4), 3, "cnn", room=200)]
)
def test_entries_and_lifts_are_products_with_one_matrix(network, monkeypatch):
    monkeypatch.setattr("mpi_ntkdfl.model.projection._BLOCK", 60)
    rng = np.random.default_rng(0)
    params = torch.from_numpy(network.initial(rng))
    inputs = torch.from_numpy(rng.standard_normal((4, *network.shape)))
    jacobian, entries = network.jacobian(params, inputs), []
    for room in (0, 2**20):
        projection = Projection(network.layout, 22, 5, 2, LIKE, room)
        assert {part.projected for part in projection.parts} == {True, False}
        matrix = whole(projection, network.layout.size)
        entries.append(jacobian.projected(projection))
        torch.testing.assert_close(entries[-1], jacobian.dense() @ matrix)
        lifted = projection.lift(entries[-1][0])
        torch.testing.assert_close(lifted, entries[-1][0] @ matrix.T)
    torch.testing.assert_close(*entries)


def test_matrices_belong_to_seed_round_and_layer():
    layout = Layout({"a.weight": (9, 4), "a.bias": (9,), "b": (40,)})
    assert layers(layout) == [(0, 45), (45, 85)]

    def drawn(seed, number):
        projection = Projection(layout, 30, seed, number, LIKE, 0)
        return [next(projection.rows(part, [40])) for part in projection.parts]

    one = drawn(0, 0)
    assert all(torch.equal(a, b) for a, b in zip(one, drawn(0, 0), strict=True))
    for other in (drawn(0, 1)[0], drawn(1, 0)[0], one[1]):
        assert abs(float((one[0] * other).sum())) < 0.2 * float(one[0].square().sum())
    assert float(one[0].square().mean()) == pytest.approx(1 / 30, rel=0.15)


def test_the_mean_over_rounds_is_exact_and_errors_are_as_documented():
    network, rng = MLP((20, 8, 3)), np.random.default_rng(1)
    params = torch.from_numpy(network.initial(rng))
    jacobian = network.jacobian(params, torch.from_numpy(rng.standard_normal((5, 20))))
    dense, k, draws = jacobian.dense()[:, :, :168], 64, 200
    u, v = dense[0, 0], dense[1, 0]
    products, lifts = [], []
    for number in range(draws):
        projection = Projection(network.layout, k, 0, number, LIKE, 0)
        entries = jacobian.projected(projection)[:, 0, :k]
        products.append(float(entries[0] @ entries[1]))
        rows = torch.zeros(1, projection.columns, dtype=torch.float64)
        rows[0, :k] = entries[0]
        lifts.append(projection.lift(rows)[0, :168])
    deviation = float(((u @ u) * (v @ v) + (u @ v) ** 2).div(k).sqrt())
    assert np.std(products) == pytest.approx(deviation, rel=0.15)
    assert abs(np.mean(products) - float(u @ v)) < 4 * deviation / draws**0.5
    growth = torch.stack(lifts).norm(dim=1).square().mean() / u.norm().square()
    assert float(growth) == pytest.approx(1 + 169 / k, rel=0.1)


@pytest.mark.parametrize("update", ["own", "lifted"])
@pytest.mark.parametrize("limit", [None, 60_000])
def test_a_round_by_hand(update, limit):
    edges, sizes, taus, lr = [(0, 1), (1, 2)], (5, 3, 4), [5, 40], 0.05
    federation = make_federation(WIDTHS, sizes, memory_limit=limit)
    weights = random_weights(federation)
    settings = NtkDflSettings(
        taus=tuple(taus), lr=lr, tolerance=1e-9, averaging="none", lr_decay=0.0,
        jacobian="projected", projection=18, projected_update=update,
    )  # fmt: skip
    with Exchange(federation, Graph.from_pairs(3, edges)) as exchange:
        result = NtkDfl(settings, federation).round(weights, 4, exchange)
    layout, data = federation.network.layout, federation.samples
    matrix = whole(Projection(layout, 18, federation.seed, 4, LIKE, 0), layout.size)
    for client, closed in enumerate(([0, 1], [0, 1, 2], [1, 2])):
        w, x = weights[client], torch.cat([data[j].inputs for j in closed])
        labels = torch.cat([data[j].labels for j in closed])
        own = torch.cat([torch.full((sizes[j],), j == client) for j in closed])
        j, y = oracle.jacobian(w, x, WIDTHS), torch.eye(3, dtype=x.dtype)[labels]
        start = oracle.network(w, x, WIDTHS)
        sums = oracle.left_sums(oracle.kernel(j @ matrix), start, y, lr, taus, "cross-entropy")
        best = None
        for tau in taus:
            step = torch.einsum("ncp,nc->p", j[own], sums[tau][own])
            if update == "lifted":
                step = step + matrix @ matrix.T @ torch.einsum(
                    "ncp,nc->p", j[~own], sums[tau][~own]
                )
            candidate = w - lr / len(x) * step
            outputs = oracle.network(candidate, data[client].inputs, WIDTHS)
            value = oracle.loss_of(outputs, data[client].labels, "cross-entropy")
            if best is None or value < best[0]:
                best = value, candidate, tau
        assert (result.weights[client] - best[1]).norm() < 1e-6 * (best[1] - w).norm()
        assert result.taus[client] == best[2]


def test_without_shortening_a_lifted_round_is_the_exact_one():
    rounds = []
    for settings in ({"projection": 35, "projected_update": "lifted"}, {"jacobian": "factored"}):
        federation = make_federation(WIDTHS, (5, 3, 4))
        weights = random_weights(federation)
        settings = {"jacobian": "projected", "selection": "linearised", **settings}
        method = NtkDfl(NtkDflSettings(taus=(30,), tolerance=1e-12, **settings), federation)
        with Exchange(federation, Graph.from_pairs(3, [(0, 1), (1, 2)])) as exchange:
            rounds.append(method.round(weights, 0, exchange).weights)
    assert (rounds[0] - rounds[1]).norm() < 1e-10 * (rounds[1] - weights).norm()


def test_several_linearisations_are_refused():
    with pytest.raises(
        ValueError, match="neighbours' inputs, which jacobian=projected does not send"
    ):
        NtkDflSettings(jacobian="projected", linearisations=2)
