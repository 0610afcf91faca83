"""QG-DSGDm, OledFL, DFedADMM and K-GT by hand: four clients, three rounds, loops in float64."""

import math

import pytest
import torch

from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.comm.ledger import TRAFFIC_PHASES
from mpi_ntkdfl.federation.exchange import Exchange
from tests.conftest import make_federation, random_weights
from tests.test_aids import SIZES, STAR, WIDTHS, averages
from tests.test_local_training import batches, gradient

ROUNDS, BATCH, EPOCHS, LR, FACTOR = 3, 2, 2, 0.1, 0.9
GIVEN = {"batch": BATCH, "epochs": EPOCHS, "lr": LR, "lr_factor": FACTOR}
OWN = {
    "qg-dsgdm": {"global_momentum": 0.8},
    "oledfl": {"opposite": 0.7},
    "dfedadmm": {"lam": 0.6},
    "k-gt": {"step": 0.7},
}


def simulated(name, through_state=False):
    """Weights after each round of the package's method, and what it carries at the end."""
    federation, settings = (
        make_federation(WIDTHS, SIZES),
        METHODS[name].Settings(**GIVEN, **OWN[name]),
    )
    method, weights, after = METHODS[name](settings, federation), random_weights(federation), []
    with Exchange(federation, STAR) as exchange:
        for number in range(ROUNDS):
            weights = method.round(weights, number, exchange).weights
            after.append(weights)
            if through_state:
                state = {key: array.clone() for key, array in method.state().items()}
                method = METHODS[name](settings, federation)
                method.restore(state)
    return federation, after


def steps(federation, starts, number, extra):
    """Local steps of every client along gradient + `extra(client, weights)`."""
    trained, rate = [], LR * FACTOR**number
    for client, start in enumerate(starts):
        own, here = federation.samples[client], start.clone()
        for chosen in batches(client, len(own.labels), number, BATCH, EPOCHS):
            slope = gradient(here, own.inputs[chosen], own.labels[chosen], WIDTHS)
            here = here - rate * (slope + extra(client, here))
        trained.append(here)
    return torch.stack(trained)


def times(number):
    """Learning rate times local steps, `[client, 1]`."""
    counts = [EPOCHS * math.ceil(size / BATCH) for size in SIZES]
    return LR * FACTOR**number * torch.tensor(counts).double()[:, None]


def qg_dsgdm(federation, x, m, number):
    y = averages(steps(federation, x, number, lambda i, _: 0.8 * m[i]))
    return y, 0.8 * m + 0.2 * (x - y) / times(number)


def oledfl(federation, x, away, number):
    z = steps(federation, x + 0.7 * away, number, lambda *_: 0)
    return averages(z), averages(z) - z


def dfedadmm(federation, x, dual, number):
    z = steps(federation, x, number, lambda i, w: (w - x[i]) / 0.6 - dual[i])
    dual = dual - (z - x) / 0.6
    return averages(z - 0.6 * dual), dual


def k_gt(federation, x, c, number):
    z = steps(federation, x, number, lambda i, _: c[i])
    direction = (x - z) / times(number)
    return averages(x - 0.7 * times(number) * direction), c - direction + averages(direction)


HAND = {"qg-dsgdm": qg_dsgdm, "oledfl": oledfl, "dfedadmm": dfedadmm, "k-gt": k_gt}


@pytest.mark.parametrize("name", HAND)
def test_rounds_by_hand(name):
    federation, after = simulated(name)
    x = random_weights(federation)
    carried = torch.zeros_like(x)
    for number, found in enumerate(after):
        x, carried = HAND[name](federation, x, carried, number)
        torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", HAND)
def test_resuming_gives_the_same_bits(name):
    whole, resumed = (simulated(name, through)[1] for through in (False, True))
    assert all(torch.equal(*pair) for pair in zip(whole, resumed, strict=True))


@pytest.mark.parametrize("name", HAND)
def test_bytes(name):
    federation, _ = simulated(name)
    booked = dict(zip(TRAFFIC_PHASES, federation.ledger.lap()[0].tolist(), strict=True))
    vectors = 2 if name == "k-gt" else 1
    assert booked.pop("weights") == ROUNDS * vectors * 6 * federation.network.layout.size * 8
    assert not any(booked.values())
