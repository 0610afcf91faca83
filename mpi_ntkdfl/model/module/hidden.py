"""Refuses modules whose outputs depend on parameters in ways that autograd does not see."""

from __future__ import annotations

import torch
from torch.autograd.function import BackwardCFunction

from mpi_ntkdfl.model.module.function import FlatModule
from mpi_ntkdfl.model.module.plan import Pass
from mpi_ntkdfl.runtime import seeds
from mpi_ntkdfl.runtime.errors import InputError

_STEP, _TOLERANCE = 1e-6, 1e-4
"""Step of the differences, in standard normal directions; their largest relative error."""


def refusal(what: str, way_out: str) -> InputError:
    """The error for a module that cannot be a network: what is wrong with it, and what to do."""
    return InputError(f"the module cannot be a network: {what}; {way_out}")


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
    own = sorted({node.name() for node in done.graph.nodes if isinstance(node, BackwardCFunction)})
    if own and not _agree(function, params, inputs, done, None):
        raise refusal(
            f"the backward pass of its autograd function {', '.join(own)} is not the derivative of the "
            "forward pass",
            "pass every parameter that it reads to its apply(), and return the gradient of each",
        )


def _agree(
    function: FlatModule,
    params: torch.Tensor,
    inputs: torch.Tensor,
    done: Pass,
    only: str | None,
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
