"""Exact Gram matrices of inputs on levels."""

import numpy as np
import pytest
import torch

from mpi_ntkdfl.data.sources import IMAGE_SETS, Scaling, _standardise
from mpi_ntkdfl.model.nets import MLP
from mpi_ntkdfl.ntk import levels as levels_module
from mpi_ntkdfl.ntk.jacobian import FactoredJacobian
from mpi_ntkdfl.ntk.levels import MOST_FEATURES, LevelGram, Levels, multiplies_bytes

SCALINGS = {
    name: Scaling(255.0, np.array([known.mean]), np.array([known.deviation]))
    for name, known in IMAGE_SETS.items()
}


def levels_of(scaling: Scaling, features: int = 784) -> Levels:
    grid = scaling.grid()
    assert grid is not None
    found = Levels.of_bytes(grid, features)
    assert found is not None
    return found


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("name", SCALINGS)
def test_every_byte_is_found_again(name, kind):
    stored = np.arange(256, dtype=np.uint8)[None]
    inputs = torch.from_numpy(SCALINGS[name].apply(stored, kind))
    found = levels_of(SCALINGS[name]).of(inputs)
    assert (found.int() + 128).tolist() == stored.tolist()


def images(samples: int, features: int = 784, kind: str = "float32") -> torch.Tensor:
    """Half of the pixels are black, as in clothes; one image is, one is white."""
    rng = np.random.default_rng(samples)
    stored = rng.integers(256, size=(samples, features)) * rng.integers(2, size=(samples, features))
    stored[0], stored[-1] = 0, 255
    return torch.from_numpy(SCALINGS["mnist"].apply(stored.astype(np.uint8), kind))


@pytest.mark.parametrize("kind, bound", [("float32", 3e-7), ("float64", 1e-14)])
@pytest.mark.parametrize("samples, features", [(1, 784), (300, 784), (40, MOST_FEATURES)])
def test_gram_is_that_of_the_inputs(samples, features, kind, bound):
    x = images(samples, features, kind)
    gram = LevelGram(levels_of(SCALINGS["mnist"], features), x)
    found = gram.block(slice(samples), slice(samples)).double()
    # The inputs before they were rounded to their type.
    exact = images(samples, features, "float64")
    expected = exact @ exact.T + 1
    assert float((found - expected).abs().max() / expected.max()) < bound


@pytest.mark.skipif(not multiplies_bytes(), reason="no exact products of bytes on this CPU")
def test_bytes_multiplied_or_not_the_bits_are_the_same(monkeypatch):
    x = images(200)
    levels = levels_of(SCALINGS["mnist"])
    fast = LevelGram(levels, x).block(slice(50, 200), slice(200))
    monkeypatch.setattr(levels_module, "multiplies_bytes", lambda: False)
    assert torch.equal(fast, LevelGram(levels, x).block(slice(50, 200), slice(200)))


def test_a_library_that_overflows_is_found_out(monkeypatch):
    def saturating(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        pairs = a.int()[:, 0::2] @ b.int()[0::2] + a.int()[:, 1::2] @ b.int()[1::2]
        return pairs.clamp(-(2**15), 2**15 - 1)

    monkeypatch.setattr(torch, "_int_mm", saturating, raising=False)
    assert not multiplies_bytes.__wrapped__()
    monkeypatch.delattr(torch, "_int_mm")
    assert not multiplies_bytes.__wrapped__()


def test_kernel_of_a_network_on_levels():
    network, x = MLP((784, 20, 10)), images(150)
    params = torch.from_numpy(network.initial(np.random.default_rng(1))).float()
    inputs = network.activations(params, x).inputs
    by_levels = FactoredJacobian(network, params, inputs, levels_of(SCALINGS["mnist"]))
    plain = FactoredJacobian(network, params, inputs)
    torch.testing.assert_close(by_levels.trace_gram(), plain.trace_gram(), rtol=1e-5, atol=1e-4)


def test_scalings_without_levels():
    rng = np.random.default_rng(0)
    features = _standardise(rng.standard_normal((9, 3)), 1.0, per_feature=True)
    assert features.grid() is None
    assert Levels.of_bytes((0.0, 1.0), MOST_FEATURES + 1) is None
