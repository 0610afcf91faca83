"""Raw samples in messages: as bytes where they are bytes, and once per run on a static graph."""

import dataclasses

import numpy as np
import pytest
import torch

from mpi_ntkdfl.algorithms.ntk_dfl import NtkDfl, NtkDflSettings
from mpi_ntkdfl.assembly import prepare
from mpi_ntkdfl.comm.ledger import TRAFFIC_PHASES
from mpi_ntkdfl.config import parse
from mpi_ntkdfl.data.dataset import Scaling
from mpi_ntkdfl.federation.clients import ByteTable, Samples
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.federation.waves import WorkingSet, can_keep, moved_to_ranks
from mpi_ntkdfl.model.mlp import MLP
from mpi_ntkdfl.presets import read_overrides, read_source
from mpi_ntkdfl.topology.graphs import Graph
from mpi_ntkdfl.topology.placement import Placement
from tests.conftest import make_federation, needs_fashion, random_weights

SIZES = (5, 3, 8, 4)
GRAPH = Graph.from_pairs(4, [(0, 1), (0, 2), (1, 2), (2, 3)])
ROWS = 2 * 5 + 2 * 3 + 3 * 8 + 1 * 4
"""Each client's samples to each of its neighbours."""


def of_bytes(table):
    """A federation whose inputs come from bytes."""
    federation = make_federation((6, 5, 3), SIZES, torch.float32)
    rng, samples = np.random.default_rng(3), {}
    for client, own in federation.samples.items():
        stored = torch.from_numpy(rng.integers(0, 256, own.inputs.shape, dtype=np.uint8))
        samples[client] = Samples(table.inputs(stored), own.labels, stored)
    return dataclasses.replace(federation, samples=samples, table=table)


def booked(federation):
    """Protocol bytes by phase since the last call."""
    return dict(zip(TRAFFIC_PHASES, federation.ledger.lap().tolist()[0], strict=True))


@pytest.mark.parametrize("features", [1, 6])
def test_bytes_become_the_inputs_of_the_data_set(features):
    rng = np.random.default_rng(0)
    scaling = Scaling(255.0, rng.random(features), 0.1 + rng.random(features))
    every = np.arange(256, dtype=np.uint8)[:, None].repeat(6, axis=1)
    values = torch.from_numpy(scaling.apply(every))
    table = ByteTable(values[:, 0] if features == 1 else values)
    stored = rng.integers(0, 256, (9, 2, 3), dtype=np.uint8)
    wanted = scaling.apply(stored.reshape(9, 6)).reshape(9, 2, 3)
    assert torch.equal(table.inputs(torch.from_numpy(stored)), torch.from_numpy(wanted))


def test_bytes_give_the_bits_of_numbers_and_are_booked_as_bytes():
    federation = of_bytes(ByteTable(torch.linspace(-1, 2, 256)))
    weights, found = random_weights(federation), []
    for table, itemsize in ((federation.table, 1), (None, 4)):
        each = dataclasses.replace(federation, table=table)
        method = NtkDfl(NtkDflSettings(taus=(5, 20), jacobian="inputs"), each)
        with Exchange(each, GRAPH) as exchange:
            found.append(method.round(weights, 0, exchange).weights)
        traffic = booked(each)
        assert traffic["inputs"] == ROWS * 6 * itemsize
        assert traffic["labels"] == ROWS * 4
        # Nobody needs the averages: whoever asks computes the Jacobians itself.
        assert traffic["averages"] == traffic["jacobians"] == traffic["outputs"] == 0
    assert torch.equal(*found)


@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize(
    ("lasting", "resumed", "times"),
    [(True, False, [1, 0]), (True, True, [0, 0]), (False, False, [1, 1])],
)
def test_samples_travel_once_per_run_on_a_lasting_graph(lasting, resumed, times, limit):
    federation = make_federation((6, 5, 3), SIZES, memory_limit=limit)
    with Exchange(federation, GRAPH, lasting, resumed) as exchange:
        for number in times:
            gathered = {client: len(own.labels) for client, own in exchange.samples(taus=1)}
            assert gathered == {0: 16, 1: 16, 2: 20, 3: 12}
            assert booked(federation)["labels"] == number * ROWS * 4
        assert (exchange.kept is not None) == (lasting and limit is None)


def test_a_message_goes_to_a_rank_once():
    nbytes = np.array([1, 10, 100, 1000])
    sent, received = moved_to_ranks(GRAPH, Placement(4, 2), nbytes)
    assert (sent.tolist(), received.tolist()) == ([11, 100], [100, 11])
    work = WorkingSet(MLP((6, 5, 3)), taus=1, itemsize=4)
    sizes, one_client = np.array(SIZES), work.one_client(20)
    for room, fits in ((110, False), (111, True)):
        limit = one_client + room
        assert can_keep(GRAPH, Placement(4, 2), sizes, nbytes, work, limit) is fits


@needs_fashion
def test_the_papers_samples_take_at_most_160_kb_per_directed_edge():
    words = ["algorithm.jacobian=inputs"]
    plan = prepare(parse([*read_source("paper-fashion-mnist"), read_overrides(words)]), 2).plan
    phases = dict(zip(TRAFFIC_PHASES, plan.traffic[0].tolist(), strict=True))
    assert phases["inputs"] + phases["labels"] <= 160_000 * 300 * 5
    assert phases["jacobians"] == phases["outputs"] == 0
