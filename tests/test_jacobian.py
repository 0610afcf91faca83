"""Jacobians as operators against autograd, entry by entry."""

import pytest
import torch

from mpi_ntkdfl.model import compiled_product
from mpi_ntkdfl.model.jacobian import DenseJacobian, add_lower_product, mirror, symmetric_product
from mpi_ntkdfl.model.losses import correct, loss_value
from mpi_ntkdfl.model.mlp import MLP
from mpi_ntkdfl.model.mlp.jacobian import FactoredJacobian
from mpi_ntkdfl.ntk.kernel import trace_kernel
from tests import oracle

WIDTHS = [(5, 3), (5, 4, 3), (5, 6, 4, 2), (4, 5, 3, 4, 3)]


def make(widths, samples=7, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    network = MLP(widths)
    params = 0.5 * torch.randn(network.layout.size, generator=generator, dtype=torch.float64)
    x = torch.randn(samples, widths[0], generator=generator, dtype=torch.float64)
    params, x = params.to(dtype), x.to(dtype)
    factored = FactoredJacobian(network, params, network.activations(params, x).inputs)
    return params, x, factored


@pytest.mark.parametrize("widths", WIDTHS)
def test_network_is_the_plain_one(widths):
    params, x, _ = make(widths)
    torch.testing.assert_close(MLP(widths).outputs(params, x), oracle.network(params, x, widths))


@pytest.mark.parametrize("widths", WIDTHS)
def test_networks_at_once_are_each_by_itself(widths):
    _, x, factored = make(widths)
    several = torch.randn(3, factored.network.layout.size, dtype=x.dtype)
    found = MLP(widths).functions(several, x)(x)
    for outputs, params in zip(found, several, strict=True):
        torch.testing.assert_close(outputs, oracle.network(params, x, widths))


@pytest.mark.parametrize("loss", ["cross-entropy", "squared"])
def test_losses_are_the_plain_ones(loss):
    params, x, factored = make((5, 6, 4, 2))
    outputs = factored.network.outputs(params, x)
    labels = torch.arange(len(x)) % 2
    assert float(loss_value(outputs, labels, loss)) == pytest.approx(
        oracle.loss_of(outputs, labels, loss), rel=1e-12
    )
    by_class = [0] * outputs.shape[1]
    for row, label in zip(outputs, labels.tolist(), strict=True):
        by_class[label] += int(row.argmax()) == label
    assert correct(outputs, labels).tolist() == by_class


@pytest.mark.parametrize("widths", WIDTHS)
def test_entries_are_those_of_autograd(widths):
    params, x, factored = make(widths)
    expected = oracle.jacobian(params, x, widths)
    torch.testing.assert_close(factored.dense(), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("widths", WIDTHS)
def test_any_range_of_entries_is_cut_from_the_whole(widths):
    params, x, factored = make(widths)
    whole = factored.dense()
    for start in range(0, whole.shape[2], 3):
        for stop in range(start + 1, whole.shape[2] + 1, 5):
            torch.testing.assert_close(factored.dense(start, stop), whole[:, :, start:stop])


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("form", ["factored", "dense"])
def test_kernel_and_product(widths, form):
    params, x, factored = make(widths)
    entries = oracle.jacobian(params, x, widths)
    tested = factored if form == "factored" else DenseJacobian(entries)
    torch.testing.assert_close(
        trace_kernel(tested, widths[-1]), oracle.kernel(entries), rtol=1e-12, atol=1e-12
    )
    residuals = torch.randn(2, len(x), widths[-1], dtype=x.dtype)
    expected = torch.einsum("ncp,tnc->tp", entries, residuals)
    torch.testing.assert_close(
        tested.transposed_product(residuals), expected, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("widths", WIDTHS)
def test_float32_is_as_good_as_promised(widths):
    params, x, factored = make(widths, samples=30, dtype=torch.float32)
    entries = oracle.jacobian(params.double(), x.double(), widths)
    expected = oracle.kernel(entries)
    found = trace_kernel(factored, widths[-1]).double()
    assert (found - expected).norm() < 2e-6 * expected.norm()


def test_ranges_of_dense_jacobians_add_up():
    params, x, factored = make((5, 4, 3))
    cuts = [0, 7, 8, 30, factored.network.layout.size]
    grams = [
        DenseJacobian(factored.dense(a, b)).trace_gram()
        for a, b in zip(cuts, cuts[1:], strict=False)
    ]
    torch.testing.assert_close(sum(grams), factored.trace_gram())


@pytest.mark.parametrize("n", [1, 3, 255, 256, 257, 700])
def test_symmetric_product_is_the_product(n):
    a = torch.randn(n, 9, dtype=torch.float64)
    product = symmetric_product(a)
    torch.testing.assert_close(product, a @ a.T)
    total = torch.full_like(product, 7.0).tril()
    add_lower_product(total, a)
    torch.testing.assert_close(mirror(total), a @ a.T + 7)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (8, 16), (37, 300), (64, 256), (129, 777)])
def test_compiled_products_are_the_product_and_agree_in_every_bit(n, k):
    if isinstance(compiled_product.find(), str):
        pytest.skip(str(compiled_product.find()))
    a, before = torch.randn(n, k + 3)[:, :k], torch.randn(n, n)
    exact = (before.double() + a.double() @ a.double().T).tril()
    results = []
    for build in compiled_product.builds():
        total = before.clone()
        build.add_lower(total, a)
        assert (total.tril() - exact).abs().max() <= 2e-6 * exact.abs().max()
        results.append(total.tril())
    assert all(torch.equal(result, results[0]) for result in results)
    total = before.clone()
    add_lower_product(total, a)
    assert torch.equal(total.tril(), results[0])


def test_layer_inputs_must_fit():
    network = MLP((5, 4, 3))
    with pytest.raises(ValueError, match=r"expected layer inputs of widths \(5, 4\)"):
        FactoredJacobian(network, torch.zeros(network.layout.size), [torch.zeros(2, 5)])


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="expected loss .*, got 'hinge'"):
        loss_value(torch.zeros(3, 2), torch.tensor([0, 1, 1]), "hinge")
