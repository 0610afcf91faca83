"""Inputs that lie on 256 equally spaced levels, such as pixels, and products with them.

A level is a byte. A weight is rounded to 24 bits of fixed point, which are three digits of one byte each.
Products of bytes are summed exactly, so the bits of the result do not depend on tiles, alignment or the
library. On processors with instructions for products of bytes, the Gram matrix takes a quarter of the
time, and a product with weights takes two thirds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch

from mpi_ntkdfl.model.compiled_levels import CompiledFixedPoint, find

# The largest number of three digits that go from -128 to 127, and 128 at each of the three digits.
_LARGEST, _MIDDLES = 0x7F0000, 0x808080

LEAST_FEATURES = 256
"""With fewer features, the time to compute levels and digits is as long as the time that is gained."""


@dataclass(frozen=True)
class Levels:
    """Inputs `x = (q + offset) step` with integers q in -128..127.

    Attributes:
        offset: the same for all features.
        step: the same for all features.
    """

    offset: float
    step: float

    @classmethod
    def of_bytes(cls, offset: float, step: float) -> Levels:
        """The levels of inputs `(byte + offset) step`."""
        return cls(offset + 128, step)

    def take(self, stored: np.ndarray) -> LevelInputs:
        """The inputs whose bytes are `stored` `[sample, feature]`."""
        return LevelInputs(self, torch.from_numpy((stored ^ 0x80).view(np.int8)))

    def find(self, inputs: torch.Tensor) -> LevelInputs:
        """The level numbers of `inputs` `[sample, feature]`, which lie on these levels up to rounding."""
        # Rounding errors are far smaller than half a step.
        numbers = inputs.mul(1 / self.step).sub_(self.offset).round_().to(torch.int8)
        return LevelInputs(self, numbers)


class PlainWeights:
    """A matrix that multiplies plain inputs."""

    def __init__(self, matrix: torch.Tensor) -> None:
        """Keeps `matrix` `[row, feature]`."""
        self.matrix = matrix

    def times(self, inputs: Inputs) -> torch.Tensor:
        """The product with inputs x, `matrix x^T` `[row, sample]`."""
        assert isinstance(inputs, torch.Tensor)
        return torch.mm(self.matrix, inputs.T)


class FixedPoint:
    """A matrix that multiplies inputs on levels.

    Each entry is rounded to 24 bits relative to the largest entry in its row.
    """

    def __init__(self, matrix: torch.Tensor) -> None:
        """Rounds `matrix` `[row, feature]`, float32, on a little-endian CPU."""
        rows, columns = matrix.shape
        # For a row of zeros the division must neither be by zero nor overflow.
        largest = matrix.abs().amax(1, keepdim=True).clamp_(min=2.0**-100)
        self.unit = largest / _LARGEST
        whole = (matrix * (_LARGEST / largest)).round_().to(torch.int32)
        self.sums = whole.sum(1, keepdim=True)
        # The bytes of n + sum_k 128 * 256^k are the digits of n, each plus 128.
        digits = whole.add_(_MIDDLES).bitwise_xor_(_MIDDLES).view(torch.int8)
        self.digits = digits.view(rows, columns, 4)[..., :3].permute(2, 0, 1).reshape(-1, columns)

    def times(self, inputs: Inputs) -> torch.Tensor:
        """The product with inputs x, `matrix x^T` `[row, sample]`."""
        assert isinstance(inputs, LevelInputs)
        products = torch._int_mm(self.digits, inputs.numbers.T)
        low, middle, high = products.view(3, -1, len(inputs))
        scale = self.unit * inputs.levels.step
        product: torch.Tensor = high.float().mul_(256).add_(middle).mul_(256).add_(low).mul_(scale)
        return product.add_((scale.double() * inputs.levels.offset * self.sums).float())


@dataclass(frozen=True)
class LevelInputs:
    """Inputs `[sample, feature]` on levels, for float32 on CPUs with `multiplies_bytes()`.

    There must be fewer than 2^17 features, because sums over more features can overflow.

    Attributes:
        levels: the levels on which the inputs lie.
        numbers: number q of the level of each input, `[sample, feature]` int8.
    """

    levels: Levels
    numbers: torch.Tensor

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.numbers)

    def __getitem__(self, samples: slice | torch.Tensor) -> LevelInputs:
        """Some samples: a range of them, or those with the given numbers."""
        return LevelInputs(self.levels, self.numbers[samples])

    def gram(self, rows: slice, columns: slice) -> torch.Tensor:
        """A block of `x x^T + 1`; the 1 is for the constant input of a bias."""
        products = torch._int_mm(self.numbers[rows], self.numbers[columns].T)
        block = products.float().mul_(self.levels.step**2).add_(self._halves[rows, None])
        return block.add_(self._halves[columns])

    @cached_property
    def _halves(self) -> torch.Tensor:
        """Numbers h `[sample]` such that x_i x_j + 1 = q_i q_j step^2 + h_i + h_j."""
        offset, features = self.levels.offset, self.numbers.shape[1]
        sums = self.numbers.sum(1, dtype=torch.int32).double()
        halves = self.levels.step**2 * (offset * sums + features * offset**2 / 2) + 0.5
        return halves.float()


Inputs = torch.Tensor | LevelInputs
"""Inputs of a network, `[sample, feature]`."""


def prepared(matrix: torch.Tensor, like: Inputs) -> PlainWeights | FixedPoint | CompiledFixedPoint:
    """`matrix` `[row, feature]` in the form that multiplies inputs of the same kind as `like`."""
    if not isinstance(like, LevelInputs):
        return PlainWeights(matrix)
    build = find()
    # The compiled version takes four features at a time.
    if isinstance(build, str) or matrix.shape[1] % 4:
        return FixedPoint(matrix)
    return CompiledFixedPoint(build, matrix)


@cache
def multiplies_bytes() -> bool:
    """Whether torch can multiply matrices of bytes exactly on this CPU.

    The function tries it out, for two reasons: `torch._int_mm` is internal to torch, and without VNNI
    instructions its library sums pairs of products in 16 bits, so that the largest products overflow.
    """
    for rows, columns, depth in ((1, 1, 64), (33, 70, 784), (128, 300, 1024)):
        cycle = torch.arange(columns * depth) * 7919 % 256 - 128
        b = cycle.view(columns, depth).to(torch.int8)
        b[0], b[-1] = -128, 127
        a = b.new_full((rows, depth), -128)
        a[rows // 2] = b[columns // 2]
        try:
            product = torch._int_mm(a, b.T)
        except (AttributeError, RuntimeError):
            return False
        if not torch.equal(product.double(), a.double() @ b.double().T):
            return False
    return True
