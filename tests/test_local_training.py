"""Local training against plain autograd, one client and one batch at a time; and that bits stay put."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mpi_ntkdfl.algorithms.local_training import LocalTraining
from mpi_ntkdfl.comm.world import SoloWorld
from mpi_ntkdfl.model.mlp import compiled_training
from mpi_ntkdfl.model.training import Sgd, SgdRule
from mpi_ntkdfl.runtime import seeds
from mpi_ntkdfl.runtime.errors import SimulationError
from mpi_ntkdfl.topology.placement import Placement
from tests import oracle
from tests.conftest import make_federation, random_weights

SIZES = (5, 3, 8, 4, 9)
PLAIN = Sgd(0.1)
RULES = [PLAIN, Sgd(0.05, momentum=0.9), Sgd(0.1, weight_decay=0.1), Sgd(0.05, 0.8, 0.2)]


VERSIONS = [
    "tensor",
    pytest.param(
        "compiled",
        marks=pytest.mark.skipif(
            isinstance(compiled_training.find(), str), reason=str(compiled_training.find())
        ),
    ),
]


def batches(client, samples, number, batch, epochs, seed=0):
    """Orders as documented: permutations keyed by client and round, the last batch kept if small."""
    tiled = np.tile(np.arange(samples), (epochs, 1))
    for order in seeds.generator(seed, "batches", client, number).permuted(tiled, axis=1):
        yield from (order[i : i + batch].copy() for i in range(0, samples, batch))


def gradient(params, x, y, widths):
    point = params.detach().clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(oracle.network(point, x, widths), y)
    return torch.autograd.grad(loss, point)[0]


def by_torch(federation, weights, number, batch, epochs, sgd):
    """torch.optim.SGD, a client and a batch at a time."""
    rows = []
    for client, start in enumerate(weights):
        own, point = federation.samples[client], start.clone().requires_grad_()
        optimiser = torch.optim.SGD(
            [point], lr=sgd.lr, momentum=sgd.momentum, weight_decay=sgd.weight_decay
        )
        for chosen in batches(client, len(own.labels), number, batch, epochs):
            x, y = own.inputs[chosen], own.labels[chosen]
            point.grad = gradient(point, x, y, federation.network.widths)
            optimiser.step()
        rows.append(point.detach())
    return torch.stack(rows)


def error(found, wanted, start):
    """Largest error of an entry beside the largest change of one."""
    return float((found - wanted).abs().max() / (wanted - start).abs().max())


@pytest.mark.parametrize("sgd", RULES, ids=str)
@pytest.mark.parametrize("widths", [(20, 5, 3), (20, 3), (20, 6, 4, 3)], ids=str)
def test_both_forms_take_the_steps_of_torch(widths, sgd):
    federation = make_federation(widths, SIZES)
    weights = random_weights(federation)
    training = LocalTraining(federation, batch=2, epochs=6)
    assert any(group.dual for group in training.trainer._groups(dual=True)), (
        "the case must use both forms"
    )
    wanted = by_torch(federation, weights, 7, 2, 6, sgd)
    dual = training.descend(weights, 7, sgd)
    direct = training.follow(weights, 7, lambda _: SgdRule(sgd))
    assert error(dual, wanted, weights) < 1e-12
    assert error(direct, wanted, weights) < 1e-12
    assert not torch.equal(dual, direct), "two forms, not one"


@pytest.mark.parametrize("sgd", RULES, ids=str)
@pytest.mark.parametrize("epochs", [1, 10], ids=["direct", "dual"])
@pytest.mark.parametrize("widths", [(50, 16, 4), (50, 16, 21, 4), (50, 3)], ids=str)
def test_float32_stays_close_over_many_steps(widths, epochs, sgd):
    """In tensors, and compiled for every processor that this one can be, with the same bits."""
    sizes = (40, 37)
    single = make_federation(widths, sizes, torch.float32)
    weights = random_weights(single)
    double = make_federation(widths, sizes)
    for client, own in single.samples.items():
        double.samples[client].inputs.copy_(own.inputs)
    wanted = by_torch(double, weights.double(), 0, 8, epochs, sgd)
    tensors = LocalTraining(single, 8, epochs)
    several = [
        tensors.descend(weights, 0, sgd),
        tensors.follow(weights, 0, lambda _: SgdRule(sgd)),
    ]
    compiled = []
    for build in compiled_training.builds():
        training = LocalTraining(dataclasses.replace(single, training="compiled"), 8, epochs)
        training.trainer._build = build
        compiled.append(training.descend(weights, 0, sgd))
    for result in several + compiled:
        assert error(result.double(), wanted, weights.double()) < 1e-5
    for result in compiled[1:]:
        assert torch.equal(result, compiled[0])


def test_rounds_clients_and_seeds_have_their_own_batches():
    federation = make_federation((6, 4, 3), (8, 8))
    federation.samples[1].inputs.copy_(federation.samples[0].inputs)
    federation.samples[1].labels.copy_(federation.samples[0].labels)
    weights = random_weights(federation)[:1].repeat(2, 1)
    first, second = (LocalTraining(federation, 3, 2).descend(weights, k, PLAIN) for k in (0, 1))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)
    other = LocalTraining(dataclasses.replace(federation, seed=1), 3, 2)
    assert not torch.equal(other.descend(weights, 0, PLAIN), first)


@pytest.mark.parametrize("epochs", [1, 3], ids=["direct", "dual"])
@pytest.mark.parametrize("sgd", [PLAIN, Sgd(0.05, 0.9, 1e-3)], ids=["plain", "momentum, decay"])
@pytest.mark.parametrize("version", VERSIONS)
def test_bits_do_not_depend_on_who_shares_the_rank(version, epochs, sgd):
    """Clients alone, in groups of other sizes and in other places keep every bit."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(20, 60, size=21).tolist()
    made = make_federation((33, 21, 5), sizes, torch.float32)
    whole = dataclasses.replace(made, training=version)
    weights = random_weights(whole)

    def trained(ranks):
        rows = []
        for rank in range(ranks):
            world = SoloWorld()
            world.rank = rank
            part = dataclasses.replace(whole, world=world, placement=Placement(21, ranks))
            own = weights[part.owned.start : part.owned.stop]
            rows.append(LocalTraining(part, 25, epochs).descend(own, 2, sgd))
        return torch.cat(rows)

    together = trained(1)
    for ranks in (2, 3, 7, 21):
        assert torch.equal(trained(ranks), together), ranks


