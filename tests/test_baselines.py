"""One round of each baseline by hand: in-process exchange against plain loops in float64."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.algorithms.dispfl import Dispfl, DispflSettings
from mpi_ntkdfl.algorithms.masks import kept_entries
from mpi_ntkdfl.comm.ledger import TRAFFIC_PHASES
from mpi_ntkdfl.comm.reduce import exact_mean
from mpi_ntkdfl.comm.world import SoloWorld
from mpi_ntkdfl.federation.codecs import Quantize, QuantizeSettings
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.runtime import seeds
from mpi_ntkdfl.runtime.errors import InputError, SimulationError
from mpi_ntkdfl.topology.graphs import Graph
from tests.conftest import make_federation, random_weights
from tests.test_local_training import batches, gradient

WIDTHS, SIZES = (6, 5, 3), (5, 3, 8, 4)
PARAMS = 6 * 5 + 5 + 5 * 3 + 3
STAR = Graph(4, np.array([[0, 1], [0, 2], [0, 3]]))
CLOSED = ((0, 1, 2, 3), (0, 1), (0, 2), (0, 3))
FAST = {"batch": 2, "epochs": 3}
WEIGHTS = TRAFFIC_PHASES.index("weights")
AVERAGES = TRAFFIC_PHASES.index("averages")


def start(name, sizes=SIZES, **settings):
    federation = make_federation(WIDTHS, sizes)
    method = METHODS[name]
    made = method(method.Settings().model_copy(update={**FAST, **settings}), federation)
    return federation, made, random_weights(federation)


def one_round(name, number=0, **settings):
    federation, method, weights = start(name, **settings)
    with Exchange(federation, STAR, codings=method.codings) as exchange:
        result = method.round(weights, number, exchange)
    assert result.taus == [0] * 4
    return federation, weights, result.weights


def descended(federation, weights, number, lr, momentum=0.0, weight_decay=0.0, slope=None, mask=1):
    """Local steps of every client; `slope` may ask for the gradient elsewhere than at the point."""
    slope, rows = slope or (lambda gradient, point: gradient(point)), []
    for client, point in enumerate(weights * mask):
        own, velocity, here = federation.samples[client], torch.zeros_like(point), point.clone()
        kept = mask if isinstance(mask, int) else mask[client]
        for chosen in batches(client, len(own.labels), number, FAST["batch"], FAST["epochs"]):
            x, y = own.inputs[chosen], own.labels[chosen]
            g = slope(lambda at, x=x, y=y: gradient(at, x, y, WIDTHS), here)
            velocity = momentum * velocity + g + weight_decay * here
            here = (here - lr * velocity) * kept
        rows.append(here)
    return torch.stack(rows)


def averaged(rows, shares=(1, 1, 1, 1)):
    return torch.stack(
        [sum(shares[j] * rows[j] for j in c) / sum(shares[j] for j in c) for c in CLOSED]
    )


def assert_close(found, wanted, weights, tolerance=1e-12):
    assert (found - wanted).abs().max() < tolerance * (wanted - weights).abs().max()


@pytest.mark.parametrize(
    ("name", "lr", "momentum"), [("d-psgd", 0.1, 0), ("dfedavg", 0.1, 0), ("dfedavgm", 0.01, 0.9)]
)
@pytest.mark.parametrize("averaging", ["plain", "samples"])
def test_train_then_average(name, lr, momentum, averaging):
    federation, weights, found = one_round(name, 4, lr_factor=0.9, averaging=averaging)
    trained = descended(federation, weights, 4, lr * 0.9**4, momentum)
    wanted = averaged(trained, SIZES if averaging == "samples" else (1, 1, 1, 1))
    assert_close(found, wanted, weights)
    assert federation.ledger.lap()[0, WEIGHTS] == 6 * PARAMS * 8


@pytest.mark.parametrize("averaging", ["plain", "samples"])
def test_fedavg(averaging):
    federation, weights, found = one_round("fedavg", averaging=averaging)
    trained = descended(federation, weights, 0, 0.1)
    shares = torch.tensor(SIZES if averaging == "samples" else (1, 1, 1, 1)).double()
    assert_close(found, (shares @ trained / shares.sum()).expand(4, -1), weights)
    booked = federation.ledger.lap()[0]
    assert booked[WEIGHTS] == booked[AVERAGES] == 4 * PARAMS * 8


def test_local_sends_nothing():
    federation, weights, found = one_round("local")
    assert_close(found, descended(federation, weights, 0, 0.1), weights)
    assert not federation.ledger.lap().any()


@pytest.mark.parametrize("adaptive", [True, False])
def test_dfedsam(adaptive):
    federation, weights, found = one_round("dfedsam", 2, adaptive=adaptive, rho=0.3)

    def slope(gradient, point):
        g = gradient(point)
        size = point.abs() if adaptive else torch.ones_like(point)
        return gradient(point + 0.3 * size**2 * g / (size * g).norm())

    trained = descended(federation, weights, 2, 0.01 * 0.95**2, 0.99, 5e-4, slope)
    assert_close(found, averaged(trained), weights, 1e-10)
    plain = descended(federation, weights, 2, 0.01 * 0.95**2, 0.99, 5e-4)
    assert (trained - plain).abs().max() > 1e-3, "rho must matter for this test to see it"


def test_averaging_methods_have_no_state():
    trained = [name for name, method in METHODS.items() if "epochs" in method.Settings.model_fields]
    assert len(trained) >= 7
    for name in trained:
        if name not in ("dispfl", "qg-dsgdm", "oledfl", "dfedadmm", "k-gt"):
            assert start(name)[1].state() == {}, name


def test_divergence_is_told_apart():
    with pytest.raises(SimulationError, match="non-finite") as caught:
        one_round("dfedavg", 3, lr=1e300)
    assert caught.value.__notes__ == ["client 0", "round 3"]


# ------------------------------------------------------------------------------------ quantisation


def quantised(vector, levels):
    """What a receiver reads, and the bytes that were sent."""
    codec = Quantize(QuantizeSettings(levels=levels), len(vector), vector.dtype)
    message = codec.encode(vector, seeds.generator(0, "unused"), {})
    for name, (shape, dtype) in codec.format().items():
        assert (tuple(message[name].shape), message[name].dtype) == (shape, dtype)
    return codec.decode(message), codec.protocol_bytes(message)


@pytest.mark.parametrize("levels", [2, 16, 256])
def test_quantised_values_are_the_nearest_levels(levels):
    vector = torch.from_numpy(np.random.default_rng(0).standard_normal(500))
    found, _ = quantised(vector, levels)
    step = float(vector.max() - vector.min()) / (levels - 1)
    assert (found - vector).abs().max() <= step / 2 * (1 + 1e-12)
    assert len(found.unique()) <= levels
    for end in (vector.min(), vector.max()):
        assert (found - end).abs().min() < 1e-12


def test_constant_vectors_quantise_exactly():
    assert torch.equal(quantised(torch.full((5,), -2.5), 256)[0], torch.full((5,), -2.5).double())


def test_protocol_bytes_are_entropy_times_entries():
    # 64 entries: half at one end, a quarter in the middle, a quarter at the other end: 1.5 bits each.
    vector = torch.tensor([0.0] * 32 + [1.0] * 16 + [2.0] * 16)
    assert quantised(vector, 3)[1] == 64 * 1.5 / 8 + 2 * 4
    assert quantised(torch.zeros(64), 3)[1] == 2 * 4


@pytest.mark.parametrize("name", ["d-psgd", "dfedavg", "dfedavgm"])
def test_quantised_round_adds_the_average_of_rounded_changes(name):
    federation, weights, found = one_round(name, quantize=16)
    settings = METHODS[name].Settings()
    trained = descended(federation, weights, 0, settings.lr, settings.momentum)
    rounded, sent = [], 0
    for client, change in enumerate(trained - weights):
        low, step = change.min(), (change.max() - change.min()) / 15
        codes = ((change - low) / step).round()
        rounded.append(low + step * codes)
        shares = np.unique(codes, return_counts=True)[1] / PARAMS
        entropy = -sum(shares * np.log2(shares))
        sent += (3, 1, 1, 1)[client] * (math.ceil(entropy * PARAMS / 8) + 16)
    assert_close(found, weights + averaged(rounded), weights, 1e-10)
    assert federation.ledger.lap()[0, WEIGHTS] == sent


# ---------------------------------------------------------------------------------------- FedAvg mean


def test_weighted_mean_is_free_of_order():
    rng = np.random.default_rng(1)
    rows, shares = torch.from_numpy(rng.standard_normal((50, 7))), rng.integers(1, 99, 50)
    mean = exact_mean(SoloWorld(), rows, int(shares.sum()), shares.tolist())
    assert (mean - torch.from_numpy(shares @ rows.numpy() / shares.sum())).abs().max() < 1e-15
    order = rng.permutation(50)
    again = exact_mean(SoloWorld(), rows[order], int(shares.sum()), shares[order].tolist())
    assert torch.equal(mean, again)


# --------------------------------------------------------------------------------------------- DisPFL

SPARSE = {"dense_ratio": 0.6, "anneal_factor": 0.8, "anneal_rounds": 10}


def test_densities_follow_the_erdos_renyi_kernel():
    federation = make_federation((60, 40, 10), (2,))
    kept = kept_entries(federation.network.layout, 0.5)
    total = sum(federation.network.layout.sizes)
    # Of 400 output weights the kernel wants more than there are; the rest goes to the first layer.
    assert kept == {
        "fc1.weight": round(0.5 * total - 400 - 50),
        "fc1.bias": 40,
        "fc2.weight": 400,
        "fc2.bias": 10,
    }
    low = kept_entries(federation.network.layout, 0.1)
    room = 0.1 * total - 50
    assert low["fc1.weight"] == round(room * 100 / 150)
    assert low["fc2.weight"] == round(room * 50 / 150)


def test_a_ratio_below_the_biases_is_refused():
    layout = make_federation((6, 5, 3), (2,)).network.layout
    with pytest.raises(InputError, match="dense_ratio must leave every layer a weight"):
        kept_entries(layout, 0.1)


@pytest.mark.parametrize(("first_masks", "different"), [("shared", 1), ("own", 4)])
def test_first_masks_have_the_densities(first_masks, different):
    federation, method, _ = start("dispfl", **SPARSE, first_masks=first_masks)
    sizes, kept = federation.network.layout.sizes, method.kept
    for mask in method.masks:
        counts = [int(piece.sum()) for piece in torch.split(mask, list(sizes))]
        assert counts == list(kept.values())
    assert len({tuple(mask.tolist()) for mask in method.masks}) == different


@pytest.mark.parametrize("growth", ["random", "gradient"])
def test_dispfl_by_hand(growth):
    number = 4
    federation, method, weights = start("dispfl", **SPARSE, first_masks="own", growth=growth)
    masks = method.masks.clone()
    with Exchange(federation, STAR, codings=method.codings) as exchange:
        found = method.round(weights, number, exchange).weights
    lr = 0.1 * 0.998**number
    trained = descended(federation, weights, number, lr, 0, 5e-4, mask=masks.double())
    share = 0.8 / 2 * (1 + math.cos(math.pi * number / 10))
    wanted_masks = []
    for client, mask in enumerate(masks.tolist()):
        own = federation.samples[client]
        rng = seeds.generator(0, "regrowth", client, number)
        if growth == "random":
            wanted = rng.permutation(PARAMS)
        else:
            batch = rng.permutation(SIZES[client])[:2].copy()
            wanted = gradient(trained[client], own.inputs[batch], own.labels[batch], WIDTHS).abs()
        for first, last in ((0, 30), (35, 50)):
            kept = [p for p in range(first, last) if mask[p]]
            if len(kept) == last - first:
                continue
            change = math.ceil(share * len(kept))
            for p in sorted(kept, key=lambda p: abs(float(trained[client, p])))[:change]:
                mask[p] = False
            free = [p for p in range(first, last) if not mask[p]]
            for p in sorted(free, key=lambda p: -float(wanted[p]))[:change]:
                mask[p] = True
        wanted_masks.append(mask)
    assert method.masks.tolist() == wanted_masks
    assert method.masks.ne(masks).any(1).all(), "every client must change its mask"
    added = 0
    for client, closed in enumerate(CLOSED):
        for p in range(PARAMS):
            values = [float(trained[j, p]) for j in closed if masks[j, p]]
            if not wanted_masks[client][p]:
                values = []
            added += bool(values) and not masks[client, p]
            wanted = sum(values) / len(values) if values else 0.0
            assert math.isclose(found[client, p], wanted, rel_tol=1e-11, abs_tol=1e-14)
    assert added, "an added entry must come from a neighbour"
    entries = sum(method.kept.values())
    assert federation.ledger.lap()[0, WEIGHTS] == 6 * (entries * 8 + -(-PARAMS // 8))


def test_masks_are_all_dispfl_carries():
    """A fresh method given another's state goes on with the same bits."""
    federation, method, weights = start("dispfl", **SPARSE)
    with Exchange(federation, STAR, codings=method.codings) as exchange:
        weights = method.round(weights, 0, exchange).weights
        fresh = Dispfl(DispflSettings(**FAST, **SPARSE), federation)
        untold = fresh.round(weights, 1, exchange).weights
        fresh = Dispfl(DispflSettings(**FAST, **SPARSE), federation)
        fresh.restore({name: array.clone() for name, array in method.state().items()})
        again, wanted = (m.round(weights, 1, exchange).weights for m in (fresh, method))
    assert torch.equal(again, wanted)
    assert torch.equal(fresh.masks, method.masks)
    assert not torch.equal(untold, wanted)


def test_the_seed_reaches_masks_and_batches():
    federation, _, weights = start("dispfl")
    found = []
    for seed in (0, 1):
        seeded = dataclasses.replace(federation, seed=seed)
        method = Dispfl(DispflSettings(**FAST), seeded)
        with Exchange(seeded, STAR) as exchange:
            found.append(method.round(weights, 0, exchange).weights)
    assert not torch.equal(*found)
