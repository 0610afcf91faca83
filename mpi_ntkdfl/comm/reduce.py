"""A mean over all clients whose bits depend on nothing but the values.

Floating-point addition rounds, so a sum over ranks depends on who adds what first. Integers do not:
every number is scaled by a power of two, rounded once to a 64-bit integer, and integers are summed,
in any order and by any tree. The scale leaves 52 bits below the largest magnitude for up to 1,024
clients (one bit less for every doubling; likewise for shares), so the mean of float32 numbers is
exact to about 2e-16 of the largest of them, and cheaper than gathering all clients on one rank.

Integers know neither NaN nor infinity. Where there are any, further reductions tell every rank which
entries have them; otherwise these cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from mpi_ntkdfl.comm.world import World


def reduced_bytes(params: int, ranks: int) -> int:
    """Bytes that a rank sends for the mean of vectors of `params` numbers.

    Each rank sums a share of the entries: it sends the others their shares, then its sums to all others.
    """
    return 2 * 8 * params * (ranks - 1) // ranks


def exact_mean(
    world: World, rows: torch.Tensor, total: int, shares: Sequence[int] | None = None
) -> torch.Tensor:
    """Mean over all clients of the world, on every rank.

    Args:
        world: the ranks.
        rows: this rank's clients' vectors, `[owned, param]`.
        total: what the shares of all clients of all ranks add up to.
        shares: how much each of `rows` counts, None for 1 each.

    Returns:
        `[param]`, of the rows' dtype and device: NaN where any row is NaN or infinities of both signs
        meet, else the infinity that a row has, else the mean.
    """
    largest = world.largest(_magnitude(rows))
    special: np.ndarray | None = None
    if math.isinf(largest):
        special = _special_entries(world, rows)
        rows = torch.where(torch.isfinite(rows), rows, 0)
        largest = world.largest(_magnitude(rows))
    # 2^62 leaves the sign and one bit; shares that add up to `total` of at most 2^exponent fit below.
    exponent = 62 - math.ceil(math.log2(total)) - math.frexp(largest)[1]
    own = _scaled_sum(rows, shares or [1] * len(rows), exponent)
    summed = world.total(own.cpu().numpy())
    mean = np.ldexp(summed.astype(np.float64), -exponent) / total
    if special is not None:
        mean = mean + special
    return torch.from_numpy(mean).to(dtype=rows.dtype, device=rows.device)


def _magnitude(rows: torch.Tensor) -> float:
    """The largest magnitude; infinity if an entry is not finite."""
    largest = float(rows.abs().max()) if rows.numel() else 0.0
    return largest if math.isfinite(largest) else math.inf


def _special_entries(world: World, rows: torch.Tensor) -> np.ndarray:
    """`[param]` float64: NaN or an infinity where the mean is none of finite numbers, else 0."""
    kinds = (torch.isnan(rows), torch.isposinf(rows), torch.isneginf(rows))
    counts = torch.stack([kind.sum(dim=0) for kind in kinds])
    nan, positive, negative = world.total(counts.cpu().numpy()) > 0
    signed = np.where(positive, np.inf, np.where(negative, -np.inf, 0.0))
    return np.where(nan | (positive & negative), np.nan, signed)


def _scaled_sum(rows: torch.Tensor, shares: Iterable[int], exponent: int) -> torch.Tensor:
    """`sum_i shares_i round(2^exponent rows_i)`, `[param]` int64, on the rows' device."""
    total = torch.zeros(rows.shape[1], dtype=torch.int64, device=rows.device)
    # In two steps, because 2^exponent by itself may be beyond what a float64 holds.
    first, second = 2.0 ** (exponent // 2), 2.0 ** (exponent - exponent // 2)
    for row, share in zip(rows, shares, strict=True):
        scaled = row.to(torch.float64, copy=True).mul_(first).mul_(second).round_()
        total.add_(scaled.long(), alpha=share)
    return total
