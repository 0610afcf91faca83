"""Sums of residuals over the integer steps inside an integration step, for many clients at once."""

from __future__ import annotations

import math

import numpy as np
import torch

from mpi_ntkdfl.ntk import scheme

_OF_LENGTH = (-1, 0, 0, 1, 1)
"""The powers of the step's length that go with the weights of `scheme.LEFT_SUM`."""

# (x + h j)^k by the binomial theorem: what x^a and h^i sum_j j^i contribute to each weight.
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
    """Weights that turn end values of steps into the left sums of g over them; see `evolve`."""

    def __init__(self, device: torch.device) -> None:
        """Puts the coefficients on a device."""

        def on_device(numbers: object) -> torch.Tensor:
            return torch.tensor(numbers, dtype=torch.float64, device=device)

        self.powers, self.lengths = on_device(range(6)), on_device(_OF_LENGTH)
        self.sums = on_device(scheme.POWER_SUMS).T.contiguous()
        self.binomial = on_device(_BINOMIAL.reshape(5, 25).T)

    def weights(self, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """The five weights `[client, 5]` for the integers in [start, end) `[client]`; zero if none."""
        first, step = start.ceil(), torch.where(end > start, end - start, 1.0)[:, None]
        n = (end.ceil() - first)[:, None]
        x, h = (first - start)[:, None] / step, 1 / step
        powers = self.powers[:5]
        sums = n**self.powers @ self.sums * h**powers
        both = ((x**powers)[:, :, None] * sums[:, None, :]).flatten(1)
        return both @ self.binomial * step**self.lengths
