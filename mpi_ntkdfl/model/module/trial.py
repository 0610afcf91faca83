"""Whether the fast form of a module's kernel may be used: it is compared with the generic form."""

from __future__ import annotations

from dataclasses import replace

import torch

from mpi_ntkdfl.model.module.fast import OtherGraph
from mpi_ntkdfl.model.module.function import FlatModule
from mpi_ntkdfl.model.module.jacobian import Limits, ModuleJacobian
from mpi_ntkdfl.model.module.plan import Plan, planned

_TOLERANCE = 1e-9
"""Largest difference, relative to the largest entry of the kernel, in float64."""


def right_plan(
    function: FlatModule,
    params: torch.Tensor,
    inputs: torch.Tensor,
    gram: torch.Tensor,
    activations: int,
    vectorised: bool,
) -> tuple[Plan | None, str]:
    """What the fast form of the kernel serves, and a sentence about it.

    The fast form must give the same kernel as the generic form, also for half of the samples.

    Args:
        function: the module.
        params: `[P]` float64.
        inputs: samples for the trial, `[sample, *shape]`.
        gram: `sum_c J_c J_c^T` `[sample, sample]` by the generic form.
        activations: how many numbers autograd keeps from a pass of one sample.
        vectorised: whether torch computes gradients of several samples together.
    """
    try:
        plan = planned(function, params, inputs, activations)
    except Exception as failure:  # torch may change what it keeps in its graph
        return None, f"generic: {_failed(failure)}"
    if not plan.pays:
        return None, f"generic: there is no fast form for the use of {', '.join(plan.rest[:3])}"
    reason = ""
    for each in (plan, replace(plan, folded=False)) if plan.folded else (plan,):
        reason = _wrong(function, params, inputs, gram, each, vectorised)
        if not reason:
            generic = f", generic for {', '.join(plan.rest[:3])}" if plan.rest else ""
            single = "" if each.folded else ", one output at a time"
            return each, f"fast{single}{generic}"
    return None, f"generic: {reason}"


def _wrong(
    function: FlatModule,
    params: torch.Tensor,
    inputs: torch.Tensor,
    gram: torch.Tensor,
    plan: Plan,
    vectorised: bool,
) -> str:
    """Why a plan may not serve; empty if it may."""
    try:
        for samples in (len(inputs), -(-len(inputs) // 2)):
            part, some = gram[:samples, :samples], inputs[:samples]
            limits = Limits(room=2**25, at_once=samples, vectorised=vectorised)
            jacobian = ModuleJacobian(
                function, params, some, plan.classes, limits, plan, strict=True
            )
            error = float(
                (jacobian.trace_gram() - part).abs().max() / part.abs().max().clamp(min=1e-300)
            )
            if not error <= _TOLERANCE:
                return f"the fast form failed its check, its error was {error:.0e}"
    except OtherGraph:
        return "the operations depend on the number of samples"
    except Exception as failure:
        return _failed(failure)
    return ""


def _failed(failure: Exception) -> str:
    reason = str(failure).strip().split("\n")[0]
    return f"the fast form failed ({type(failure).__name__}: {reason})"
