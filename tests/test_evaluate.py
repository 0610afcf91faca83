"""What is measured: the network's score, and a client's accuracy on labels like its own."""

import math

import numpy as np
import pytest
import torch

from mpi_ntkdfl import evaluate
from mpi_ntkdfl.evaluate import Evaluator, own_accuracy
from mpi_ntkdfl.metrics import METRICS
from mpi_ntkdfl.runtime.seeds import generator
from tests.conftest import make_federation, random_weights


def test_own_accuracy_weighs_classes_by_the_clients_shares():
    # Right on 1/2, 3/4 and 0/5 of the classes; the client has 6, 2 and 0 samples of them.
    found = own_accuracy(np.array([1, 3, 0]), np.array([2, 4, 5]), np.array([6, 2, 0]))
    assert found == pytest.approx((6 * 1 / 2 + 2 * 3 / 4) / 8)


def test_own_accuracy_leaves_out_classes_without_test_samples():
    right, present = np.array([1, 0, 0]), np.array([2, 0, 5])
    assert own_accuracy(right, present, np.array([3, 9, 3])) == pytest.approx((1 / 2 + 0) / 2)
    assert math.isnan(own_accuracy(right, present, np.array([0, 4, 0])))


def test_a_client_with_the_test_sets_distribution_is_as_accurate_on_its_own():
    rng = np.random.default_rng(0)
    present = rng.integers(1, 9, 10)
    right = rng.integers(0, present + 1)
    assert own_accuracy(right, present, 3 * present) == pytest.approx(right.sum() / present.sum())


@pytest.mark.parametrize("loss", ["cross-entropy", "squared"])
@pytest.mark.parametrize("samples", [1, 8, 1000])
def test_a_gpu_sums_the_gradients_of_many_clients_at_once(monkeypatch, loss, samples):
    """Clients count alike, however many samples they have; groups are cut anywhere."""
    federation = make_federation((6, 5, 3), (5, 3, 8, 4))
    weights, inputs = random_weights(federation), torch.ones(2, 6, dtype=torch.float64)
    evaluator = Evaluator(federation, inputs, torch.tensor([0, 1]), loss)
    expected = evaluator(weights, clients=False)["gradient-norm"]
    monkeypatch.setattr(evaluate, "on_gpu", lambda device: True)
    monkeypatch.setattr(evaluate, "_GPU_SAMPLES", samples)
    assert evaluator(weights, clients=False)["gradient-norm"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("clients", "sample"), [(True, None), (True, 12), (True, 99), (False, 12)])
def test_every_client_is_judged_sample_by_sample(clients, sample):
    """The average always on all samples."""
    federation = make_federation((6, 5, 3), (5, 3, 8, 4))
    weights = random_weights(federation)
    rng = np.random.default_rng(1)
    inputs = torch.from_numpy(rng.standard_normal((40, 6)))
    labels = torch.from_numpy(rng.integers(2, size=40))  # class 2 is missing
    evaluator = Evaluator(federation, inputs, labels, "cross-entropy", None, sample, 5)
    found = evaluator(weights, clients, 3)
    hits = federation.network.outputs(weights.mean(0), inputs).argmax(1) == labels
    assert found["accuracy"] == float(hits.double().mean())
    if sample == 12:
        order = np.sort(generator(5, "tests of clients", 3).choice(40, 12, replace=False))
        inputs, labels = inputs[order], labels[order]
        other = evaluator(weights, clients, 4)
        assert other["accuracy"] == found["accuracy"]
    assert ("accuracy-error" in found) == (clients and sample is not None)
    if not clients:
        assert not any(METRICS[name].of_clients for name in found)
        return
    for client, row in enumerate(weights):
        hits = federation.network.outputs(row, inputs).argmax(1) == labels
        accuracy = float(hits.double().mean())
        assert found["client-accuracy"][client] == accuracy
        if sample is not None:
            spread = hits.double().var() / len(labels) * (1 - len(labels) / 40)
            assert found["accuracy-error"][client] == pytest.approx(float(spread.sqrt()))
        own = [c for c in federation.samples[client].labels.tolist() if c < 2]
        # Each of the client's own samples stands for a random test sample of its class.
        expected = np.mean([float(hits[labels == c].double().mean()) for c in own])
        assert found["own-accuracy"][client] == pytest.approx(expected)
