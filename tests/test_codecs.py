"""Codecs by hand on small vectors, and the messages in which methods use them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.algorithms.absence import attended_round
from mpi_ntkdfl.algorithms.ntk_dfl import NtkDfl, NtkDflSettings
from mpi_ntkdfl.comm.ledger import TRAFFIC_PHASES
from mpi_ntkdfl.comm.messages import Field, MessageFormat
from mpi_ntkdfl.federation.codecs import CODECS, CodecChoice
from mpi_ntkdfl.federation.coding import make_codec
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.federation.jacobian_coding import JacobianCoding
from mpi_ntkdfl.runtime import seeds
from mpi_ntkdfl.topology.graphs import Graph
from mpi_ntkdfl.topology.present import among
from tests.conftest import make_federation, random_weights

WIDTHS, SIZES = (6, 5, 3), (5, 3, 8, 4)
PARAMS = 6 * 5 + 5 + 5 * 3 + 3
SHAPES = ((5, 6), (5,), (3, 5), (3,))
PATH = Graph.from_pairs(4, [(0, 1), (1, 2), (2, 3)])
SHIFTED = Graph.from_pairs(4, [(0, 1), (1, 3), (2, 3)])


def codec(name, shapes=SHAPES, dtype=torch.float32, **settings):
    made = CODECS[name].Settings(name=name, **settings)
    return make_codec(made, shapes, dtype)


def told(made, vector, key=0):
    """What a receiver reads, and the protocol bytes; the message is as `format` says."""
    message = made.encode(vector, seeds.generator(0, "test", key), {})
    for name, (shape, dtype) in made.format().items():
        assert (tuple(message[name].shape), message[name].dtype) == (shape, dtype)
    assert made.protocol_bytes(message) <= made.most_bytes()
    return made.decode(message), made.protocol_bytes(message)


def some(size=PARAMS, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(size)).float()


# ------------------------------------------------------------------------------------- by hand


def test_top_k_sends_the_largest_entries_and_their_places():
    vector = torch.tensor([0.5, -3.0, 0.0, 2.0, -1.0, 0.1, 0.2, 0.3, 0.4, -0.6])
    read, sent = told(codec("top-k", ((10,),), share=0.3), vector)
    assert read.tolist() == [0, -3, 0, 2, -1, 0, 0, 0, 0, 0]
    assert sent == 3 * 4 + 2  # 10 bits of a mask are shorter than 3 places of 4 bits
    assert codec("top-k", ((1000,),), share=0.01).most_bytes() == 10 * 4 + math.ceil(10 * 10 / 8)


def test_random_k_sends_other_places_for_other_keys():
    vector, made = some(), codec("random-k", share=0.25)
    read, sent = told(made, vector)
    kept = read.nonzero()[:, 0]
    assert len(kept) == round(0.25 * PARAMS) == sent / 4
    assert torch.equal(read[kept], vector[kept])
    assert not torch.equal(told(made, vector, key=1)[0], read)
    assert torch.equal(told(made, vector)[0], read)


@pytest.mark.parametrize(("name", "digits"), [("float16", 11), ("bfloat16", 8)])
def test_halves_round_every_entry(name, digits):
    vector = some() * torch.logspace(-3, 3, PARAMS)
    read, sent = told(codec(name), vector)
    assert sent == 2 * PARAMS
    assert ((read - vector).abs() <= vector.abs() * 2.0**-digits).all()
    assert not torch.equal(read, vector)
    large = torch.full((PARAMS,), 1e6)
    assert torch.isfinite(told(codec(name), large)[0]).all()


def test_stochastic_rounding_is_right_in_the_mean():
    vector = some(40)
    made = codec("quantize", ((40,),), levels=4, rounding="stochastic")
    reads = torch.stack([told(made, vector, key)[0] for key in range(300)])
    step = float(vector.max() - vector.min()) / 3
    assert ((reads - vector).abs() < step * (1 + 1e-6)).all()
    assert (reads.mean(0) - vector).abs().max() < 5 * step / 2 / math.sqrt(300)
    assert len(reads[:, 3].unique()) == 2


@pytest.mark.parametrize(
    ("scales", "count"), [("vector", 1), ("tensor", 4), ("row", 5 + 1 + 3 + 1)]
)
def test_every_scale_has_its_own_levels(scales, count):
    vector, made = some(), codec("quantize", levels=5, scales=scales)
    read, sent = told(made, vector)
    pieces = [vector]
    if scales != "vector":
        pieces = list(vector.split([30, 5, 15, 3]))
    if scales == "row":
        pieces = [*pieces[0].split(6), pieces[1], *pieces[2].split(5), pieces[3]]
    rounded = []
    for piece in pieces:
        low, step = piece.min(), (piece.max() - piece.min()) / 4
        rounded.append(low.double() + ((piece - low) / step).round().double() * step.double())
    assert (read - torch.cat(rounded)).abs().max() < 1e-12
    assert made.most_bytes() == math.ceil(PARAMS * 3 / 8) + 8 * count >= sent


def test_samples_are_coded_by_themselves():
    """A sample's codes do not depend on the samples beside it."""
    form = MessageFormat({"layer": Field("jacobians", (7,), torch.float32)})
    rows = some(5 * 7).view(5, 7)
    for name, keys in (("quantize", {"levels": 16}), ("top-k", {"share": 0.3}), ("float16", {})):
        coding = JacobianCoding(CODECS[name].Settings(name=name, **keys), seed=0)
        whole = coding.decode(form, coding.encode(form, (0, 1), {"layer": rows}))["layer"]
        single = codec(name, ((7,),), **keys)
        for row, read in zip(rows, whole, strict=True):
            assert torch.equal(read, told(single, row)[0].float())
        assert coding.form(form).by_phase(5, travelling=False) == {
            "jacobians": 5 * single.most_bytes()
        }


