"""Real Fashion-MNIST through the command line alone, against the plain oracle in float64."""

import functools
import itertools

import h5py
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from mpi_ntkdfl.cli.main import cli
from mpi_ntkdfl.config import dataset_settings
from mpi_ntkdfl.data import sources
from mpi_ntkdfl.model.mlp import MLP
from tests import oracle
from tests.conftest import needs_fashion

pytestmark = [pytest.mark.slow, needs_fashion]

WIDTHS = (784, 100, 10)
SIZES = (3, 5, 2, 6)
ROUNDS, LR, DECAY = 3, 0.01, 0.07


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    """Partition, starting weights and configuration as files, and the same as tensors."""
    folder = tmp_path_factory.mktemp("fashion")
    rng = np.random.default_rng(3)
    offsets = np.cumsum([0, *SIZES])
    indices = rng.integers(60_000, size=offsets[-1])
    np.savez(folder / "partition.npz", offsets=offsets, indices=indices)
    start = torch.from_numpy(MLP(WIDTHS).initial(rng)).float()
    torch.save(MLP(WIDTHS).layout.unflatten(start), folder / "start.pt")
    dataset = sources.load(dataset_settings("fashion-mnist"))
    x = torch.from_numpy((dataset.train_inputs[indices] / 255.0 - 0.2860) / 0.3530)
    y = torch.from_numpy(dataset.train_labels[indices])
    data = tuple(zip(x.split(SIZES), y.split(SIZES), strict=True))
    return folder, start, data


def export(record, target, *which):
    words = ["export", record, *which, target, "--overwrite"]
    assert CliRunner().invoke(cli, [str(word) for word in words]).exit_code == 0


@functools.cache
def expected(start, data, graphs, taus, loss):
    """Weights and taus of every client after each round; `data` and `graphs` as tuples."""
    weights, found = [start.double()] * len(SIZES), []
    for number, graph in enumerate(graphs):
        lr = LR * np.exp(-DECAY * number)
        weights, chosen = oracle.ntk_dfl_round(
            weights, list(data), set(graph), WIDTHS, lr, list(taus), loss
        )
        found.append((weights, chosen))
    return found


def write_config(folder, topology, algorithm):
    config = {
        "rounds": ROUNDS,
        "clients": len(SIZES),
        "partition": {"kind": "file", "path": str(folder / "partition.npz")},
        "topology": topology,
        "model": {"weights": str(folder / "start.pt")},
        "algorithm": {"name": "ntk-dfl", "lr": LR, "lr_decay": DECAY, **algorithm},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize(
    ("ranks", "topology", "algorithm"),
    [
        (3, {"kind": "ring"}, {"taus": [20, 60, 150]}),
        (1, {"kind": "regular", "degree": 1, "dynamic": True}, {"taus": [100], "loss": "squared"}),
    ],
    ids=["ring", "dynamic pairs, squared loss"],
)
def test_rounds_equal_the_oracle(simulate, problem, tmp_path, ranks, topology, algorithm):
    folder, start, data = problem
    record = tmp_path / "run.h5"
    config = write_config(folder, topology, algorithm)
    done = simulate(ranks, "run", config, "-o", record, "-q")
    assert done.returncode == 0, done.stderr
    with h5py.File(record) as file:
        edges, offsets = file["topology/edges"][:], file["topology/offsets"][:]
        taus = file["clients/tau"][:]
    graphs = tuple(
        tuple(map(tuple, edges[low:high].tolist()))
        for low, high in itertools.pairwise(offsets.tolist())
    )
    loss = algorithm.get("loss", "cross-entropy")
    rounds = expected(start, data, graphs, tuple(algorithm["taus"]), loss)
    assert taus[1:].tolist() == [chosen for _, chosen in rounds]
    weights = rounds[-1][0]
    for client, wanted in enumerate(weights):
        state = tmp_path / "client.pt"
        export(record, state, "--client", client)
        found = MLP(WIDTHS).layout.flatten(torch.load(state, weights_only=True)).double()
        step = (wanted - start).norm()
        assert (found - wanted).norm() < 1e-5 * step, f"client {client} after {ROUNDS} rounds"


def test_average_is_what_the_record_measured(simulate, problem, tmp_path):
    """The exported average, evaluated here in float64, has the recorded accuracy and loss."""
    folder, _, _ = problem
    record, state = tmp_path / "run.h5", tmp_path / "average.pt"
    config = write_config(folder, {"kind": "complete"}, {"taus": [50]})
    assert simulate(2, "run", config, "-o", record, "-q").returncode == 0
    export(record, state, "--average")
    params = MLP(WIDTHS).layout.flatten(torch.load(state, weights_only=True)).double()
    dataset = sources.load(dataset_settings("fashion-mnist"))
    x = torch.from_numpy((dataset.test_inputs / 255.0 - 0.2860) / 0.3530)
    labels = torch.from_numpy(dataset.test_labels)
    outputs = oracle.network(params, x, WIDTHS)
    with h5py.File(record) as file:
        assert (
            abs(file["model/accuracy"][-1] - float((outputs.argmax(1) == labels).double().mean()))
            < 3e-4
        )
        assert abs(file["model/loss"][-1] - oracle.loss_of(outputs, labels, "cross-entropy")) < 1e-4
