"""Which modules can be networks: some are refused for their layers, the others are tried out.

All trials are in float64. Noise is added to the parameters, so that branches whose weights start at zero
take part as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

from mpi_ntkdfl.model.module.first_passes import (
    SAMPLES,
    TOLERANCE,
    equal,
    refuse_mixed_samples,
    refuse_wrong_outputs,
)
from mpi_ntkdfl.model.module.function import FlatModule, Make, made
from mpi_ntkdfl.model.module.hidden import (
    reason_of,
    refusal,
    refuse_hidden_parameters,
    refuse_other_gradients,
)
from mpi_ntkdfl.model.module.jacobian import Limits, ModuleJacobian
from mpi_ntkdfl.model.module.plan import Pass, Plan
from mpi_ntkdfl.model.module.trial import right_plan
from mpi_ntkdfl.model.module.unchanged import restored, same_random_states
from mpi_ntkdfl.model.params import outside
from mpi_ntkdfl.runtime import seeds

MANY, JITTER = 64, 0.1
"""Number of samples of a batch whose samples must not see each other; standard deviation of the noise on
the parameters."""


@dataclass(frozen=True)
class Facts:
    """Facts about a module that the trials have shown.

    Attributes:
        products: multiplications of a forward pass of one sample.
        activations: numbers that autograd keeps from a forward pass of one sample.
        passing: numbers that one sample needs for a forward and a backward pass.
        vectorised: whether torch computes gradients of several samples together.
        plan: what the fast form of the kernel serves; None if it serves nothing.
        kernel: how the kernel is computed, for the record and the log.
    """

    products: int
    activations: int
    passing: int
    vectorised: bool
    plan: Plan | None
    kernel: str


def examined(
    make: Make, shape: tuple[int, ...], classes: int, examples: torch.Tensor | None = None
) -> Facts:
    """Tries out the module that `make` makes.

    Args:
        make: makes the module.
        shape: shape of one sample.
        classes: number of outputs that it must have.
        examples: samples for the trials, `[sample, *shape]`; None for random ones.

    Raises:
        InputError: if the module cannot be a network; the message says why and what to do.
    """
    module = made(make, 0)
    refuse_by_name(module)
    function = FlatModule(module)
    own = function.flat()
    with (
        same_random_states(own.device),
        restored(module),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        _refuse_other_randomness(function, FlatModule(made(make, 0)))
        generator = seeds.generator(0, "trying out a module")
        params = own + JITTER * torch.from_numpy(generator.standard_normal(len(own))).to(own)
        if examples is None:
            drawn = torch.from_numpy(generator.standard_normal((MANY, *shape))).to(own.device)
            inputs, many = drawn[:SAMPLES], drawn
        else:
            inputs, many = (_chosen(outside(examples), count) for count in (SAMPLES, MANY))
        refuse_wrong_outputs(function, params, inputs, classes)
        refuse_mixed_samples(function, params, inputs, many)
        products, activations, largest = _counted(function, params, inputs)
        refuse_other_gradients(function, params, inputs)
        refuse_hidden_parameters(function, params, inputs)
        vectorised, gram = _right_form(function, params, inputs, classes)
        plan, kernel = right_plan(function, params, inputs, gram, activations, vectorised)
    # What is kept, its gradients, and copies of the largest array for convolutions. For the cnn, the
    # resnet and the transformer of the presets this is 1.0, 1.0 and 1.2 times what was measured.
    passing = 2 * activations + 4 * largest
    return Facts(products, activations, passing, vectorised, plan, kernel)


def _chosen(examples: torch.Tensor, count: int) -> torch.Tensor:
    """Up to `count` samples for trials, in float64 unless they are integers.

    They are spread over `examples`, whose first ones may be alike. A single sample of real numbers comes
    with others in which each number is a little nearer to 0, so that it stays in its range.
    """
    if len(examples) == 1 and examples.is_floating_point():
        generator = seeds.generator(0, "other samples")
        factors = torch.from_numpy(generator.uniform(0.9, 1, (SAMPLES, *examples.shape[1:])))
        factors[0] = 1
        return examples.double() * factors.to(examples.device)
    different = (examples != examples[0]).reshape(len(examples), -1).any(1).nonzero()[:, 0]
    others = torch.arange(1, len(examples), device=examples.device)
    if len(different) < len(others) / 2:
        others = different if len(different) else others
    rows = np.unique(np.linspace(0, len(others), min(count, len(others) + 1)).astype(int))
    first = others.new_zeros(1)
    chosen = examples[torch.cat([first, others])[torch.from_numpy(rows[rows <= len(others)])]]
    return chosen.double() if chosen.is_floating_point() else chosen


def refuse_by_name(module: torch.nn.Module) -> None:
    """Refuses modules with layers or parameters that cannot work.

    Raises:
        InputError: with the name of the submodule or the parameter.
    """
    parameters = dict(module.named_parameters())
    for name, parameter in parameters.items():
        if is_lazy(parameter):
            raise refusal(
                f"parameter {name} has no shape yet",
                "give lazy modules their sizes, or pass one sample through the module in its factory",
            )
        if parameter.is_complex():
            raise refusal(f"parameter {name} is complex", "use real parameters")
        if parameter.is_meta:
            raise refusal(
                f"parameter {name} is on the device meta and has no values",
                "use module.to_empty(device=...), and initialise or load its weights",
            )
        if parameter._backward_hooks:
            raise refusal(
                f"a hook changes the gradient of parameter {name}",
                "remove it, and multiply the parameter by a mask in the forward pass instead",
            )
    for name, buffer in module.named_buffers():
        if is_lazy(buffer):
            raise refusal(f"buffer {name} has no shape yet", "give lazy modules their sizes")
    if len({parameter.device for parameter in parameters.values()}) > 1:
        raise refusal("its parameters are on several devices", "move the module to one device")
    if isinstance(module, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        raise refusal(
            f"{type(module).__name__} hands its parameters to copies", "use its attribute module"
        )
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise refusal("no parameter requires a gradient", "leave some of them to be trained")
    for name, part in module.named_modules():
        what = f"{type(part).__name__} {name!r}".strip()
        if isinstance(part, _BatchNorm) and (part.training or part.running_mean is None):
            raise refusal(
                f"{what} normalises over the batch, so that samples depend on each other",
                "use GroupNorm, LayerNorm, RMSNorm or InstanceNorm, or return the module in "
                "evaluation mode with running statistics",
            )
        if getattr(part, "max_norm", None) is not None:
            raise refusal(
                f"{what} shortens rows of its weight in every pass (max_norm)",
                "leave max_norm out, and divide rows by their norms in the forward pass",
            )
        if isinstance(part, torch.nn.Embedding | torch.nn.EmbeddingBag) and part.sparse:
            raise refusal(f"{what} gives sparse gradients", "leave sparse=True out")
        if part.training and _drops(part):
            raise refusal(
                f"{what} draws random numbers in every pass",
                "set its probability to 0, or return the module in evaluation mode",
            )


def _drops(part: torch.nn.Module) -> bool:
    """Whether a module in training mode is random."""
    if isinstance(part, _DropoutNd):
        return part.p > 0
    if isinstance(part, torch.nn.RNNBase | torch.nn.MultiheadAttention):
        return float(part.dropout) > 0
    return isinstance(part, torch.nn.RReLU)


def _refuse_other_randomness(first: FlatModule, second: FlatModule) -> None:
    """Refuses factories that give other modules for the same seed, since every rank makes its own."""
    own, other = first.flat(), second.flat()
    like = own[:0].double()
    constants = zip(first.constants(like).values(), second.constants(like).values(), strict=False)
    same = first.layout.shapes == second.layout.shapes and torch.equal(own, other)
    if not (same and all(equal(a, b) for a, b in constants)):
        raise refusal(
            "its factory gives other weights or buffers when it is called again with the same seed",
            "draw them from torch's own generator only (no other random numbers, no time)",
        )
    if not bool(torch.isfinite(own).all()):
        raise refusal("its starting weights are not all finite", "initialise every parameter")


def _counted(
    function: FlatModule, params: torch.Tensor, inputs: torch.Tensor
) -> tuple[int, int, int]:
    """Multiplications of a pass of one sample; numbers that autograd keeps, in all and in one array."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    point = params.detach().requires_grad_()
    try:
        with (
            FlopCounterMode(display=False) as counter,
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            outputs = function(point, inputs)
        products = counter.get_total_flops() // 2
        kept.pop(point.untyped_storage().data_ptr(), None)
        numbers = [outputs.numel(), inputs.numel(), *kept.values()]
    except Exception:  # torch cannot count in a module that computes gradients in its forward pass
        graph = Pass(function, params, inputs).graph
        numbers = [0, inputs.numel(), *(graph.numel(place) for place in range(len(graph.steps)))]
        products = len(params) * len(inputs)
    samples = len(inputs)
    return products // samples, -(-sum(numbers) // samples), -(-max(numbers[1:]) // samples)


def _right_form(
    function: FlatModule, params: torch.Tensor, inputs: torch.Tensor, classes: int
) -> tuple[bool, torch.Tensor]:
    """Whether the vectorised form gives the right Jacobian, and `sum_c J_c J_c^T` of the right form.

    If it does not, the form with one sample at a time must give it; otherwise the module is refused. The
    kernel and the transposed product come from different computations, and must agree in
    `u^T K u = sum_c |J_c^T u|^2`.
    """
    reasons = []
    for vectorised in (True, False):
        limits = Limits(room=2**25, at_once=len(inputs), vectorised=vectorised)
        jacobian = ModuleJacobian(function, params, inputs, classes, limits)
        try:
            gram = jacobian.trace_gram()
            error = _disagreement(jacobian, gram, classes)
        except Exception as failure:  # the module fails, or torch has no vectorisation rule for it
            reasons.append(reason_of(failure))
            continue
        if error <= TOLERANCE:
            return vectorised, gram
        reasons.append(f"a relative error of {error:.1e} where {TOLERANCE:.0e} is allowed")
    raise refusal(
        "its derivatives are not right or cannot be computed (vectorised: "
        f"{reasons[0]}; one sample at a time: {reasons[1]})",
        "look for custom backward passes, hooks on gradients, detached values and changes in place",
    )


def _disagreement(jacobian: ModuleJacobian, gram: torch.Tensor, classes: int) -> float:
    """Relative difference of `u^T K u` and `sum_c |J_c^T u|^2` for one random u `[sample]`."""
    generator = seeds.generator(0, "checking a Jacobian")
    u = torch.from_numpy(generator.standard_normal(len(gram))).to(gram)
    residuals = torch.diag_embed(u[:, None].expand(-1, classes)).transpose(0, 1)
    left = float(u @ gram @ u)
    right = float(jacobian.transposed_product(residuals).square().sum())
    return abs(left - right) / max(abs(left), abs(right), 1e-300)
