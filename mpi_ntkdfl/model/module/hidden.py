"""Refuses modules whose gradients are not those of their outputs by their parameters."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.autograd.function import BackwardCFunction

from mpi_ntkdfl.model.module.function import FlatModule
from mpi_ntkdfl.model.module.plan import Pass
from mpi_ntkdfl.runtime import seeds
from mpi_ntkdfl.runtime.errors import InputError

_STEP, _TOLERANCE = 1e-6, 1e-4
"""Step of the differences, in standard normal directions; their largest relative error."""
_EQUAL = 1e-9
"""Largest relative error of gradients that must be equal."""


def refusal(what: str, way_out: str) -> InputError:
    """The error for a module that cannot be a network: what is wrong with it, and what to do."""
    return InputError(f"the module cannot be a network: {what}; {way_out}")


def reason_of(error: Exception) -> str:
    """The first sentence of another library's error, which may be a page."""
    lines = str(error).strip().splitlines() or [""]
    text = lines[0].split(". ")[0]
    return f"{type(error).__name__}: {text if len(text) <= 160 else text[:157] + '...'}"


def refuse_hidden_parameters(
    function: FlatModule, params: torch.Tensor, inputs: torch.Tensor
) -> None:
    """Compares derivatives with differences of outputs, where they may disagree.

    These are the derivatives by each parameter for which torch has no gradient; and by all parameters
    if the module has autograd functions of its own.

    Args:
        function: the module.
        params: `[P]` float64.
        inputs: samples for the trial, `[sample, *shape]`.

    Raises:
        InputError: with the name of the parameter or the autograd function.
    """
    done = Pass(function, params, inputs)
    for name, uses in done.consumers(done.leaves).items():
        if not uses and not _agree(function, params, inputs, done, name):
            raise refusal(
                f"its outputs depend on parameter {name}, but torch has no gradient for it",
                "pass it to the apply() of the autograd function that reads it, do not detach it, or "
                "set its requires_grad to False",
            )
    own = sorted(
        {
            step.operation
            for node, step in zip(done.graph.nodes, done.graph.steps, strict=True)
            if isinstance(node, BackwardCFunction)
        }
    )
    if own and not _agree(function, params, inputs, done, None):
        raise refusal(
            f"the backward pass of its autograd function {', '.join(own)} is not the derivative of the "
            "forward pass",
            "pass every parameter that it reads to its apply(), and return the gradient of each",
        )


def refuse_other_gradients(
    function: FlatModule, params: torch.Tensor, inputs: torch.Tensor
) -> None:
    """Refuses modules that do not compute with the parameters they are called with.

    Gradients at `params` are compared with those of the module itself, which holds `params` meanwhile.

    Args:
        function: the module.
        params: `[P]` float64, other than the module's own.
        inputs: samples for the trial, `[sample, *shape]`.

    Raises:
        InputError: if they differ.
    """
    done = Pass(function, params, inputs)
    generator = seeds.generator(0, "weights of outputs")
    weights = torch.from_numpy(generator.standard_normal(done.outputs.shape)).to(params)

    def gradient(outputs: torch.Tensor, leaves: Iterable[torch.Tensor]) -> torch.Tensor:
        found = torch.autograd.grad(
            outputs, list(leaves), weights, allow_unused=True, materialize_grads=True
        )
        return torch.cat([each.flatten() for each in found])

    try:
        own = gradient(done.outputs, done.leaves.values())
        with function.holding(params) as held:
            wanted = gradient(function.module(inputs), held.values())
        right = bool((own - wanted).abs().max() <= _EQUAL * wanted.abs().max())
    except RuntimeError:
        right = False
    if not right:
        raise refusal(
            "its gradients are not those for the parameters it is called with",
            "do not recompute parts of it in the backward pass (checkpoint), since memory is limited "
            "anyway; and do not keep copies of parameters",
        )


def _agree(
    function: FlatModule, params: torch.Tensor, inputs: torch.Tensor, done: Pass, only: str | None
) -> bool:
    """Whether the derivative along a random direction of one or all parameters is that of differences."""
    generator = seeds.generator(0, "a direction of parameters")
    direction = torch.from_numpy(generator.standard_normal(len(params))).to(params)
    weights = torch.from_numpy(generator.standard_normal(done.outputs.shape)).to(params)
    by_name = function.layout.unflatten(direction)
    for name, part in by_name.items():
        if only not in (None, name):
            part.zero_()
    with torch.no_grad():
        after, before = (function(params + sign * _STEP * direction, inputs) for sign in (1, -1))
    differences = weights * (after - before) / (2 * _STEP)
    gradients = torch.autograd.grad(
        done.outputs, list(done.leaves.values()), weights, retain_graph=True, allow_unused=True
    )
    slope = sum(
        float((gradient * part).sum())
        for gradient, part in zip(gradients, by_name.values(), strict=True)
        if gradient is not None
    )
    return abs(float(differences.sum()) - slope) <= _TOLERANCE * float(differences.abs().sum())