# ------------------------------------------------------------------------------- error feedback

TOP = {"name": "top-k", "share": 0.2, "error_feedback": True, "gamma": 0.75}
FORMS = {"memory": {**TOP, "memory": 0.5}, "choco": {**TOP, "error_feedback": "choco"}}


def start(name, choice, shared=True, **settings):
    federation = dataclasses.replace(make_federation(WIDTHS, SIZES), shared_start=shared)
    made = METHODS[name]
    given = made.Settings(**settings, codec=CodecChoice(**choice))
    weights = random_weights(federation)
    return federation, made(given, federation), weights


def booked(federation):
    """Protocol bytes by phase since the last call."""
    return dict(zip(TRAFFIC_PHASES, federation.ledger.lap().tolist()[0], strict=True))


def fed_back(trained, estimates, unsent, edges, form):
    """One round by loops: new weights, estimates, and what is remembered."""
    told, left = [], []
    for x, e, r in zip(trained, estimates, unsent, strict=True):
        x = x + 0.5 * r if form == "memory" else x
        difference, moved = x - e, e.clone()
        largest = sorted(range(PARAMS), key=lambda p: -abs(float(difference[p])))
        for p in largest[: round(0.2 * PARAMS)]:
            moved[p] += difference[p]
        told.append(moved)
        left.append(x - moved)
    new = []
    for i, x in enumerate(trained):
        others = [j for edge in edges for j in edge if i in edge and j != i]
        pull = sum((told[j] - told[i]) / (len(others) + 1) for j in others)
        new.append((x if form == "choco" else told[i]) + 0.75 * pull)
    return torch.stack(new), told, left


@pytest.mark.parametrize(("form", "shared"), [("memory", True), ("choco", True), ("choco", False)])
def test_error_feedback_by_hand_books_whole_estimates_for_new_neighbours(form, shared):
    choice = {"weights": FORMS[form]}
    federation, method, weights = start("dfedavg", choice, shared, batch=2, epochs=2)
    estimates, unsent = list(weights), list(torch.zeros_like(weights))
    coded = codec("top-k", dtype=torch.float64, share=0.2).most_bytes()
    whole, lacking = PARAMS * 8, [0 if shared else 6, 0, 4]
    for number, graph in enumerate((PATH, PATH, SHIFTED)):
        trained = method.train(weights, number)
        edges = graph.edges.tolist()
        wanted, estimates, unsent = fed_back(trained, estimates, unsent, edges, form)
        with Exchange(federation, graph, codings=method.codings) as exchange:
            weights = attended_round(method, weights, number, exchange).weights
        assert (weights - wanted).abs().max() < 1e-12
        # Of the 6 directed edges of the last round, those between 1 and 3 are new; 1 and 2 have parted.
        new = {0: lacking[0], 1: 0, 2: 2}[number]
        assert booked(federation)["weights"] == (6 - new) * coded + new * whole


def test_absent_clients_keep_their_estimates_and_lack_those_of_others():
    federation, method, weights = start("d-psgd", {"weights": TOP})
    with Exchange(federation, PATH, codings=method.codings) as exchange:
        weights = attended_round(method, weights, 0, exchange).weights
    booked(federation)
    kept = {name: array[1].clone() for name, array in method.whole_state().items()}
    federation.presence.present = np.array([True, False, True, True])
    with Exchange(
        federation, among(PATH, federation.presence.present), codings=method.codings
    ) as exchange:
        weights = attended_round(method, weights, 1, exchange).weights
    assert sorted(kept) == ["estimates", "held", "unsent"]
    for name, array in method.whole_state().items():
        assert torch.equal(array[1], kept[name]), name
    federation.presence.present = None
    coded = codec("top-k", dtype=torch.float64, share=0.2).most_bytes()
    assert booked(federation)["weights"] == 2 * coded
    with Exchange(federation, PATH, codings=method.codings) as exchange:
        attended_round(method, weights, 2, exchange)
    # Client 1 missed a message of 0 and one of 2; both still hold its own estimate.
    assert booked(federation)["weights"] == 4 * coded + 2 * PARAMS * 8


