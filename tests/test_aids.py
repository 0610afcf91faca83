"""Momentum from round to round, calibration, repeated linearisation: against loops in float64."""

import dataclasses
import runpy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.algorithms.aids import RoundMomentum, calibration_shift
from mpi_ntkdfl.algorithms.local_training import LocalTraining
from mpi_ntkdfl.comm.staging import StagedStaging
from mpi_ntkdfl.config import parse
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.model.mlp import MLP
from mpi_ntkdfl.model.training import Sgd, SgdRule
from mpi_ntkdfl.presets import read_overrides, read_source
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.topology.graphs import Graph
from tests import oracle
from tests.conftest import make_federation, random_weights
from tests.pretend_gpu import GPU, FakeCopies, PretendGpu
from tests.test_gpu import moved
from tests.test_local_training import batches
from tests.test_networks import make

WIDTHS, SIZES = (6, 5, 3), (5, 3, 8, 4)
STAR = Graph.from_pairs(4, [(0, 1), (0, 2), (0, 3)])
CLOSED = ((0, 1, 2, 3), (0, 1), (0, 2), (0, 3))
TOGETHER = {"momentum": 0.5, "calibration": 0.8, "linearisations": 2}
TAUS, LR = (3, 12), 0.1


def rounds(federation, name, count=3, through_state=False, **settings):
    """Weights and taus after each round; `through_state` makes the method anew between rounds."""
    weights, kept = random_weights(federation).to(federation.device), []
    chosen = METHODS[name].Settings(**settings)
    method = METHODS[name](chosen, federation)
    with Exchange(federation, STAR) as exchange:
        for number in range(count):
            result = method.round(weights, number, exchange)
            weights = result.weights
            kept.append((weights, result.taus))
            if through_state:
                state = {key: array.clone() for key, array in method.state().items()}
                method = METHODS[name](chosen, federation)
                method.restore(state)
    return kept


def test_momentum_begins_in_the_first_round_that_a_client_takes_part_in():
    """An absent client keeps what the method carried for it; see `algorithms.absence`."""
    momentum = RoundMomentum(0.5, torch.zeros(2, 3), "last")
    first, second = torch.rand(2, 3), torch.rand(2, 3)
    before = momentum.state()["last"].clone()
    assert torch.equal(momentum.point(first), first)
    after = momentum.state()["last"].clone()
    after[1] = before[1]  # client 1 was absent
    momentum.restore({"last": after})
    point = momentum.point(second)
    assert torch.equal(point[0], second[0] + 0.5 * (second[0] - first[0]))
    assert torch.equal(point[1], second[1])


def averages(weights):
    return torch.stack([weights[list(closed)].mean(0) for closed in CLOSED])


def stacked(federation, client):
    own = [federation.samples[j] for j in CLOSED[client]]
    return torch.cat([each.inputs for each in own]), torch.cat([each.labels for each in own])


@pytest.mark.parametrize(
    ("jacobian", "aids", "count"),
    [
        ("factored", {**TOGETHER, "linearisations": 3}, 2),
        *((jacobian, TOGETHER, 1) for jacobian in ("inputs", "dense")),
    ],
)
def test_ntk_dfl_equals_the_oracle(aids, jacobian, count):
    federation = make_federation(WIDTHS, SIZES)
    given = {"taus": TAUS, "lr": LR, "tolerance": 1e-12, "jacobian": jacobian, **aids}
    found = rounds(federation, "ntk-dfl", count, **given)
    weights, last = random_weights(federation), None
    network = [partial(f, widths=WIDTHS) for f in (oracle.network, oracle.jacobian)]
    for number, (new, taus) in enumerate(found):
        a = averages(weights)
        point = a if last is None else a + aids.get("momentum", 0) * (a - last)
        last, rate, expected = a, LR * np.exp(-0.07 * number), []
        for client in range(4):
            steps = oracle.step_of(
                *network,
                point[client],
                *stacked(federation, client),
                rate,
                list(TAUS),
                "cross-entropy",
                aids.get("calibration", 0),
                aids.get("linearisations", 1),
                fineness=40,
            )
            expected.append(steps)
            distance = (new[client] - steps[0]).norm() / (steps[0] - point[client]).norm()
            assert distance < 1e-9, (number, client)
        assert taus == [tau for _, tau in expected]
        weights = new