@pytest.mark.parametrize("version", VERSIONS)
def test_check_counts_the_gram_matrices_that_are_kept(version):
    made = make_federation((20, 5, 3), (5, 9, 60), torch.float32)
    federation = dataclasses.replace(made, training=version)
    training = LocalTraining(federation, 8, 5)
    training.descend(random_weights(federation), 0, PLAIN)
    kept = dict.fromkeys(federation.owned, 0)
    for group, grams in training.trainer._grams.items():
        for client, gram in zip(group.clients, grams, strict=False):
            kept[client] = gram.nbytes
    assert kept[2] == 0 < kept[0], "the case must use both forms"
    for client, own in federation.samples.items():
        found = federation.network.training_memory(len(own.labels), 8, 5)
        assert 4 * found == kept[client]


@pytest.mark.parametrize("version", VERSIONS)
def test_no_samples_no_steps(version):
    made = make_federation((6, 4, 3), (3, 0, 2), torch.float32)
    federation = dataclasses.replace(made, training=version)
    weights = random_weights(federation)
    trained = LocalTraining(federation, 2, 1).descend(weights, 0, PLAIN)
    assert torch.equal(trained[1], weights[1])
    assert not torch.equal(trained[2], weights[2])


@pytest.mark.parametrize("version", VERSIONS)
def test_divergence_names_client_round_and_way_out(version):
    made = make_federation((6, 4, 3), (3, 4, 2), torch.float32)
    federation = dataclasses.replace(made, training=version)
    weights = random_weights(federation)
    weights[1] = float("inf")
    with pytest.raises(SimulationError, match=r"non-finite.*lower algorithm\.lr") as caught:
        LocalTraining(federation, 2, 1).descend(weights, 5, PLAIN)
    assert caught.value.__notes__ == ["client 1", "round 5"]
