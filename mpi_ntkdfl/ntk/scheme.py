"""Numbers of the scheme that evolves outputs; `evolve` explains it."""

from __future__ import annotations

import math

import torch

# Bounds of the local estimates, in tolerances.  The estimates belong to the lower order of each
# method and are pessimistic for the result that is kept; measured in the tests.
INNER_FRACTION = 1.5
OUTER_FRACTION = 1.5
# The extrapolation error grows like s^2 (s + d)^2; its mean over a step is a quarter of its end.
MEAN_OVER_END = 0.25
# |P| <= 0.9 from -2 to -9.77 for the pair's stability polynomial P; the rest allows the power
# iteration to be 30 % low.
STABLE = 7.5
RANK, PASSES = 32, 2
SAFETY, SHRINK, GROW = 0.8, 0.2, 3.0
# The first step and the shift of u in the path's logarithm, in longest stable inner steps: the
# scales on which the fast directions start to move and have settled.
FIRST, SHIFT = 0.007, 0.15
# The longest step in the shift, which is finite where nothing moves.
LONGEST_SHIFT = 1e6
ENDS = 3
INNER_ORDER, OUTER_ORDERS = 4.0, (2.5, 4.5, 5.5)

# Stages, the last of them the result, and the difference from the embedded result of order 3.
# Coefficients: the polynomial of degree 6 that agrees with exp to order 4 and stays below 0.9 in
# absolute value the furthest; then least squares on the error terms of order 5, on the stages'
# own errors of order 2 and on their growth, subject to the conditions of order 4.
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

# The integers [start, end) that a step of length 1 meets lie at theta in [0, 1). The weights of the
# left sum over them, from the sums of theta^0 to theta^4; see `evolve`.
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
# Directions below these shares of the largest are left out of the basis and of the factor: rounding may
# have turned them, and would make K' indefinite.
LEAST_IN_BASIS, LEAST_IN_FACTOR = 1e-12, 1e-5
# Inner steps tried, after which an evolution is given up: one that diverges can need any number. The
# paper's evolutions need up to 120, the stiffest tests 640, and the paper's kernels at 1,000 and 10,000
# times the paper's learning rate up to 2,900 and 4,000.
MOST_TRIALS = 10_000


def too_many(u: float) -> str:
    """Why an evolution was given up at u."""
    return f"not done after {MOST_TRIALS:,} inner steps, at u = {u:g}"


def collapsed(u: float) -> str:
    """Why an evolution was given up at u, whose steps no longer moved it."""
    return f"the step size collapsed at u = {u:g}"


def bounds(tolerance: float, dtype: torch.dtype) -> tuple[float, float]:
    """Bounds of the local errors of inner and outer steps, relative to the update.

    Args:
        tolerance: of the update.
        dtype: its rounding is the least that can be asked for.
    """
    reachable = max(tolerance, 4 * torch.finfo(dtype).eps)
    return INNER_FRACTION * reachable, OUTER_FRACTION * reachable


def start(samples: int, like: torch.Tensor) -> torch.Tensor:
    """Rows `[rank, sample]` from which the subspace iteration starts: a fixed function of N.

    Args:
        samples: N.
        like: any tensor of the type and device.
    """
    row = torch.arange(1, min(RANK, samples) + 1, dtype=torch.float64, device=like.device)
    column = torch.arange(1, samples + 1, dtype=torch.float64, device=like.device)
    # Quadratic phases at an irrational rate are spread evenly and repeat for no N.
    phase = torch.outer(row, column * (column + 1)) * ((math.sqrt(5) - 1) / 2)
    return torch.cos(phase).to(like.dtype)