@pytest.mark.parametrize("nesterov", [0.0, 0.6])
def test_spark_style_equals_the_oracle(nesterov):
    """Soft labels from the second round on, and momentum over the steps; exact Jacobians."""
    federation = make_federation(WIDTHS, SIZES)
    given = {"taus": TAUS, "lr": LR, "tolerance": 1e-12, "jacobian": "factored"}
    given |= {"nesterov": nesterov, "soft_share": 0.8, "soft_from": 1, "soft_rounds": 2}
    found = rounds(federation, "spark-style", 3, **given)
    again = rounds(federation, "spark-style", 3, through_state=True, **given)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(found, again, strict=True))
    weights, velocity = random_weights(federation), torch.zeros(4, federation.network.layout.size)
    network = [partial(f, widths=WIDTHS) for f in (oracle.network, oracle.jacobian)]
    for number, (new, taus) in enumerate(found if nesterov else found[:2]):
        a, rate = averages(weights), LR * np.exp(-0.07 * number)
        how = {"fineness": 40, "soft": ((0.0, 0.4, 0.8)[number], 2.0)}
        steps = [
            oracle.step_of(
                *network, a[c], *stacked(federation, c), rate, [*TAUS], "cross-entropy", **how
            )
            for c in range(4)
        ]
        moved = torch.stack([w for w, _ in steps])
        velocity = nesterov * velocity + moved - a
        torch.testing.assert_close(new, moved + nesterov * velocity, rtol=1e-9, atol=1e-11)
        assert taus == [tau for _, tau in steps]
        weights = new


def test_a_linearisation_that_does_not_lower_the_loss_is_left_out():
    federation = make_federation(WIDTHS, SIZES)
    ((once, first),) = rounds(federation, "ntk-dfl", 1, taus=(1,), lr=30.0)
    ((often, all_taus),) = rounds(federation, "ntk-dfl", 1, taus=(1,), lr=30.0, linearisations=9)
    kept = [tau == 1 for tau in all_taus]
    assert first == [1] * 4
    assert any(kept), "the case must have clients whose second step is worse"
    assert all(torch.equal(a, b) == same for a, b, same in zip(once, often, kept, strict=True))


@pytest.mark.parametrize("aids", [{"momentum": 0.7}, {"calibration": 1.0}, TOGETHER], ids=len)
@pytest.mark.parametrize("data", ["own", "neighbourhood"])
def test_average_gd_equals_loops(aids, data):
    aids = {key: value for key, value in aids.items() if key != "linearisations"}
    federation = make_federation(WIDTHS, SIZES)
    found = rounds(federation, "average-gd", 2, taus=(7,), lr=LR, data=data, **aids)
    weights, last = random_weights(federation), None
    for number, (new, _) in enumerate(found):
        a = averages(weights)
        point = a if last is None else a + aids.get("momentum", 0) * (a - last)
        last, rate = a, LR * np.exp(-0.07 * number)
        for client, own in federation.samples.items():
            near = (own.inputs, own.labels) if data == "own" else stacked(federation, client)
            here = point[client]
            for _ in range(7):
                here = here - rate * gradient(here, *near, near[1], aids.get("calibration", 0))
            torch.testing.assert_close(new[client], here, rtol=1e-9, atol=1e-12)
        weights = new


def gradient(point, x, labels, counted, calibration):
    """Gradient of the cross-entropy with outputs shifted by the shares of labels `counted`."""
    shares = (torch.bincount(counted, minlength=3) + 1).double() / (len(counted) + 3)
    point = point.detach().clone().requires_grad_()
    outputs = oracle.network(point, x, WIDTHS) + calibration * shares.log()
    return torch.autograd.grad(cross_entropy(outputs, labels), point)[0]


@pytest.mark.parametrize("name", ["dfedavg", "dfedavgm"])
def test_local_training_with_both_aids_equals_loops(name):
    federation = make_federation(WIDTHS, SIZES)
    given = {"batch": 2, "epochs": 3, "lr": 0.1, "round_momentum": 0.6, "calibration": 0.9}
    found = rounds(federation, name, 2, **given)
    weights, last = random_weights(federation), None
    momentum = METHODS[name].Settings().momentum
    for number, (new, _) in enumerate(found):
        start = weights if last is None else weights + 0.6 * (weights - last)
        last, trained = weights, []
        for client, own in federation.samples.items():
            here, velocity = start[client], torch.zeros_like(start[client])
            for chosen in batches(client, len(own.labels), number, 2, 3):
                batch = own.inputs[chosen], own.labels[chosen]
                velocity = momentum * velocity + gradient(here, *batch, own.labels, 0.9)
                here = here - 0.1 * velocity
            trained.append(here)
        torch.testing.assert_close(new, averages(torch.stack(trained)), rtol=1e-9, atol=1e-12)
        weights = new


