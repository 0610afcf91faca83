"""Kernels from some directions of the outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mpi_ntkdfl.algorithms.ntk_dfl import NtkDfl, NtkDflSettings
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.model.mlp import MLP
from mpi_ntkdfl.model.module import ModuleNetwork
from mpi_ntkdfl.ntk.kernel import estimated_kernel, orthonormal_directions, trace_kernel
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.topology.graphs import Graph
from tests.conftest import make_federation, random_weights
from tests.modules import perceptron


def network():
    return ModuleNetwork(lambda: perceptron(6, 5, 8), (6,), 8, "perceptron")


def settings(**more):
    return NtkDflSettings(lr=0.05, taus=(3, 20), tolerance=1e-9, jacobian="inputs", **more)


@pytest.mark.parametrize("number", [1, 3, 8])
def test_estimates_are_exact_for_all_outputs_and_right_on_average(number):
    found = network()
    params = torch.from_numpy(found.initial(np.random.default_rng(0)))
    operator = found.jacobian(params, torch.randn(5, 6, dtype=torch.float64))
    wanted, total = trace_kernel(operator, 8), torch.zeros(5, 5, dtype=torch.float64)
    draws = 1 if number == 8 else 400
    for seed in range(draws):
        directions = orthonormal_directions(np.random.default_rng(seed), number, 8)
        np.testing.assert_allclose(
            directions @ directions.T, 8 / number * np.eye(number), atol=1e-12
        )
        total += estimated_kernel(operator, torch.from_numpy(directions)) / draws
    assert (total - wanted).norm() < (1e-12 if number == 8 else 0.1) * wanted.norm()


def test_rounds_with_all_directions_are_those_without():
    federation = make_federation(network(), (4, 3, 5))
    weights, results = random_weights(federation), {}
    for number in (None, 8, 2):
        method = NtkDfl(settings(kernel_outputs=number), federation)
        with (
            Exchange(federation, Graph.from_pairs(3, [(0, 1)])) as exchange,
            torch.inference_mode(),
        ):
            results[number] = method.round(weights, 0, exchange).weights
    moved = (results[None] - weights).norm()
    assert (results[8] - results[None]).norm() < 1e-6 * moved
    assert 1e-3 * moved < (results[2] - results[None]).norm() < moved


@pytest.mark.parametrize(
    ("number", "model", "message"),
    [
        (9, network, "at most the number of classes, 8, got 9"),
        (2, lambda: MLP((6, 5, 8)), "without a fact"),
    ],
)
def test_directions_that_cannot_be_are_refused(number, model, message):
    with pytest.raises(InputError, match=message):
        NtkDfl.needs(settings(kernel_outputs=number), model(), torch.float32)
