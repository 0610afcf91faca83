"""The kernel of a client of a run, against torch's own gradients; what the command writes and refuses."""

import csv

import numpy as np
import pytest
import torch

from mpi_ntkdfl import simulation
from mpi_ntkdfl.comm.world import SoloWorld
from mpi_ntkdfl.config import parse
from mpi_ntkdfl.presets import read_source
from mpi_ntkdfl.storage.outputs import Outputs
from mpi_ntkdfl.studies import kernels
from mpi_ntkdfl.studies.loaded import load
from tests.test_cli import answer, complaint

SMALL = {
    "rounds": 2,
    "clients": 4,
    "topology": {"kind": "ring", "dynamic": True},
    "partition": {"samples": 12},
    "model": {"hidden": [8], "init": "per-client"},
    "algorithm": {"name": "d-psgd"},
    "compute": {"dtype": "float64"},
}


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "run.h5"
    simulation.run(parse([*read_source("quickstart"), SMALL]), SoloWorld(), Outputs(path))
    return path


def plain_kernel(run, params, inputs):
    """The trace kernel, output by output and sample by sample, by autograd."""
    params = params.clone().requires_grad_()
    rows = []
    for sample in inputs:
        outputs = run.network.outputs(params, sample[None])[0]
        rows.append([torch.autograd.grad(o, params, retain_graph=True)[0] for o in outputs])
    jacobian = torch.stack([torch.stack(row) for row in rows])  # [sample, output, param]
    return torch.einsum("ncp,mcp->nm", jacobian, jacobian).numpy() / run.network.classes


@pytest.mark.parametrize("neighbourhood", [False, True])
def test_kernels_of_a_client_at_three_times(record, neighbourhood):
    run = load(Outputs(record))
    diagnosis = kernels.diagnose(run, 1, neighbourhood)
    clients = [1]
    if neighbourhood:
        clients = sorted({1, *(int(e) for edge in run.edges if 1 in edge for e in edge)})
        assert len(clients) == 3
    assert list(diagnosis.clients) == clients
    samples = run.own(clients)
    weights = [run.start(range(4)), run.former, run.params]
    assert [each.when for each in diagnosis.spectra] == [
        *("at the start", "after round 1", "after round 2"),
    ]
    for spectrum, every in zip(diagnosis.spectra, weights, strict=True):
        expected = plain_kernel(run, every[clients].mean(0), samples.inputs)
        np.testing.assert_allclose(spectrum.kernel, expected, rtol=1e-9, atol=1e-9 * expected.max())
        assert spectrum.values.sum() == pytest.approx(np.trace(expected))
    assert diagnosis.classes.sum() == len(samples.labels) == sum(np.diff(run.offsets)[clients])


def test_numbers_of_a_spectrum_by_hand():
    """Two classes of two samples, and a kernel whose eigenvectors are known."""
    same = np.kron(np.eye(2), np.ones((2, 2)))
    kernel = same + 3 * np.ones((4, 4))  # eigenvalues 14 (all ones), 2 (between the classes), 0, 0
    fits = kernels.Spectrum("", kernel, np.array([14.0, 2.0, 0.0, 0.0]), np.ones(4))
    shares = np.array([14, 2]) / 16
    assert fits.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert fits.carried == 2
    assert fits.alignment(same) == pytest.approx(1)
    assert fits.alignment(np.eye(4)) == pytest.approx(1 / np.sqrt(3))  # one of three directions
    assert np.isnan(fits.alignment(np.ones((4, 4))))
    double = kernels.Spectrum("", 2 * kernel, 2 * fits.values, fits.labels)
    assert double.change(fits) == pytest.approx(1)


def test_command(record, tmp_path):
    figure, table = tmp_path / "k.svg", tmp_path / "k.csv"
    said = answer("kernel", record, "--client", 2, "-o", figure, "--csv", table)
    run = load(Outputs(record))
    sizes = np.diff(run.offsets)
    assert said.startswith(f"kernel of the {sizes[2]} samples of client 2\nsamples by class: ")
    assert figure.read_text().startswith("<?xml")
    rows = list(csv.DictReader(table.open()))
    (spectrum,) = kernels.diagnose(run, 2, False).spectra[-1:]
    assert [float(row["after round 2: value"]) for row in rows] == spectrum.values.tolist()
    assert float(rows[-1]["after round 2: part of the labels"]) == pytest.approx(1)


def test_refused(record, tmp_path, monkeypatch):
    assert "clients are 0 to 3 in this run, got 4" in complaint("kernel", record, "--client", 4)
    assert "no checkpoint at" in complaint("kernel", tmp_path / "no.h5")
    plugin = complaint("kernel", record, "--plugin", tmp_path / "no.py")
    assert "no.py cannot be read" in plugin
    assert "must end in one of .pdf" in complaint("kernel", record, "-o", tmp_path / "k.txt")
    monkeypatch.setattr("mpi_ntkdfl.data.dataset.Dataset.fingerprint", lambda self: "other")
    assert "is not the one that" in complaint("kernel", record)