def test_both_forms_of_local_training_and_a_module_shift_alike():
    """The dual form is for few samples; a module trains by autograd, alone or together."""
    network, _ = make("tied")
    for tested in (MLP((40, 5, 3)), network):
        federation = make_federation(tested, SIZES)
        weights, outputs = random_weights(federation), []
        for way in ("descend", "follow"):
            training = LocalTraining(federation, 3, 4, calibration=1.0)
            if way == "descend":
                outputs.append(training.descend(weights, 0, Sgd(0.1)))
            else:
                outputs.append(training.follow(weights, 0, lambda _: SgdRule(Sgd(0.1))))
        torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-12)
        plain = LocalTraining(federation, 3, 4).descend(weights, 0, Sgd(0.1))
        assert (plain - outputs[0]).norm() > 1e-3


def test_shares_count_one_sample_more_per_class():
    shift = calibration_shift(torch.tensor([2, 2, 0]), 3, 0.5, torch.float64)
    torch.testing.assert_close(shift, 0.5 * torch.tensor([2 / 6, 1 / 6, 3 / 6]).double().log())
    assert calibration_shift(torch.tensor([2]), 3, 0.0, torch.float64) is None


STATEFUL = {
    "ntk-dfl": {"taus": TAUS, **TOGETHER},
    "average-gd": {"taus": TAUS, "momentum": 0.5},
    "dfedavg": {"epochs": 2, "round_momentum": 0.5, "quantize": 16},
}


@pytest.mark.parametrize("name", STATEFUL)
def test_resuming_gives_the_same_bits(name):
    whole, resumed = (
        rounds(make_federation(WIDTHS, SIZES), name, through_state=through, **STATEFUL[name])
        for through in (False, True)
    )
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(whole, resumed, strict=True))


def test_clients_evolve_together_and_on_a_device():
    given = {"taus": TAUS, "tolerance": 1e-7, **TOGETHER}
    alone = dataclasses.replace(make_federation(WIDTHS, SIZES), evolution="tensor")
    batched = dataclasses.replace(alone, batch=3)
    one, many = (rounds(each, "ntk-dfl", 2, **given) for each in (alone, batched))
    for (weights, taus), (expected, chosen) in zip(many, one, strict=True):
        assert taus == chosen
        torch.testing.assert_close(weights, expected, rtol=1e-7, atol=1e-9)
    with PretendGpu():
        there = moved(batched, GPU, StagedStaging(GPU, FakeCopies()))
        on_device = rounds(there, "ntk-dfl", 2, **given)
        assert all(torch.equal(a.cpu(), b) for (a, _), (b, _) in zip(on_device, many, strict=True))


def test_settings_are_recorded_and_calibration_needs_its_loss():
    given = parse([*read_source("quickstart"), read_overrides(["algorithm.momentum=0.5"])])
    assert "momentum: 0.5" in given.to_yaml()
    assert "calibration: 0.0" in given.to_yaml()
    bad = ["algorithm.calibration=1", "algorithm.loss=squared"]
    with pytest.raises(
        InputError, match=r"calibration needs loss=cross-entropy, got calibration 1"
    ):
        parse([*read_source("quickstart"), read_overrides(bad)])


def test_descent_on_the_linearised_network_is_that_of_autograd(monkeypatch):
    """The control `benchmarks/linearised.py` against gradient descent on the tangent of the network."""
    monkeypatch.setattr("mpi_ntkdfl.register_method", lambda method: None)
    path = Path(__file__).parents[1] / "benchmarks" / "linearised.py"
    control = runpy.run_path(str(path))
    network, random = MLP((7, 9, 4)), np.random.default_rng(3)
    inputs, shift = (
        torch.from_numpy(random.normal(size=(30, 7))),
        torch.from_numpy(random.normal(size=4)),
    )
    w = torch.from_numpy(random.normal(size=network.layout.size))
    labels = torch.from_numpy(random.integers(0, 4, 30))
    arguments = (inputs, labels, 0.05, (3, 20), "cross-entropy", shift)
    steps = control["descend"](network, w, *arguments)

    def outputs(v):
        (w1, b1), (w2, b2) = network.weights_and_biases(v)
        return torch.relu(inputs @ w1.T + b1) @ w2.T + b2

    def loss(moved):
        start, tangent = torch.func.jvp(outputs, (w,), (moved - w,))
        return cross_entropy(start + tangent + shift, labels)

    expected = [w]
    for _ in range(20):
        expected.append(expected[-1] - 0.05 * torch.func.grad(loss)(expected[-1]))
    assert torch.allclose(steps, torch.stack([expected[3], expected[20]]), atol=1e-12, rtol=0)
