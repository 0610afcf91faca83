"""Products with inputs on levels."""

from functools import partial

import numpy as np
import pytest
import torch

from mpi_ntkdfl.data.dataset import Scaling, standardise
from mpi_ntkdfl.data.fashion_mnist import FASHION_MNIST
from mpi_ntkdfl.data.mnist import MNIST
from mpi_ntkdfl.evaluate import scores
from mpi_ntkdfl.model import compiled_levels
from mpi_ntkdfl.model import levels as levels_module
from mpi_ntkdfl.model.compiled_levels import CompiledFixedPoint
from mpi_ntkdfl.model.levels import FixedPoint, Levels, multiplies_bytes, prepared
from mpi_ntkdfl.model.mlp import MLP
from mpi_ntkdfl.model.mlp.jacobian import FactoredJacobian

able = pytest.mark.skipif(
    not multiplies_bytes(), reason="torch has no exact products of bytes on this CPU"
)
SCALINGS = {image_set.name: image_set.scaling for image_set in (MNIST, FASHION_MNIST)}
MNIST = SCALINGS["mnist"]


@pytest.fixture(params=["tensor", "compiled"])
def fixed_point(request):
    """Both versions of the products with weights."""
    build = compiled_levels.find()
    if request.param == "tensor":
        return FixedPoint
    if isinstance(build, str):
        pytest.skip(build)
    return partial(CompiledFixedPoint, build)


def levels_of(scaling: Scaling) -> Levels:
    grid = scaling.grid()
    assert grid is not None
    return Levels.of_bytes(*grid)


def images(samples: int, features: int = 784) -> np.ndarray:
    """Half of the pixels are black, as in clothes; one image is, one is white."""
    rng = np.random.default_rng(samples)
    stored = rng.integers(256, size=(samples, features)) * rng.integers(2, size=(samples, features))
    stored[0], stored[-1] = 0, 255
    return stored.astype(np.uint8)


def plain(stored: np.ndarray, kind: str = "float32") -> torch.Tensor:
    return torch.from_numpy(MNIST.apply(stored, kind))


