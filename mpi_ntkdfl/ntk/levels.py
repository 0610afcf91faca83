"""Inputs that lie on 256 equally spaced levels, as pixels do, and the exact Gram matrix of them.

Products of the levels' numbers are sums of integers: exact, so that no tiling, alignment or library
shows in their bits, and three to five times as fast where the processor multiplies bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

MOST_FEATURES = 1024
"""Up to here a product of levels is below 2^24, an integer that float32 holds exactly."""


@dataclass(frozen=True)
class Levels:
    """Inputs `x = (q + offset) step` with integers q in -128..127.

    Attributes:
        offset: one for all features.
        step: likewise.
    """

    offset: float
    step: float

    @classmethod
    def of_bytes(cls, grid: tuple[float, float], features: int) -> Levels | None:
        """Of inputs `(byte + offset) step`, given `(offset, step)`; None if there are too many."""
        offset, step = grid
        return cls(offset + 128, step) if features <= MOST_FEATURES else None

    def of(self, inputs: torch.Tensor) -> torch.Tensor:
        """Q of `inputs` `[sample, feature]`, as int8."""
        # Inputs are off their levels by rounding, so by far less than half a step.
        return inputs.mul(1 / self.step).sub_(self.offset).round_().to(torch.int8)


class LevelGram:
    """`x x^T + 1` of inputs on levels, block by block."""

    def __init__(self, levels: Levels, inputs: torch.Tensor) -> None:
        """Finds the levels.

        Args:
            levels: that all inputs lie on.
            inputs: x `[sample, feature]` on a CPU, of at most `MOST_FEATURES` features.
        """
        self._numbers, self._square = levels.of(inputs), levels.step**2
        # (q_i + o).(q_j + o) = q_i.q_j + h_i + h_j with h_i = o sum(q_i) + d o^2 / 2.
        sums = self._numbers.sum(1, dtype=torch.int32).double()
        halves = levels.offset * sums + inputs.shape[1] * levels.offset**2 / 2
        self._halves = (self._square * halves + 0.5).to(inputs.dtype)

    def block(self, rows: slice, columns: slice) -> torch.Tensor:
        """Entries `[row, column]`."""
        kind, products = self._halves.dtype, _products(self._numbers[rows], self._numbers[columns])
        found = products.to(kind).mul_(self._square).add_(self._halves[rows, None])
        return found.add_(self._halves[columns])


def _products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a b^T` of int8 `[n, d]` and `[m, d]`, exact, in some type that holds it."""
    return torch._int_mm(a, b.T) if multiplies_bytes() else a.float() @ b.float().T


@cache
def multiplies_bytes() -> bool:
    """Whether torch multiplies matrices of bytes on this CPU, and exactly.

    Tried, not looked up: the function is one of torch's internal ones, and without the processor's
    VNNI instructions its library sums pairs of products in 16 bits, which the largest of them overflow.
    """
    for rows, columns, depth in ((1, 1, 64), (33, 70, 784), (128, 300, MOST_FEATURES)):
        cycle = torch.arange(columns * depth) * 7919 % 256 - 128
        b = cycle.view(columns, depth).to(torch.int8)
        b[0], b[-1] = -128, 127
        a = b.new_full((rows, depth), -128)
        a[rows // 2] = b[0] if columns == 1 else b[1]
        try:
            found = torch._int_mm(a, b.T)
        except (AttributeError, RuntimeError):
            return False
        if not torch.equal(found.double(), a.double() @ b.double().T):
            return False
    return True
