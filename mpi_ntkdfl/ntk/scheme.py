"""The constants of the scheme that evolves outputs. `evolve` explains the scheme."""

from __future__ import annotations

import math

import torch

# Bounds of the estimated local errors, in units of the tolerance. The estimates are those of the lower
# order of each method; the result that is kept has a smaller error. Tests measure it.
INNER_FRACTION = 1.5
OUTER_FRACTION = 1.5
# The extrapolation's error grows like s^2 (s + d)^2 over a step; its mean is a quarter of its end value.
MEAN_OVER_END = 0.25
# The pair's stability polynomial P satisfies |P| <= 0.9 from -2 to -9.77. The bound is lower, because the
# power iteration may underestimate the spectral radius by up to 30 %.
STABLE = 7.5
RANK, PASSES = 32, 2
SAFETY, SHRINK, GROW = 0.8, 0.2, 3.0
# The first step, and the shift of u in the path's logarithm, in units of the longest stable inner step.
# On these two time scales the fast directions start to change and have settled.
FIRST, SHIFT = 0.007, 0.15
# Upper bound of the longest stable step from which the shift is computed. Where nothing changes, that
# step is infinite, and the shift must be finite.
LONGEST_SHIFT = 1e6
ENDS = 3
INNER_ORDER, OUTER_ORDERS = 4.0, (2.5, 4.5, 5.5)

# The Runge-Kutta pair. STAGES has one row of coefficients per stage; the last row gives the result. ERROR
# gives the difference from the embedded result of order 3. How the coefficients were found: the stability
# polynomial is the one of degree 6 that agrees with exp to order 4 and stays below 0.9 in absolute value
# furthest. Subject to it and to the conditions of order 4, least squares minimise the error terms of
# order 5, the stages' own errors of order 2, and the growth of these errors.
STAGES = (
    (0.1565796949303249,),
    (0.07150196155762101, 0.1741259449894775),
    (-0.0705866034261095, 0.2378456966155731, 0.28051456780779),
    (-0.1276891409237598, 0.08889275534553386, 0.3947538078850438, 0.3946536601383482),
    (
        *(0.2351567246841404, -0.1156356470823768, 0.1329563847944102, 0.3446507434848805),
        0.2501014484367351,
    ),
    (
        *(0.07569172230973134, -0.0002191090216965758, 0.3158288974324857, 0.2178966552199592),
        *(0.06426682327425817, 0.3265350107852623),
    ),
)
ERROR = (
    *(-0.0885925374765009, -0.1846440005392028, 0.486748525153158, -0.1704094817460717),
    *(-0.028898634076223, -0.141080153749879, 0.1268762824347194),
)

# The integers u in [start, end) lie at theta in [0, 1), if the step is scaled to length 1. Each row gives
# one weight of the left sum over them, from the sums of theta^0 to theta^4; see `evolve`.
LEFT_SUM = (
    (0, 0, 30, -60, 30),
    (1, 0, -18, 32, -15),
    (0, 0, -12, 28, -15),
    (0, 1, -4.5, 6, -2.5),
    (0, 0, 1.5, -4, 2.5),
)
# Sums of j^0 to j^4 over j = 0 to n - 1, from n^0 to n^5 (Faulhaber).
POWER_SUMS = (
    (0, 1, 0, 0, 0, 0),
    (0, -1 / 2, 1 / 2, 0, 0, 0),
    (0, 1 / 6, -1 / 2, 1 / 3, 0, 0),
    (0, 0, 1 / 4, -1 / 2, 1 / 4, 0),
    (0, -1 / 30, 0, 1 / 3, -1 / 2, 1 / 5),
)
# Eigenvalues below these fractions of the largest one are left out of the basis and of the factor.
# Rounding may have changed their directions, so that K' would not be positive semidefinite.
LEAST_IN_BASIS, LEAST_IN_FACTOR = 1e-12, 1e-5
# After this many inner steps an evolution is given up, because one that diverges may need any number.
# The paper's evolutions need up to 120 and the stiffest tests 640. The paper's kernels need up to 2,900
# and 4,000 at 1,000 and 10,000 times the paper's learning rate.
MOST_TRIALS = 10_000


def too_many(u: float) -> str:
    """The reason of an evolution that was given up at u after too many inner steps."""
    return f"not done after {MOST_TRIALS:,} inner steps, at u = {u:g}"


def collapsed(u: float) -> str:
    """The reason of an evolution that was given up at u because its steps were too short to change u."""
    return f"the step size collapsed at u = {u:g}"


def bounds(tolerance: float, dtype: torch.dtype) -> tuple[float, float]:
    """Bounds of the local errors of inner and of outer steps, relative to the update.

    Args:
        tolerance: bound of the update's relative error.
        dtype: type of the numbers. Its rounding error limits the bounds from below.
    """
    reachable = max(tolerance, 4 * torch.finfo(dtype).eps)
    return INNER_FRACTION * reachable, OUTER_FRACTION * reachable


def start(samples: int, like: torch.Tensor) -> torch.Tensor:
    """The rows `[rank, sample]` from which the subspace iteration starts. They depend only on N.

    Args:
        samples: N.
        like: any tensor with the type and device that the rows should have.
    """
    row = torch.arange(1, min(RANK, samples) + 1, dtype=torch.float64, device=like.device)
    column = torch.arange(1, samples + 1, dtype=torch.float64, device=like.device)
    # Phases that grow quadratically at an irrational rate are spread evenly and never repeat.
    phase = torch.outer(row, column * (column + 1)) * ((math.sqrt(5) - 1) / 2)
    return torch.cos(phase).to(like.dtype)
