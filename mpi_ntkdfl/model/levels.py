"""Inputs that lie on 256 equally spaced levels, as pixels do, and products with them.

A level is a byte, and so is each of the three digits of a number in 24 bits of fixed point. Products of
bytes are summed exactly, so that no tiling, alignment or library shows in their bits, and on processors
that multiply bytes the Gram matrix takes a quarter of the time, a product with weights three quarters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch

# Three bytes of which each counts from -128.
_LARGEST, _MIDDLES = 0x7F0000, 0x808080

LEAST_FEATURES = 256
"""With fewer, finding levels and digits costs what the products gain."""


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
    def of_bytes(cls, offset: float, step: float) -> Levels:
        """Those of inputs `(byte + offset) step`."""
        return cls(offset + 128, step)

    def take(self, stored: np.ndarray) -> LevelInputs:
        """The inputs whose bytes are `stored` `[sample, feature]`."""
        return LevelInputs(self, torch.from_numpy((stored ^ 0x80).view(np.int8)))

    def find(self, inputs: torch.Tensor) -> LevelInputs:
        """`inputs` `[sample, feature]`, all on these levels but for rounding, by their numbers."""
        # Which is far less than half a step.
        numbers = inputs.mul(1 / self.step).sub_(self.offset).round_().to(torch.int8)
        return LevelInputs(self, numbers)


class PlainWeights:
    """A matrix as it is, to multiply plain inputs."""

    def __init__(self, matrix: torch.Tensor) -> None:
        """Keeps `matrix` `[row, feature]`."""
        self.matrix = matrix

    def times(self, inputs: Inputs) -> torch.Tensor:
        """The product with inputs x, `matrix x^T` `[row, sample]`."""
        assert isinstance(inputs, torch.Tensor)
        return torch.mm(self.matrix, inputs.T)


class FixedPoint:
    """A matrix to multiply inputs on levels, each entry rounded to 24 bits of the largest in its row."""

    def __init__(self, matrix: torch.Tensor) -> None:
        """Rounds `matrix` `[row, feature]`, float32, on a little-endian CPU."""
        rows, columns = matrix.shape
        # A row of zeros must not divide by zero, nor by what overflows.
        largest = matrix.abs().amax(1, keepdim=True).clamp_(min=2.0**-100)
        self.unit = largest / _LARGEST
        whole = (matrix * (_LARGEST / largest)).round_().to(torch.int32)
        self.sums = whole.sum(1, keepdim=True)
        # The bytes of n + sum 128 * 256^k are the digits of n plus 128 each.
        digits = whole.add_(_MIDDLES).bitwise_xor_(_MIDDLES).view(torch.int8)
        self.digits = digits.view(rows, columns, 4)[..., :3].permute(2, 0, 1).reshape(-1, columns)

    def times(self, inputs: Inputs) -> torch.Tensor:
        """The product with inputs x, `matrix x^T` `[row, sample]`."""
        assert isinstance(inputs, LevelInputs)
        products = torch._int_mm(self.digits, inputs.numbers.T)
        low, middle, high = products.view(3, -1, len(inputs))
        scale = self.unit * inputs.levels.step
        found: torch.Tensor = high.float().mul_(256).add_(middle).mul_(256).add_(low).mul_(scale)
        return found.add_((scale.double() * inputs.levels.offset * self.sums).float())


@dataclass(frozen=True)
class LevelInputs:
    """Inputs `[sample, feature]` on levels, float32, for CPUs where `multiplies_bytes`.

    They have fewer than 2^17 features, with which sums would overflow.

    Attributes:
        levels: where they lie.
        numbers: which they have, `[sample, feature]` int8.
    """

    levels: Levels
    numbers: torch.Tensor

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.numbers)

    def __getitem__(self, samples: slice) -> LevelInputs:
        """A range of samples."""
        return LevelInputs(self.levels, self.numbers[samples])

    def gram(self, rows: slice, columns: slice) -> torch.Tensor:
        """A block of `x x^T + 1`, the last for the constant input of a bias."""
        products = torch._int_mm(self.numbers[rows], self.numbers[columns].T)
        found = products.float().mul_(self.levels.step**2).add_(self._halves[rows, None])
        return found.add_(self._halves[columns])

    @cached_property
    def _halves(self) -> torch.Tensor:
        """Numbers h `[sample]` such that x_i x_j + 1 = q_i q_j step^2 + h_i + h_j."""
        offset, features = self.levels.offset, self.numbers.shape[1]
        sums = self.numbers.sum(1, dtype=torch.int32).double()
        halves = self.levels.step**2 * (offset * sums + features * offset**2 / 2) + 0.5
        return halves.float()


Inputs = torch.Tensor | LevelInputs
"""What a network is given, `[sample, feature]`."""


def prepared(matrix: torch.Tensor, like: Inputs) -> PlainWeights | FixedPoint:
    """`matrix` `[row, feature]` in the form that multiplies inputs of the kind of `like`."""
    return FixedPoint(matrix) if isinstance(like, LevelInputs) else PlainWeights(matrix)


@cache
def multiplies_bytes() -> bool:
    """Whether torch multiplies matrices of bytes on this CPU, and exactly.

    Tried, not looked up: the function is one of torch's internal ones, and without the processor's
    VNNI instructions its library sums pairs of products in 16 bits, which the largest of them overflow.
    """
    for rows, columns, depth in ((1, 1, 64), (33, 70, 784), (128, 300, 1024)):
        cycle = torch.arange(columns * depth) * 7919 % 256 - 128
        b = cycle.view(columns, depth).to(torch.int8)
        b[0], b[-1] = -128, 127
        a = b.new_full((rows, depth), -128)
        a[rows // 2] = b[columns // 2]
        try:
            found = torch._int_mm(a, b.T)
        except (AttributeError, RuntimeError):
            return False
        if not torch.equal(found.double(), a.double() @ b.double().T):
            return False
    return True
