"""Kernel and Jacobian of any module of torch, for use without a run."""

from __future__ import annotations

import torch

from mpi_ntkdfl.model.module.checks import refuse_by_name
from mpi_ntkdfl.model.module.first_passes import described, tried
from mpi_ntkdfl.model.module.function import FlatModule
from mpi_ntkdfl.model.module.jacobian import ModuleJacobian
from mpi_ntkdfl.model.module.network import ROOM, ModuleNetwork
from mpi_ntkdfl.model.module.unchanged import same_random_states
from mpi_ntkdfl.model.params import outside
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
        inputs: `[sample, *shape]`, on the module's device, float32, float64 or integers. The module
            computes in the type of the inputs, whatever its own type is, and so has the result. For
            integer inputs the type is that of the module's first parameter that requires a gradient.
        memory_limit: bytes of gradients to hold at once; None for 1 GiB in float32.

    Raises:
        InputError: if the module cannot be differentiated sample by sample; the message says why.
    """
    if not isinstance(module, torch.nn.Module):
        raise InputError(
            f"the module must be a torch.nn.Module, got {type(module).__name__}; "
            "the kernel is that of its parameters"
        )
    _check_inputs(inputs)
    refuse_by_name(module)
    function = FlatModule(module)
    params = function.flat().to(_dtype(function, inputs))
    room = _room(memory_limit, params.dtype)
    with torch.inference_mode(False):
        inputs = outside(inputs.detach())
        with same_random_states(params.device), torch.enable_grad():
            one = inputs[:1].to(params.dtype if inputs.is_floating_point() else inputs.dtype)
            classes = _classes(tried(lambda: function(params, one.clone()), described(one)))
        label, shape = type(module).__name__, tuple(inputs.shape[1:])
        network = ModuleNetwork(lambda: module, shape, classes, label, inputs, room)
    return network.jacobian(params, inputs)


def _check_inputs(inputs: object) -> None:
    if not isinstance(inputs, torch.Tensor) or inputs.layout is not torch.strided:
        got = inputs.layout if isinstance(inputs, torch.Tensor) else type(inputs).__name__
        raise InputError(
            f"the inputs must be one dense tensor [sample, *shape], got {got}; "
            "wrap a module with other inputs in one that takes such a tensor"
        )
    if inputs.ndim == 0 or not inputs.numel():
        raise InputError(
            "the inputs must be [sample, *shape] with at least one sample, got the shape "
            f"{list(inputs.shape)}; leave empty sets out"
        )
    if inputs.is_floating_point() and inputs.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"the inputs must be float32, float64 or integers, got {inputs.dtype}; use inputs.float()"
        )


def _dtype(function: FlatModule, inputs: torch.Tensor) -> torch.dtype:
    """The type of the results: that of the inputs, or of the first parameter if these are integers."""
    own = inputs.dtype if inputs.is_floating_point() else function.dtype
    return own if own is torch.float64 else torch.float32


def _room(memory_limit: float | None, dtype: torch.dtype) -> int:
    if memory_limit is None:
        return ROOM
    if isinstance(memory_limit, bool) or not isinstance(memory_limit, int | float):
        raise InputError(f"memory_limit must be a number of bytes or None, got {memory_limit!r}")
    if not 0 < memory_limit < float("inf"):
        raise InputError(f"memory_limit must be at least 1 byte, got {memory_limit}; None is 1 GiB")
    return max(int(memory_limit) // dtype.itemsize, 1)


def _classes(outputs: object) -> int:
    """The number of outputs of a pass of one sample."""
    if isinstance(outputs, torch.Tensor):
        if outputs.ndim == 2 and outputs.shape[1]:
            return outputs.shape[1]
        got = f"the shape {list(outputs.shape)}"
    else:
        got = type(outputs).__name__
    raise InputError(
        f"the module must return outputs [sample, output], got {got} for one sample; wrap it in a "
        "module that returns such a tensor (outputs.flatten(1), for example)"
    )


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
