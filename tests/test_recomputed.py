"""What `show` says, computed again from records and checkpoints in plain numpy.

Nothing of the package's numerics is used here: forward pass, losses, means and counts are written out.
Of the package come the stored samples and the list of methods.
"""

import json

import h5py
import numpy as np
import pytest
import yaml

from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.config import dataset_settings
from mpi_ntkdfl.data import sources
from tests.children import command
from tests.conftest import MANY
from tests.test_cli import answer

RANKS, ROUNDS, CLIENTS, HIDDEN = 2, 2, 6, 4
SETTINGS = (
    *(f"rounds={ROUNDS}", f"clients={CLIENTS}", "topology.degree=3", "partition.samples=20"),
    f"model.hidden=[{HIDDEN}]",
)
OPTIONS = {
    **dict.fromkeys(("ntk-dfl", "average-gd"), "taus: [5, 10]"),
    "ntk-fl": "taus: [5, 10], clients_per_round: 4",
    **dict.fromkeys(("dfedavg", "dfedavgm", "dfedsam", "dispfl", "fedavg", "local"), "epochs: 1"),
}
SHARED_ONCE = ("d-psgd", "dfedavg", "dfedavgm", "dfedsam")
"""Methods in which each client sends its weights to each neighbour once per round, and nothing else."""

UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}


ON_RANKS = ("ntk-dfl", "fedavg")
"""Methods that also run on several ranks, with neighbours and with a server."""
CASES = [*((name, 1) for name in METHODS), *((name, RANKS) for name in ON_RANKS)]


def words(name, path):
    method = f"algorithm={{name: {name}, {OPTIONS.get(name, '')}}}"
    sets = [word for each in (*SETTINGS, method) for word in ("--set", each)]
    return ["run", "quickstart", *sets, "-o", str(path), "-q"]


@pytest.fixture(scope="module")
def launched(tmp_path_factory, mpirun):
    """The folder of the runs on several ranks, all of one launch."""
    folder = tmp_path_factory.mktemp("launched")
    todo = [words(name, folder / f"{name}.h5") for name in ON_RANKS]
    done = mpirun(RANKS, "-c", MANY, json.dumps(todo))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def held_out():
    """Test inputs [sample, 64] and labels; standardised here by one mean and deviation."""
    data = sources.load(dataset_settings("digits"))
    train = data.train_inputs / 16
    return (data.test_inputs / 16 - train.mean()) / train.std(), data.test_labels


def outputs(params, inputs):
    """Of the perceptron 64-HIDDEN-10 with ReLU, whose parameters are weights and biases in turn."""
    sizes = (HIDDEN * 64, HIDDEN, 10 * HIDDEN, 10)
    first, bias, second, other = np.split(params.astype(np.float64), np.cumsum(sizes)[:-1])
    hidden = np.maximum(inputs @ first.reshape(HIDDEN, 64).T + bias, 0)
    return hidden @ second.reshape(10, HIDDEN).T + other


def accuracy(params, inputs, labels):
    return (outputs(params, inputs).argmax(axis=1) == labels).mean()


def loss(params, inputs, labels):
    """Mean cross-entropy."""
    values = outputs(params, inputs)
    largest = values.max(axis=1, keepdims=True)
    totals = np.log(np.exp(values - largest).sum(axis=1)) + largest[:, 0]
    return (totals - values[np.arange(len(labels)), labels]).mean()


def shown(text):
    """The numbers of `show`: rows by round and column, bytes by phase, seconds by phase."""
    blocks = [block.splitlines() for block in text.split("\n\n")]
    head = ["rounds", "average", "mean client", "worst client", "loss", "deviation", "mean tau"]
    assert [part.strip() for part in blocks[1][0].split("  ") if part.strip()] == head
    rows = {}
    for line in blocks[1][1:]:
        cells = [np.nan if cell == "-" else float(cell) for cell in line.split()]
        rows[int(cells[0])] = dict(zip(head, cells, strict=True))
    traffic = {}
    for line in blocks[2][1:]:
        *name, protocol, unit, moved, other = line.split()
        traffic[" ".join(name)] = (float(protocol), UNITS[unit]), (float(moved), UNITS[other])
    seconds = {}
    for line in blocks[3][1:]:
        if line.endswith("%"):
            name, value, *_ = line.split()
            seconds[name] = float(value)
    return rows, traffic, seconds


def assert_bytes(pairs, exact):
    """`pairs` of number and unit, with one digit after the point, are the `exact` numbers of bytes."""
    for (number, unit), value in zip(pairs, exact, strict=True):
        assert number == pytest.approx(value / unit, abs=0.051 if unit > 1 else 0.51)


@pytest.mark.parametrize(("name", "ranks"), CASES)
def test_every_number_that_is_shown(request, tmp_path, quick_starts, held_out, name, ranks):
    """`test_mpi` compares the records of one rank and of several."""
    if ranks > 1:
        path = request.getfixturevalue("launched") / f"{name}.h5"
    else:
        path = tmp_path / "run.h5"
        assert command(*words(name, path)).wait().code == 0
    rows, traffic, seconds = shown(answer("show", path))
    assert sorted(rows) == [0, 1, ROUNDS]
    with h5py.File(path) as file:
        config = yaml.safe_load(file.attrs["config"])
        taus = file["clients/tau"][:]
        sent = np.stack([file["traffic/protocol_bytes"][:], file["traffic/mpi_bytes"][:]])
        phases, spent = file["traffic"].attrs["phases"], file["time/seconds"][:]
        timed, edges = file["time"].attrs["phases"], len(file["topology/edges"])
    assert config["algorithm"].get("loss", "cross-entropy") == "cross-entropy"
    inputs, labels = held_out
    for done, suffix in ((1, ".ckpt-1.h5"), (ROUNDS, ".ckpt.h5")):
        with h5py.File(str(path).replace(".h5", suffix)) as file:
            params = file["params"][:].astype(np.float64)
            assert file.attrs["round"] == done
        average, row = params.mean(axis=0), rows[done]
        clients = [accuracy(each, inputs, labels) for each in params]
        assert row["average"] == pytest.approx(accuracy(average, inputs, labels), abs=6e-5)
        assert row["mean client"] == pytest.approx(np.mean(clients), abs=6e-5)
        assert row["worst client"] == pytest.approx(np.min(clients), abs=6e-5)
        assert row["loss"] == pytest.approx(loss(average, inputs, labels), abs=6e-5, rel=1e-5)
        distances = np.sqrt(((params - average) ** 2).sum(axis=1))
        assert row["deviation"] == pytest.approx(distances.mean(), abs=6e-5, rel=1e-5)
        chosen = taus[done][taus[done] > 0]
        mean = chosen.mean() if len(chosen) else np.nan
        assert row["mean tau"] == pytest.approx(mean, abs=0.6, nan_ok=True)
    for place, phase in enumerate(phases):
        means = sent[:, :, place].mean(axis=1)
        assert_bytes(traffic.get(phase, ((0.0, 1), (0.0, 1))), means)
    assert_bytes(traffic["whole run"], sent.sum(axis=(1, 2)))
    assert (sent[1].sum() > 0) == (ranks > 1)
    if name in SHARED_ONCE:
        assert sent[0].sum() == 2 * edges * params.shape[1] * 4
    for place, phase in enumerate(timed):
        assert seconds.get(phase, 0) == pytest.approx(spent.mean(axis=1)[:, place].sum(), abs=0.06)
