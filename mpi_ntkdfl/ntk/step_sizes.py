"""Errors and step sizes of many clients at once, for `evolve_batch`. Arrays are `[client]`."""

from __future__ import annotations

import torch

from mpi_ntkdfl.ntk import scheme


def relative(square: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """The square root of `|square / size|` `[client]`; 0 where `square` is 0."""
    return torch.where(square == 0, 0.0, (square / size).abs_().sqrt_())


def _factor(error: torch.Tensor, order: torch.Tensor | float) -> torch.Tensor:
    """Factors by which the next steps may be longer, from the last steps' errors `[client]`."""
    free = scheme.SAFETY * error.clamp(min=1e-10) ** (-1.0 / order)
    return torch.where(error.isfinite(), free.clamp(scheme.SHRINK, scheme.GROW), scheme.SHRINK)


def share(left: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Lengths of the next steps: `step`, or an equal share of `left` if less than two are left."""
    ratio = left / step
    equal = left / (ratio - 1e-9).ceil_().clamp_(min=1)
    return torch.where(ratio >= 2, step, equal)


def adapted(
    step: torch.Tensor, trial: torch.Tensor, error: torch.Tensor, order: torch.Tensor | float
) -> torch.Tensor:
    """Step sizes `[client]` after the steps `trial`, whose errors are given relative to their bounds."""
    wanted = trial * _factor(error, order)
    cut_short = (error <= 1) & (trial < step)
    return torch.where(cut_short, torch.maximum(step, wanted), wanted)
