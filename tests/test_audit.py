"""The audit: messages computed again, attacks on them, measures of closeness."""

import click.testing
import h5py
import numpy as np
import pytest
import torch
from torch import nn

import mpi_ntkdfl as nd
from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.audit.attack import Stack, _divided, _matched, attack
from mpi_ntkdfl.audit.measure import MOST, closeness, ssim
from mpi_ntkdfl.audit.overheard import Told, overhear
from mpi_ntkdfl.audit.report import NO_PROOF
from mpi_ntkdfl.cli.main import cli
from mpi_ntkdfl.model.mlp import MLP
from mpi_ntkdfl.model.module import ModuleNetwork
from mpi_ntkdfl.model.projection import Projection
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.storage.outputs import Outputs
from mpi_ntkdfl.topology.graphs import Graph

SETTINGS = {
    "clients": 6,
    "rounds": 2,
    "topology.degree": 3,
    "partition.samples": 12,
    "algorithm.taus": [5, 20],
    "evaluation.clients": False,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two rounds of NTK-DFL on digits."""
    path = tmp_path_factory.mktemp("audit") / "run.h5"
    return nd.run(nd.load_config("quickstart", **SETTINGS), path)


def told(network, samples, projection=None, seed=0):
    """A message about random samples, and the samples."""
    rng = np.random.default_rng(seed)
    point = torch.from_numpy(network.initial(rng)).float()
    inputs = torch.from_numpy(rng.standard_normal((samples, *network.shape))).float()
    jacobian = network.jacobian(point, inputs)
    entries = (
        jacobian.dense() if projection is None else jacobian.projected(projection(network, point))
    )
    arrays = {"entries": entries, "outputs": jacobian.outputs}
    return Told(0, 1, point, point, arrays=arrays), inputs


def to_columns(k):
    return lambda network, point: Projection(network.layout, k, 0, 0, point, 0)


def test_the_quotient_of_derivatives_is_an_input():
    message, inputs = told(MLP((20, 9, 3)), 4)
    found = _divided(MLP((20, 9, 3)), message.arrays["entries"])
    assert (found - inputs).abs().max() < 1e-5


@pytest.mark.parametrize("widths", [(20, 9, 3), (20, 9, 8, 3)])
@pytest.mark.parametrize("k", [12, 40])
def test_projections_are_undone_if_they_have_as_many_numbers_as_the_input(widths, k):
    network = MLP(widths)
    message, inputs = told(network, 4, to_columns(k))
    found = Stack.of(network, message, to_columns(k)(network, message.point)).solved()
    assert (found - inputs).abs().max() < 1e-3


@pytest.mark.slow
def test_matching_finds_the_inputs_of_convolutions():
    def module():
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(12, 3))

    network = ModuleNetwork(module, (1, 4, 4), 3, "cnn")
    message, inputs = told(network, 1)
    found = _matched(network, message, None, 120)
    assert (found - inputs).norm() < 0.1 * inputs.norm()


# ------------------------------------------------------------------------------------------ measures


def compared(guess, truth, ordered=True):
    from mpi_ntkdfl.audit.attack import Guess

    labels = torch.arange(len(truth)) % 2
    return closeness(Guess("x", guess, ordered), truth, labels, labels, 2, 2.0, (1, 12, 12))


def test_psnr_ssim_and_exact_matches_by_hand():
    truth = torch.rand(3, 144, generator=torch.Generator().manual_seed(0)) * 2 - 1
    same = compared(truth.clone(), truth)
    assert same.psnr.tolist() == [MOST] * 3
    assert same.exact.all()
    assert same.ssim.tolist() == pytest.approx([1.0] * 3)
    off = compared(truth + 0.2, truth)
    assert off.psnr.tolist() == pytest.approx([20.0] * 3, abs=1e-4)
    assert not off.exact.any()
    assert compared(truth.flip(0), truth).psnr[0] < 20
    assert compared(truth.flip(0), truth, ordered=False).psnr.tolist() == [MOST] * 3


def test_ssim_of_constant_pictures_is_that_of_their_means():
    a, b, c1 = torch.full((1, 1, 11, 11), 0.5), torch.full((1, 1, 11, 11), 0.8), 0.01**2
    wanted = (2 * 0.5 * 0.8 + c1) / (0.5**2 + 0.8**2 + c1)
    assert float(ssim(a, b, 1.0, (1, 11, 11))) == pytest.approx(wanted, rel=1e-5)


# ------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("settings", "learned"),
    [
        ({"jacobian": "inputs"}, "every input and every label"),
        ({"jacobian": "factored"}, "every input and every label"),
        ({"jacobian": "dense"}, "every label; every input if the first layer is linear"),
        ({"jacobian": "projected"}, "every label; every input if layers are linear"),
        ({"name": "dfedavg"}, "mixtures of samples"),
        ({"name": "fedavg"}, "mixtures of samples"),
        ({"name": "local"}, "nothing, because nothing is sent"),
    ],
)
def test_what_a_method_says_that_neighbours_learn(settings, learned):
    algorithm = nd.load_config("quickstart", algorithm=settings).algorithm
    needs = METHODS[algorithm.name].needs(algorithm, MLP((6, 5, 3)), torch.float32)
    who = "the server" if algorithm.name == "fedavg" else "a neighbour"
    assert needs.learned.startswith(f"{who} learns: {learned}")


@pytest.mark.parametrize(
    ("form", "attacked", "error"),
    [
        ("jacobian=factored", "read", 1e-6),
        ("jacobian=inputs", "read", 1e-6),
        ("={codec: {jacobians: {name: float16}}}", "read", 1e-2),
        ("={codec: {jacobians: {name: subsample, share: 0.5}}}", "read", 1e-6),
        ("={jacobian: dense, selection: linearised}", "division", 1e-3),
        ("={jacobian: projected, projection: 16}", "linear", 1e-3),
        ("={jacobian: projected, projection: 3}", "matching", None),
        ("={name: dfedavg, epochs: 1}", "update", None),
        ("={name: dfedavg, epochs: 1, quantize: 9}", "update", None),
        ("={name: fedavg, epochs: 1}", "update", None),
        ("={name: ntk-fl, clients_per_round: 3}", "read", 1e-6),
    ],
)
def test_messages_of_each_kind_are_heard_and_attacked(finished, form, attacked, error):
    word = f"algorithm{form}" if form.startswith("=") else f"algorithm.{form}"
    heard = overhear(Outputs(finished.path), 2, 3, None, (word,))
    assert heard.round == 1
    assert len(heard.told) == 2
    for each in heard.told:
        guess = attack(heard, each, steps=3)
        own = heard.federation.samples[each.sender]
        places = slice(3) if each.picked is None else each.picked[:3]
        assert guess.attack == attacked
        assert (guess.labels is None) == (attacked == "update")
        if error is not None:
            assert guess.labels.tolist() == own.labels[places].tolist()
            assert (guess.inputs - own.inputs[places]).abs().max() < error
        elif guess.histogram is not None:
            assert float(guess.histogram.sum()) == pytest.approx(1)


def test_the_messages_are_those_that_the_run_sent(finished):
    """The averages of the last round follow from the weights at its start, which the checkpoint holds."""
    with h5py.File(finished.path) as file:
        start, stop = file["topology/offsets"][1:3]
        graph = Graph.from_pairs(6, file["topology/edges"][start:stop])
    with h5py.File(Outputs(finished.path).former_checkpoint) as file:
        weights = torch.from_numpy(file["params"][:])
    for each in overhear(Outputs(finished.path), 6, 2, 1).told:
        assert each.receiver == min(set(graph.closed(each.sender).tolist()) - {each.sender})
        assert torch.equal(each.before, weights[each.sender])
        average = weights[graph.closed(each.receiver).tolist()].double().mean(0)
        torch.testing.assert_close(each.point, average.float(), rtol=1e-6, atol=1e-7)
    starts = [each.before for each in overhear(Outputs(finished.path), 2, 1, 0).told]
    assert torch.equal(*starts)


def test_rounds_without_a_checkpoint_and_other_samples_are_refused(finished, monkeypatch):
    with pytest.raises(InputError, match="which are rounds 0, 1, 2, got 7"):
        overhear(Outputs(finished.path), 1, 1, 7)
    with pytest.raises(InputError, match="made with other samples"):
        overhear(Outputs(finished.path), 1, 1, None, ("partition.samples=11",))


@pytest.mark.slow
def test_the_command_prints_a_table_and_draws(finished, tmp_path):
    words = ["audit", str(finished.path), "--clients", "2", "-o", str(tmp_path / "a.png")]
    result = click.testing.CliRunner().invoke(
        cli, [*words, "--as", "jacobian=inputs", "--as", "name=dfedavg"]
    )
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    rows = [line for line in lines if line.startswith("run.h5")]
    assert "8 of 8" in rows[0]
    assert "> 200 dB" in rows[0]
    assert "update" in rows[1]
    assert NO_PROOF.splitlines()[0] in lines
    assert (tmp_path / "a.png").stat().st_size > 5_000