def off_by(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", SCALINGS)
def test_every_byte_is_found_again(name):
    stored = np.arange(256, dtype=np.uint8)[None]
    levels = levels_of(SCALINGS[name])
    found = levels.find(torch.from_numpy(SCALINGS[name].apply(stored)))
    assert (found.numbers.int() + 128).tolist() == stored.tolist()
    assert torch.equal(found.numbers, levels.take(stored).numbers)


def test_features_scaled_apart_have_no_levels():
    rng = np.random.default_rng(0)
    features = standardise(rng.standard_normal((9, 3)), 1.0, per_feature=True)
    assert features.grid() is None


@able
@pytest.mark.parametrize("samples, features", [(1, 784), (300, 784), (40, 3000)])
def test_gram_is_that_of_the_inputs_before_they_were_rounded(samples, features):
    stored = images(samples, features)
    everything = slice(samples)
    found = levels_of(MNIST).take(stored).gram(everything, everything)
    exact = plain(stored, "float64")
    assert off_by(found, exact @ exact.T + 1) < 2e-7


@able
@pytest.mark.parametrize("rows", [1, 20])
def test_products_with_weights_are_as_exact_as_those_of_floats(rows, fixed_point):
    stored = images(500)
    rng = np.random.default_rng(rows)
    # Rows of very different size, and entries of very different size in a row.
    weights = rng.standard_normal((rows, 784)) ** 3 * 10.0 ** rng.integers(-6, 6, (rows, 1))
    matrix = torch.from_numpy(weights).float()
    found = fixed_point(matrix).times(levels_of(MNIST).take(stored))
    exact = matrix.double() @ plain(stored, "float64").T
    for row, expected in zip(found, exact, strict=True):
        assert off_by(row, expected) < 1e-6


@able
def test_extreme_weights(fixed_point):
    """The largest of a row rounds to the largest number; zeros, and what is not finite, stay so."""
    stored = images(10)
    matrix = torch.zeros(4, 784)
    matrix[0], matrix[1, 5] = 1 / 3, -1e30
    matrix[3, 7] = torch.nan
    found = fixed_point(matrix).times(levels_of(MNIST).take(stored))
    exact = matrix.double() @ plain(stored, "float64").T
    assert off_by(found[:2], exact[:2]) < 2e-7
    assert not found[2].any()
    assert found[3].isnan().all()


@able
def test_a_sample_and_a_row_have_the_same_bits_in_any_company(fixed_point):
    levels, stored, matrix = levels_of(MNIST), images(300), torch.randn(30, 784)
    whole = fixed_point(matrix).times(levels.take(stored))
    part = fixed_point(matrix[7:9].clone()).times(levels.take(stored[100:173]))
    assert torch.equal(whole[7:9, 100:173], part)


@able
@pytest.mark.parametrize(
    ("rows", "samples", "features"), [(100, 333, 784), (5, 1, 256), (16, 8, 1000), (43, 70, 784)]
)
def test_the_compiled_version_has_the_same_bits(rows, samples, features):
    """With rows and samples left over, and for a part of the samples and of wider rows."""
    build, levels = compiled_levels.find(), levels_of(SCALINGS["fashion-mnist"])
    if isinstance(build, str):
        pytest.skip(build)
    torch.manual_seed(rows)
    matrix = torch.randn(rows, features + 3)[:, :features] * torch.logspace(-3, 3, rows)[:, None]
    inputs = levels.take(images(samples + 9, features))[4 : samples + 4]
    found = CompiledFixedPoint(build, matrix).times(inputs)
    assert torch.equal(found, FixedPoint(matrix).times(inputs))


@able
@pytest.mark.parametrize("hidden", [100, 7])
def test_outputs_in_one_call_have_the_bits_of_torch(hidden, monkeypatch):
    """With samples left over, hidden units that are open, closed and NaN."""
    build, network = compiled_levels.find(), MLP((784, hidden, 10))
    if isinstance(build, str):
        pytest.skip(build)
    torch.manual_seed(hidden)
    params = torch.randn(network.layout.size) / 30
    inputs = levels_of(MNIST).take(images(1003))
    found = network.outputs(params, inputs)
    spoilt = network.outputs(torch.where(torch.arange(len(params)) == 5, torch.nan, params), inputs)
    monkeypatch.setattr(levels_module, "find", lambda: "no build")
    assert torch.equal(found, network.outputs(params, inputs))
    assert spoilt.isnan().all()


def test_without_a_build_torch_multiplies(monkeypatch, tmp_path):
    inputs, matrix = levels_of(MNIST).take(images(3)), torch.ones(2, 784)
    builds = {"was not built": tmp_path / "none.so", "of another version": tmp_path / "old.so"}
    builds["of another version"].write_text("no library")
    for reason, build in builds.items():
        monkeypatch.setattr(compiled_levels, "BUILD", build)
        compiled_levels.find.cache_clear()
        assert reason in str(compiled_levels.find())
        assert isinstance(prepared(matrix, inputs), FixedPoint)
    compiled_levels.find.cache_clear()


@able
def test_kernel_of_a_network_on_levels():
    network, stored = MLP((784, 20, 10)), images(150)
    params = torch.from_numpy(network.initial(np.random.default_rng(1))).float()

    def gram(x: torch.Tensor, levels: Levels | None = None) -> torch.Tensor:
        inputs = network.activations(params.to(x.dtype), x).inputs
        return FactoredJacobian(network, params.to(x.dtype), inputs, levels).trace_gram()

    exact = gram(plain(stored, "float64"))
    by_levels = off_by(gram(plain(stored), levels_of(MNIST)), exact)
    assert by_levels < 1e-6
    assert by_levels < off_by(gram(plain(stored)), exact)


@able
@pytest.mark.parametrize("hidden", [(), (30,), (20, 10)])
def test_a_network_is_judged_by_its_inputs_levels_as_by_its_inputs(hidden):
    stored = images(2300)
    labels = torch.from_numpy(np.random.default_rng(2).integers(10, size=2300))
    network, rng = MLP((784, *hidden, 10)), np.random.default_rng(3)
    params = torch.from_numpy(np.stack([network.initial(rng) for _ in range(3)])).float()
    right, losses = scores(network, params, levels_of(MNIST).take(stored), labels, "cross-entropy")
    exactly = scores(network, params.double(), plain(stored, "float64"), labels, "cross-entropy")
    assert np.abs(right - exactly[0]).sum() <= 1  # outputs that all but tie
    np.testing.assert_allclose(losses, exactly[1], rtol=1e-6)


def test_a_library_that_overflows_is_found_out(monkeypatch):
    def saturating(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a, b = a.int(), b.int()
        pairs = [a[:, k : k + 2] @ b[k : k + 2] for k in range(0, a.shape[1], 2)]
        return torch.stack(pairs).clamp(-(2**15), 2**15 - 1).sum(0)

    monkeypatch.setattr(torch, "_int_mm", saturating, raising=False)
    assert not multiplies_bytes.__wrapped__()
    monkeypatch.delattr(torch, "_int_mm")
    assert not multiplies_bytes.__wrapped__()
