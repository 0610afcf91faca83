"""Which modules can be networks: some are refused for their layers, the others are tried out.

All trials are in float64. Noise is added to the parameters, so that branches whose weights start at zero
take part as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

from mpi_ntkdfl.model.module.function import FlatModule, Make, made
from mpi_ntkdfl.model.module.hidden import refusal, refuse_hidden_parameters, refuse_other_gradients
from mpi_ntkdfl.model.module.jacobian import Limits, ModuleJacobian
from mpi_ntkdfl.model.module.plan import Plan
from mpi_ntkdfl.model.module.trial import right_plan
from mpi_ntkdfl.runtime import seeds

SAMPLES, JITTER, TOLERANCE = 8, 0.1, 1e-9
"""Number of samples of a trial; standard deviation of the noise on the parameters; relative error that is
allowed for values that must be equal."""

T = TypeVar("T")


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
    _refuse_other_randomness(function, FlatModule(made(make, 0)))
    generator = seeds.generator(0, "trying out a module")
    own = function.flat()
    params = own + JITTER * torch.from_numpy(generator.standard_normal(len(own))).to(own)
    if examples is None or (len(examples) < 2 and examples.is_floating_point()):
        random = torch.from_numpy(generator.standard_normal((SAMPLES, *shape)))
        examples = random.to(own.device)
    inputs = examples[:SAMPLES]
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    _refuse_wrong_outputs(function, params, inputs, classes)
    _refuse_mixed_samples(function, params, inputs)
    products, activations, largest = _counted(function, params, inputs)
    refuse_other_gradients(function, params, inputs)
    refuse_hidden_parameters(function, params, inputs)
    vectorised, gram = _right_form(function, params, inputs, classes)
    plan, kernel = right_plan(function, params, inputs, gram, activations, vectorised)
    # What is kept, its gradients, and copies of the largest array for convolutions. For the cnn, the
    # resnet and the transformer of the presets this is 1.0, 1.0 and 1.2 times what was measured.
    passing = 2 * activations + 4 * largest
    return Facts(products, activations, passing, vectorised, plan, kernel)


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
    if not (same and all(torch.equal(a, b) for a, b in constants)):
        raise refusal(
            "its factory gives other weights or buffers when it is called again with the same seed",
            "draw them from torch's own generator only (no other random numbers, no time)",
        )
    if not bool(torch.isfinite(own).all()):
        raise refusal("its starting weights are not all finite", "initialise every parameter")


def _tried(task: Callable[[], T], what: str) -> T:
    try:
        return task()
    except Exception as error:  # whatever the user's code raises
        reason = str(error).strip().split("\n")[0]
        raise refusal(
            f"it fails on {what}: {type(error).__name__}: {reason}",
            "it must take inputs of that shape and compute in the type and on the device of its "
            "parameters (keep constant tensors as buffers)",
        ) from error


def _refuse_wrong_outputs(
    function: FlatModule, params: torch.Tensor, inputs: torch.Tensor, classes: int
) -> None:
    """Refuses modules whose outputs have a wrong form or are random, and modules that a pass changes."""
    before = {name: each.clone() for name, each in function.constants(params).items()}
    what = f"{inputs.dtype} inputs of shape {list(inputs.shape)}".replace("torch.", "")
    outputs: object = _tried(lambda: function(params, inputs), what)
    wanted = f"outputs of shape {[len(inputs), classes]}"
    if not isinstance(outputs, torch.Tensor):
        raise refusal(f"it returns {type(outputs).__name__}", f"return a tensor, {wanted}")
    if tuple(outputs.shape) != (len(inputs), classes):
        raise refusal(f"it returns the shape {list(outputs.shape)}", f"return {wanted}")
    if outputs.dtype != params.dtype:
        raise refusal(
            f"it returns {outputs.dtype} where its parameters are {params.dtype}",
            "compute in the type of the parameters",
        )
    if not bool(torch.isfinite(outputs).all()):
        raise refusal(
            "its outputs are not finite near its starting weights",
            "look for divisions and logarithms",
        )
    if not torch.equal(outputs, function(params, inputs)):
        raise refusal("two passes give different outputs", "leave out what is random or remembers")
    if any(not torch.equal(old, function.constants(params)[name]) for name, old in before.items()):
        raise refusal("a pass changes its buffers", "return the module in evaluation mode")


def _refuse_mixed_samples(function: FlatModule, params: torch.Tensor, inputs: torch.Tensor) -> None:
    """Refuses modules in which the outputs of a sample depend on other samples.

    The first sample is replaced, and the outputs of the others must stay the same. The last sample is
    also passed one by one, and must have the same outputs.
    """
    changed = inputs.clone()
    for other in inputs[1:]:
        if not torch.equal(other, inputs[0]):
            changed[0] = other
    with torch.no_grad():
        outputs, others = function(params, inputs), function(params, changed)
        single = _tried(lambda: function(params, inputs[-1:]), "a single sample")
    differences = torch.cat([others[1:] - outputs[1:], single - outputs[-1:]]).abs()
    if not bool(differences.max() <= TOLERANCE * outputs.abs().max()):
        raise refusal(
            "a sample's outputs depend on the other samples of the batch",
            "each sample must be treated by itself; the batch is the first axis of inputs and outputs",
        )


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
    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        outputs = function(point, inputs)
    kept.pop(point.untyped_storage().data_ptr(), None)
    activations = sum(kept.values()) + inputs.numel() + outputs.numel()
    largest = max([*kept.values(), inputs.numel()])
    products = counter.get_total_flops() // (2 * len(inputs))
    return products, -(-activations // len(inputs)), -(-largest // len(inputs))


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
            reasons.append(f"{type(failure).__name__}: {str(failure).strip().splitlines()[0]}")
            continue
        if error <= TOLERANCE:
            return vectorised, gram
        reasons.append(f"a relative error of {error:.1e} where {TOLERANCE:.0e} is allowed")
    raise refusal(
        "its derivatives are not right or cannot be computed (vectorised: "
        f"{reasons[0]}; one sample at a time: {reasons[1]})",
        "look for custom backward passes, detached parameters and changes in place",
    )


def _disagreement(jacobian: ModuleJacobian, gram: torch.Tensor, classes: int) -> float:
    """Relative difference of `u^T K u` and `sum_c |J_c^T u|^2` for one random u `[sample]`."""
    generator = seeds.generator(0, "checking a Jacobian")
    u = torch.from_numpy(generator.standard_normal(len(gram))).to(gram)
    residuals = torch.diag_embed(u[:, None].expand(-1, classes)).transpose(0, 1)
    left = float(u @ gram @ u)
    right = float(jacobian.transposed_product(residuals).square().sum())
    return abs(left - right) / max(abs(left), abs(right), 1e-300)
