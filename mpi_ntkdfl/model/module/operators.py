"""Kernel and Jacobian of any module of torch, for use without a run."""

from __future__ import annotations

import torch

from mpi_ntkdfl.model.module.checks import refuse_by_name
from mpi_ntkdfl.model.module.jacobian import ModuleJacobian
from mpi_ntkdfl.model.module.network import ROOM, ModuleNetwork
from mpi_ntkdfl.runtime.errors import InputError


def jacobian(
    module: torch.nn.Module, inputs: torch.Tensor, memory_limit: int | None = None
) -> ModuleJacobian:
    """The Jacobian of a module's outputs by its parameters, as an operator.

    It has `trace_gram()` (`sum_c J_c J_c^T`, `[sample, sample]`), `transposed_product(residuals)`
    (`[tau, sample, output]` to `[tau, param]`), `dense(start, stop)` (the entries of a range of
    parameters, `[sample, output, stop - start]`) and `outputs` `[sample, output]`. Its parameters are the
    module's parameters that require a gradient, in the order of `module.named_parameters()`. The module
    is not changed.

    Args:
        module: maps `[sample, *shape]` to `[sample, output]`. The outputs of a sample must depend only on
            that sample.
        inputs: `[sample, *shape]`, on the module's device. The result has the type of the inputs; for
            integer inputs it has the type of the module's first parameter.
        memory_limit: bytes of gradients to hold at once; None for 1 GiB in float32.

    Raises:
        InputError: if the module cannot be differentiated sample by sample; the message says why.
    """
    refuse_by_name(module)  # before the first pass, since a pass changes some of these modules
    own = next((each.dtype for each in module.parameters()), inputs.dtype)
    with torch.no_grad():
        outputs: object = module(inputs[:1].to(own) if inputs.is_floating_point() else inputs[:1])
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
        got = list(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise InputError(f"the module must return outputs [sample, output], got {got}")
    dtype = inputs.dtype if inputs.is_floating_point() else own
    room = ROOM if memory_limit is None else max(memory_limit // dtype.itemsize, 1)
    shape = tuple(inputs.shape[1:])
    label = type(module).__name__
    network = ModuleNetwork(lambda: module, shape, outputs.shape[1], label, inputs, room)
    return network.jacobian(network.own_parameters().to(dtype), inputs)


def kernel(
    module: torch.nn.Module, inputs: torch.Tensor, memory_limit: int | None = None
) -> torch.Tensor:
    """The empirical neural tangent kernel of a module at its own parameters, `[sample, sample]`.

    It is the mean over outputs of `J_c J_c^T`, where `J_c` is the Jacobian of output c.

    Args:
        module: as for `jacobian`.
        inputs: as for `jacobian`.
        memory_limit: as for `jacobian`.

    Raises:
        InputError: as for `jacobian`.
    """
    operator = jacobian(module, inputs, memory_limit)
    return operator.trace_gram().div_(operator.outputs.shape[1])