@pytest.mark.parametrize("name", ["d-psgd", "k-gt", "oledfl", "average-gd"])
def test_a_codec_that_loses_nothing_gives_the_plain_average(name):
    keys = {"taus": (3, 5)} if name == "average-gd" else {"batch": 2, "epochs": 1}
    everything = {"name": "top-k", "share": 1.0, "error_feedback": True}
    found = []
    for choice in ({}, {"weights": everything}):
        federation, method, weights = start(name, choice, **keys)
        for number in range(2):
            with Exchange(federation, PATH, codings=method.codings) as exchange:
                weights = attended_round(method, weights, number, exchange).weights
        found.append(weights)
    assert (found[0] - found[1]).abs().max() < 1e-11


def test_servers_read_coded_changes_and_answer_in_code():
    choice = {"weights": {"name": "float16"}, "averages": {"name": "bfloat16"}}
    federation, method, weights = start("fedavg", choice, batch=2, epochs=1)
    trained = method.train(weights, 0)
    with Exchange(federation, PATH, codings=method.codings) as exchange:
        found = attended_round(method, weights, 0, exchange).weights
    read = weights + (trained - weights).half().double()
    shares = torch.tensor(SIZES, dtype=torch.float64) / sum(SIZES)
    assert torch.equal(found[0], (shares @ read).bfloat16().double())
    traffic = booked(federation)
    assert traffic["weights"] == traffic["averages"] == 4 * 2 * PARAMS


# ------------------------------------------------------------------------------------ Jacobians


def hoods(choice, jacobian="factored", number=0):
    """The neighbourhoods of a round at the same weights, and the bytes booked."""
    federation = make_federation(WIDTHS, SIZES)
    method = NtkDfl(NtkDflSettings(jacobian=jacobian, codec=choice), federation)
    method.codings.begin(number)
    weights = random_weights(federation)
    with Exchange(federation, PATH, codings=method.codings) as exchange:
        found = []
        for hood in exchange.neighbourhoods(weights, jacobian, True, 1):
            found.append((hood.inputs, hood.labels, hood.kernel()))
            hood.transposed_product(torch.zeros(1, len(hood.labels), 3, dtype=torch.float64))
    return federation, found, booked(federation)


def test_neighbours_arrays_are_coded_and_the_own_stay_exact():
    federation, found, traffic = hoods(CodecChoice(jacobians={"name": "float16"}))
    own = [federation.samples[client].inputs for client in range(4)]
    wanted = torch.cat([own[0].half().double(), own[1], own[2].half().double()])
    assert torch.equal(found[1][0], wanted)
    rows = sum(SIZES[i] + SIZES[j] for i, j in PATH.edges.tolist())
    assert traffic["jacobians"] == rows * 2 * (6 + 5)
    _, exact, _ = hoods(None)
    for (_, _, coded), (_, _, kernel) in zip(found, exact, strict=True):
        assert 0 < (coded - kernel).norm() < 2e-3 * kernel.norm()


@pytest.mark.parametrize("jacobian", ["factored", "dense", "inputs"])
def test_a_subsample_is_drawn_per_round_and_booked_as_such(jacobian):
    choice = CodecChoice(jacobians={"name": "subsample", "share": 0.5})
    _, found, traffic = hoods(choice, jacobian)
    half = [math.ceil(0.5 * size) for size in SIZES]
    assert [len(labels) for _, labels, _ in found] == [
        5 + half[1], 3 + half[0] + half[2], 8 + half[1] + half[3], 4 + half[2]
    ]  # fmt: skip
    assert traffic["labels"] == 4 * sum(half[i] + half[j] for i, j in PATH.edges.tolist())
    _, later, _ = hoods(choice, jacobian, number=1)
    assert not torch.equal(found[1][0], later[1][0])
    # The draw is the sender's: both neighbours of a client receive the same samples.
    assert torch.equal(found[0][0][5:], found[2][0][: half[1]])


def test_neighbours_linearise_at_the_coded_average():
    """The Jacobians belong to the coded point, from which the exact average is moved."""
    choice = CodecChoice(averages={"name": "quantize", "levels": 4})
    federation, coded, traffic = hoods(choice)
    weights = random_weights(federation)
    low, step = (
        weights.min(1, keepdim=True)[0],
        (weights.max(1)[0] - weights.min(1)[0])[:, None] / 3,
    )
    rounded = low + ((weights - low) / step).round() * step
    exchange_at = make_federation(WIDTHS, SIZES)
    with Exchange(exchange_at, PATH) as exchange:
        wanted = [hood.kernel() for hood in exchange.neighbourhoods(rounded, "factored", True, 1)]
    for (_, _, kernel), plain in zip(coded, wanted, strict=True):
        assert (kernel - plain).norm() < 1e-10 * plain.norm()
    assert traffic["averages"] <= 6 * (math.ceil(PARAMS * 2 / 8) + 16)
