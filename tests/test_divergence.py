"""Clients whose weights become non-finite: the run stops and says who, or goes on without their step."""

import dataclasses

import numpy as np
import pytest
import torch

from mpi_ntkdfl import simulation
from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.analysis import tables
from mpi_ntkdfl.comm.world import SoloWorld
from mpi_ntkdfl.config import parse
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.presets import read_source
from mpi_ntkdfl.runtime.errors import Diverged
from mpi_ntkdfl.storage.outputs import Outputs
from mpi_ntkdfl.topology.graphs import Graph
from tests.conftest import make_federation, random_weights

FAST = {"taus": [2, 5], "clients_per_round": 4, "epochs": 2, "batch": 3}
NEIGHBOURS = ("ntk-dfl", "spark-style")
"""Methods that take the step on the neighbours' samples by default."""
PATH = Graph.from_pairs(4, [(0, 1), (1, 2), (2, 3)])


def one_round(name, tolerant):
    """A round in which the data of client 2 are infinite; the weights before and after."""
    federation = make_federation((5, 4, 3), [3, 4, 5, 6])
    federation = dataclasses.replace(federation, on_divergence="continue" if tolerant else "stop")
    federation.samples[2].inputs[0, 0] = torch.inf
    known = METHODS[name].Settings.model_fields
    fast = {key: value for key, value in FAST.items() if key in known}
    method = METHODS[name](METHODS[name].Settings(**fast), federation)
    before = random_weights(federation)
    if name == "ntk-fl":  # one model
        before = before[:1].repeat(4, 1)
    with Exchange(federation, PATH) as exchange:
        return federation, before, method.round(before, 3, exchange)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_stops_at_the_client_and_round(name):
    with pytest.raises(Diverged, match=r"non-finite.*on_divergence=continue|evolution") as caught:
        one_round(name, tolerant=False)
    # The first client that the infinite sample reaches: a neighbour's, or its own.
    client = {"ntk-fl": []}.get(name, ["client 1" if name in NEIGHBOURS else "client 2"])
    assert list(dict.fromkeys(caught.value.__notes__)) == [*client, "round 3"]


@pytest.mark.parametrize("name", METHODS)
def test_a_run_goes_on_without_the_clients_step(name, caplog):
    federation, before, after = one_round(name, tolerant=True)
    assert torch.isfinite(after.weights).all()
    assert "no step is taken" in caplog.text
    assert "round 3" in caplog.text
    with Exchange(federation, PATH) as exchange:
        averages = exchange.average(before)
    if name == "ntk-dfl":
        # Clients 1, 2, 3 see the sample; they keep the averages.
        assert torch.equal(after.weights[1:], averages[1:])
        assert (after.taus[0] > 0, after.taus[1:]) == (True, [0, 0, 0])
        assert not torch.equal(after.weights[0], averages[0])
    if name == "average-gd":
        assert torch.equal(after.weights[2], averages[2])
        assert (after.taus[2], min(after.taus[0], after.taus[1], after.taus[3]) > 0) == (0, True)
    if name == "ntk-fl":
        assert torch.equal(after.weights, before)
        assert after.taus == [0] * 4


@pytest.mark.parametrize("on_divergence", ["stop", "continue"])
@pytest.mark.parametrize("clients", [True, False])
def test_losses_that_overflow_while_weights_are_finite(tmp_path, on_divergence, clients):
    """The method sees nothing; the row is recorded, and only `continue` goes on."""
    changes = {
        "clients": 4,
        "rounds": 2,
        "partition": {"samples": 40},
        "topology": {"kind": "ring"},
        "algorithm": {"name": "d-psgd", "lr": 1e20, "batch": 1000},
        "evaluation": {"clients": clients},
        "on_divergence": on_divergence,
    }
    config = parse([*read_source("quickstart"), changes])
    outputs = Outputs(tmp_path / "run.h5")
    if on_divergence == "continue":
        assert simulation.run(config, SoloWorld(), outputs).finished
    else:
        with pytest.raises(
            Diverged, match="test loss.* became nan; .*algorithm.lr.*=continue"
        ) as told:
            simulation.run(config, SoloWorld(), outputs)
        notes = list(dict.fromkeys(told.value.__notes__))
        assert notes == (["client 0"] if clients else []) + ["round 0"]
        assert not outputs.checkpoint.exists(), (
            "the same command would go on from the diverged round"
        )
    run = tables.read(outputs.record)
    assert run.rounds.tolist() == [0, 1, 2][: 3 if on_divergence == "continue" else 2]
    for name in ("loss", "gradient-norm", "client-loss"):
        assert np.isnan(run[name][1]).all()
