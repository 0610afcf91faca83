r"""Jacobians as operators, of any network.

For a client's network `f(x; w)` and samples `x_1..x_n` the Jacobian is `J [sample, output, param]`.
The methods never need its entries one by one, but only two things:

* the trace-Gram `sum_c J_c J_c^T [sample, sample]`, which is the kernel times the number of outputs;
* the transposed product `sum_c J_c^T R_c [param]` with residuals `R [sample, output]`.

`dense` cuts the entries themselves, a range of parameters at a time, for messages that carry them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch

from mpi_ntkdfl.model.params import aligned
from mpi_ntkdfl.runtime.device import on_gpu

# Rows of a tile of a symmetric matrix, at least.
_TILE = 128


class Operator(Protocol):
    """What the kernel and the update need of a Jacobian over N samples."""

    def trace_gram(self) -> torch.Tensor:
        """`sum_c J_c J_c^T`, `[sample, sample]`."""
        ...

    def transposed_product(self, residuals: torch.Tensor) -> torch.Tensor:
        """`sum_c J_c^T R_c` for each of `residuals` `[tau, sample, output]`: `[tau, param]`."""
        ...


class Jacobian(Operator, Protocol):
    """The Jacobian of a network over N samples, at one parameter vector."""

    @property
    def outputs(self) -> torch.Tensor:
        """Outputs of the network where it is linearised, `[sample, output]`."""
        ...

    def dense(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Entries of the parameters `start <= p < stop`: `[sample, output, stop - start]`."""
        ...


def symmetric_matrix(
    samples: int, block: Callable[[slice, slice], torch.Tensor], like: torch.Tensor
) -> torch.Tensor:
    """A symmetric matrix `[sample, sample]` from the tiles of its lower triangle.

    On CPU this takes little more than half of the work of the whole, and what is done to a tile stays
    in the cache. The tiling depends on the number of samples only, so the bits do as well.

    Args:
        samples: N.
        block: gives the entries of a range of rows and a range of columns.
        like: any tensor of the type and device.
    """
    # A GPU takes the whole in less time than it takes to be told of the tiles.
    tiles = 1 if on_gpu(like.device) else max(samples // _TILE, 1)
    matrix = torch.empty(samples, samples, dtype=like.dtype, device=like.device)
    for start, stop in pairwise(samples * tile // tiles for tile in range(tiles + 1)):
        matrix[start:stop, :stop] = block(slice(start, stop), slice(stop))
        matrix[:start, start:stop] = matrix[start:stop, :start].T
    return matrix


def symmetric_product(a: torch.Tensor) -> torch.Tensor:
    """`a a^T` `[n, n]` of `a [n, k]`."""
    return symmetric_matrix(a.shape[0], lambda rows, columns: a[rows] @ a[columns].T, a)


class DenseJacobian:
    """Entries of a Jacobian, `[sample, output, param]`; all parameters or a range of them.

    Sums over ranges add up: the trace-Gram of the whole is the sum of those of its ranges, the
    transposed product their concatenation.
    """

    def __init__(self, entries: torch.Tensor) -> None:
        """Wraps `entries` `[sample, output, param]`."""
        self.entries = entries

    def trace_gram(self) -> torch.Tensor:
        """`sum_c J_c J_c^T`, `[sample, sample]`."""
        return symmetric_product(aligned(self.entries.flatten(1)))

    def transposed_product(self, residuals: torch.Tensor) -> torch.Tensor:
        """`sum_c J_c^T R_c` for `residuals` `[tau, sample, output]`: `[tau, param]`."""
        return residuals.flatten(1) @ self.entries.flatten(0, 1)
