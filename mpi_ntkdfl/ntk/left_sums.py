"""Sums of residuals over the integer steps inside an integration step, for many clients at once."""

from __future__ import annotations

import math

import numpy as np
import torch

from mpi_ntkdfl.ntk import scheme

_OF_LENGTH = (-1, 0, 0, 1, 1)
"""The power of the step's length by which each weight of `scheme.LEFT_SUM` is multiplied."""

# The contribution of each product of x^a and h^i sum_j j^i to each weight, from (x + h j)^k by the
# binomial theorem.
_BINOMIAL = np.array(
    [
        [
            [row[a + i] * math.comb(a + i, i) if a + i < 5 else 0.0 for i in range(5)]
            for a in range(5)
        ]
        for row in scheme.LEFT_SUM
    ]
)


class LeftSums:
    """Weights by which the values at both ends of a step give the left sum of g; see `evolve`."""

    def __init__(self, device: torch.device) -> None:
        """Puts the coefficients on a device."""

        def on_device(numbers: object) -> torch.Tensor:
            return torch.tensor(numbers, dtype=torch.float64, device=device)

        self.powers, self.lengths = on_device(range(6)), on_device(_OF_LENGTH)
        self.sums = on_device(scheme.POWER_SUMS).T.contiguous()
        self.binomial = on_device(_BINOMIAL.reshape(5, 25).T)

    def weights(self, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """The weights `[client, 5]` of the left sum over the integers u in [start, end).

        Args:
            start: u at the starts of the steps, `[client]`.
            end: u at their ends, `[client]`. The weights are zero where the step contains no integer.
        """
        first, step = start.ceil(), torch.where(end > start, end - start, 1.0)[:, None]
        n = (end.ceil() - first)[:, None]
        x, h = (first - start)[:, None] / step, 1 / step
        powers = self.powers[:5]
        sums = n**self.powers @ self.sums * h**powers
        both = ((x**powers)[:, :, None] * sums[:, None, :]).flatten(1)
        return both @ self.binomial * step**self.lengths
