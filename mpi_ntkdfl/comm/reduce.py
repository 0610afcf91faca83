"""A mean over all clients whose bits depend only on the values.

Floating-point addition rounds, so a floating-point sum over ranks depends on the order of the additions.
The addition of integers does not round. So every number is scaled by a power of two and rounded once to
a 64-bit integer, and these integers are summed in any order and by any tree. The scale leaves 52 bits
below the largest magnitude for up to 1,024 clients (one bit less for every doubling of the clients or of
the sum of the shares). So the mean of float32 numbers has an error of about 2e-16 of the largest number.
This is also cheaper than gathering the vectors of all clients on one rank.

Integers represent neither NaN nor infinity. If there are such values, further reductions tell every rank
which entries have them. If there are none, these reductions do not take place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from mpi_ntkdfl.comm.world import World


def reduced_bytes(params: int, ranks: int) -> int:
    """Bytes that a rank sends for the mean of vectors of `params` numbers.

    Each rank sums its part of the entries: it sends the other ranks their parts, and then its sums to
    all other ranks.
    """
    return 2 * 8 * params * (ranks - 1) // ranks


def exact_mean(
    world: World, rows: torch.Tensor, total: int, shares: Sequence[int] | None = None
) -> torch.Tensor:
    """Mean over all clients of the world, on every rank.

    Args:
        world: the ranks.
        rows: vectors of this rank's clients, `[owned, param]`.
        total: sum of the shares of all clients of all ranks.
        shares: weight of each of `rows`, an integer; None for 1 each.

    Returns:
        `[param]`, of the rows' dtype and device. An entry is NaN if it is NaN in any row or if it has
        infinities of both signs; otherwise it is the infinity if a row has one; otherwise the mean.
    """
    largest = world.largest(_magnitude(rows))
    special: np.ndarray | None = None
    if math.isinf(largest):
        special = _special_entries(world, rows)
        rows = torch.where(torch.isfinite(rows), rows, 0)
        largest = world.largest(_magnitude(rows))
    # An int64 has a sign and 63 bits. The largest magnitude is below 2^frexp[1] and the shares sum to at
    # most 2^ceil(log2 total), so the scaled sum stays below 2^62; one bit is left for rounding.
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
    """`[param]` float64: the mean of the entries that have NaN or infinities, and 0 for all others."""
    kinds = (torch.isnan(rows), torch.isposinf(rows), torch.isneginf(rows))
    counts = torch.stack([kind.sum(dim=0) for kind in kinds])
    nan, positive, negative = world.total(counts.cpu().numpy()) > 0
    signed = np.where(positive, np.inf, np.where(negative, -np.inf, 0.0))
    return np.where(nan | (positive & negative), np.nan, signed)


def _scaled_sum(rows: torch.Tensor, shares: Iterable[int], exponent: int) -> torch.Tensor:
    """`sum_i shares_i round(2^exponent rows_i)`, `[param]` int64, on the rows' device."""
    total = torch.zeros(rows.shape[1], dtype=torch.int64, device=rows.device)
    # The factor is applied in two steps, because 2^exponent may be too large for a float64.
    first, second = 2.0 ** (exponent // 2), 2.0 ** (exponent - exponent // 2)
    for row, share in zip(rows, shares, strict=True):
        scaled = row.to(torch.float64, copy=True).mul_(first).mul_(second).round_()
        total.add_(scaled.long(), alpha=share)
    return total
