"""Refuses modules whose first passes fail, give wrong outputs, mix samples, or change something."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import torch
from torch.autograd.function import BackwardCFunction

from mpi_ntkdfl.model.module.function import FlatModule
from mpi_ntkdfl.model.module.hidden import reason_of, refusal
from mpi_ntkdfl.model.module.plan import Pass
from mpi_ntkdfl.model.module.unchanged import random_states

SAMPLES, TOLERANCE = 8, 1e-9
"""Number of samples of a trial; relative error that is allowed for values that must be equal."""

T = TypeVar("T")


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether all values are equal; a buffer may hold nan on purpose."""
    return one.shape == other.shape and bool(
        ((one == other) | (one.ne(one) & other.ne(other))).all()
    )


def tried(task: Callable[[], T], what: str) -> T:
    """The result of a first pass.

    Raises:
        InputError: if the module fails.
    """
    try:
        return task()
    except Exception as error:  # whatever the user's code raises
        raise refusal(
            f"it fails on {what}: {reason_of(error)}",
            "it must take inputs of that shape and compute in the type and on the device of its "
            "parameters (x.to(weight.dtype) instead of x.float(); keep constant tensors as buffers, and "
            "make new ones with x.new_zeros)",
        ) from error


def described(inputs: torch.Tensor) -> str:
    """The inputs of a pass, for messages."""
    return f"{inputs.dtype} inputs of shape {list(inputs.shape)}".replace("torch.", "")


def refuse_wrong_outputs(
    function: FlatModule, params: torch.Tensor, inputs: torch.Tensor, classes: int
) -> None:
    """Refuses modules whose outputs have a wrong form or are random, and modules that a pass changes."""
    before = {name: each.clone() for name, each in function.constants(params).items()}
    own, given = params.clone(), inputs.clone()
    states = random_states(params.device)
    outputs: object = tried(lambda: function(own, given), described(inputs))
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
            "look for divisions and logarithms, and for inputs that are not finite",
        )
    if not torch.equal(given, inputs):
        raise refusal("a pass changes its inputs", "do not change them in place (x = x - y)")
    if not torch.equal(own, params):
        raise refusal(
            "a pass changes its parameters",
            "compute with changed copies of them instead (such as weight.clamp(...))",
        )
    first, second = function.twice(params, inputs)
    if not (torch.equal(outputs, first) and torch.equal(outputs, second)):
        raise refusal(
            "two passes give different outputs",
            "leave out what is random or remembers, or return the module in evaluation mode",
        )
    if random_states(params.device) != states:
        raise refusal(
            "a pass draws random numbers", "leave them out, or return the module in evaluation mode"
        )
    if any(not equal(old, function.constants(params)[name]) for name, old in before.items()):
        raise refusal("a pass changes its buffers", "return the module in evaluation mode")
    _refuse_lower_precision(function, params, inputs)


def _refuse_lower_precision(
    function: FlatModule, params: torch.Tensor, inputs: torch.Tensor
) -> None:
    """Refuses modules without gradients, and those that compute less precisely than their parameters.

    Torch lowers the precision of float32 by itself (autocast), so that type is tried as well.
    """
    done = Pass(function, params, inputs)
    if not done.outputs.requires_grad:
        raise refusal(
            "torch has no gradient of its outputs by any parameter",
            "do not detach them, nor compute them under torch.no_grad, and use a parameter",
        )
    passes = [(done, params.dtype)]
    single = inputs.float() if inputs.is_floating_point() else inputs
    with suppress(Exception):  # a module with constants in float64 may fail in float32
        passes.append((Pass(function, params.float(), single), torch.float32))
    for each, wanted in passes:
        found = {
            metadata.dtype
            for node in each.graph.nodes
            if not isinstance(node, BackwardCFunction)  # its integer outputs seem to be float32
            for metadata in getattr(node, "_input_metadata", ())
        }
        lower = [
            dtype for dtype in found if dtype.is_floating_point and dtype.itemsize < wanted.itemsize
        ]
        if lower:
            raise refusal(
                f"parts of it compute in {min(map(str, lower))} where its parameters are {wanted}",
                "compute in the type of the parameters (x.to(weight.dtype) instead of x.float(), no "
                "torch.autocast)",
            )


def refuse_mixed_samples(
    function: FlatModule, params: torch.Tensor, inputs: torch.Tensor, many: torch.Tensor
) -> None:
    """Refuses modules in which the outputs of a sample depend on other samples.

    The first sample is replaced, and the outputs of the others must stay the same. The last sample is
    also passed one by one, and `many` samples in parts. They must have the same outputs.
    """
    changed = inputs.clone()
    for other in inputs[1:]:
        if not torch.equal(other, inputs[0]):
            changed[0] = other
    with torch.no_grad():
        try:
            outputs = function(params, inputs)
        except Exception as error:
            raise refusal(
                f"it fails under torch.no_grad(): {reason_of(error)}",
                "use torch.enable_grad() where it computes gradients itself",
            ) from error
        others = function(params, changed)
        single = tried(lambda: function(params, inputs[-1:]), "a single sample")
        whole = tried(lambda: function(params, many), described(many))
        parts = torch.cat([function(params, part) for part in torch.split(many, SAMPLES)])
    if single.shape != outputs[-1:].shape:
        raise refusal(
            f"it returns the shape {list(single.shape)} for a single sample",
            f"return {list(outputs[-1:].shape)} (no squeeze() of all axes)",
        )
    differences = torch.cat([others[1:] - outputs[1:], single - outputs[-1:], parts - whole]).abs()
    if not bool(differences.max() <= TOLERANCE * max(outputs.abs().max(), whole.abs().max())):
        raise refusal(
            "a sample's outputs depend on the other samples of the batch",
            "each sample must be treated by itself; the batch is the first axis of inputs and outputs",
        )
