"""The kernels of many small modules against a plain loop of autograd: exact, or refused with a reason."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import mpi_ntkdfl as nd
from mpi_ntkdfl.model.module.function import FlatModule
from mpi_ntkdfl.model.module.jacobian import Limits, ModuleJacobian
from mpi_ntkdfl.model.module.plan import planned
from mpi_ntkdfl.runtime.errors import InputError
from tests import oracle
from tests.module_table import MODULES, REFUSED, TOKENS

SAMPLES = 9


def made(factory, shape, dtype=torch.float64):
    """A module with noise on its parameters, and inputs."""
    torch.manual_seed(5)
    module = factory().to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module, draw(shape, dtype)


def draw(shape, dtype):
    if shape is TOKENS:
        return torch.randint(3, (SAMPLES, *shape))
    return torch.randn(SAMPLES, *shape, dtype=dtype)


def entries(module, inputs):
    params = torch.cat([p.detach().reshape(-1) for p in module.parameters() if p.requires_grad])
    return oracle.module_jacobian(module, params, inputs)


def close(found, wanted, tolerance):
    assert found.shape == wanted.shape
    assert (found.detach() - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("name", MODULES)
def test_kernels_of_modules_are_those_of_autograd(name):
    module, inputs = made(*MODULES[name])
    wanted = entries(module, inputs)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    operator = nd.jacobian(module, inputs)
    close(operator.trace_gram() / 3, oracle.kernel(wanted), 1e-10)
    residuals = torch.randn(2, SAMPLES, 3, dtype=torch.float64)
    product = torch.einsum("ncp,tnc->tp", wanted, residuals)
    close(operator.transposed_product(residuals), product, 1e-10)
    close(operator.dense(), wanted, 1e-10)
    after = module.state_dict()
    assert all(torch.equal(tensor, before[key]) for key, tensor in after.items())
    single = inputs if MODULES[name][1] is TOKENS else inputs.float()
    close(nd.kernel(module.float(), single).double(), oracle.kernel(wanted), 1e-5)


FOREIGN = {
    1e-10: (
        "perceptron",
        "without biases",
        "in-place ReLU and residual",
        "a zero branch",
        "an unused parameter",
        "weights from the data",
        "a right function of its own",
        "stopped gradients",
    ),
    1e-7: (
        "convolution",
        "convolution in one dimension",
        "transposed convolution",
        "channels last",
        "squeeze and excitation",
        "group norm",
        "layer norm",
        "local response norm",
        "batch norm in evaluation",
    ),
}
"""Modules of which nngeometry 0.4 computes the kernel to that accuracy. Others may be wrong silently."""


def test_kernels_are_those_of_another_program():
    gram = pytest.importorskip("nngeometry.gram")
    collection = pytest.importorskip("nngeometry.layercollection").LayerCollection
    for tolerance, names in FOREIGN.items():
        for name in names:
            module, inputs = made(*MODULES[name])
            loader = DataLoader(TensorDataset(inputs.clone()), batch_size=SAMPLES)
            layers = collection.from_model(module)
            foreign = gram.GramMatrix(
                module, loader, function=lambda x, own=module: own(x), layer_collection=layers
            )
            wanted = torch.einsum("cacb->ab", foreign.to_torch()) / 3
            close(nd.kernel(module, inputs), wanted, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_the_fast_form_is_right_without_its_check(name):
    """In slices of samples, outputs and entries as well."""
    module, inputs = made(*MODULES[name])
    function = FlatModule(module)
    wanted = 3 * oracle.kernel(entries(module, inputs))
    plan = planned(function, function.flat(), inputs[:8], activations=100)
    directions = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    for room in (2**20, 300):
        limits = Limits(room, SAMPLES, vectorised=False)
        for rotated in (None, directions):
            operator = ModuleJacobian(function, function.flat(), inputs, 3, limits, plan)
            close(operator.trace_gram(rotated), wanted, 1e-10)


def test_any_amount_of_memory_gives_the_same_kernel():
    """Groups of outputs may be of unequal lengths, and batches as well."""
    module, inputs = made(*MODULES["group norm"])
    function = FlatModule(module)
    wanted = 3 * oracle.kernel(entries(module, inputs))
    plan = planned(function, function.flat(), inputs[:8], activations=100)
    assert plan.linear
    assert plan.multiplied
    assert not plan.rest
    for room in range(100, 4000, 300):
        limits = Limits(room, SAMPLES, vectorised=True)
        operator = ModuleJacobian(function, function.flat(), inputs, 3, limits, plan)
        close(operator.trace_gram(), wanted, 1e-10)


def test_a_kernel_has_the_type_of_the_inputs():
    module, inputs = made(*MODULES["group norm"])
    single = module.to(torch.float32)
    kernel = nd.kernel(single, inputs)
    assert kernel.dtype == inputs.dtype == torch.float64
    assert {each.dtype for each in single.parameters()} == {torch.float32}
    close(kernel, oracle.kernel(entries(module.double(), inputs)), 1e-10)


@pytest.mark.parametrize("name", REFUSED)
def test_other_modules_are_refused_with_the_way_out(name):
    factory, shape, message = REFUSED[name]
    module, inputs = factory(), draw(shape, torch.float32)
    with pytest.raises(InputError, match=f"({message}).*; "):
        nd.kernel(module, inputs)
