r"""Jacobians of any network as operators.

For a client's network `f(x; w)` and samples `x_1..x_n` the Jacobian is `J [sample, output, param]`.
The methods do not need its single entries, but only two operations:

* the trace-Gram `sum_c J_c J_c^T [sample, sample]`, which is the kernel times the number of outputs;
* the transposed product `sum_c J_c^T R_c [param]` with residuals `R [sample, output]`.

`dense` returns the entries for a range of parameters; dense messages consist of them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch

from mpi_ntkdfl.model.compiled_product import build_for
from mpi_ntkdfl.model.params import aligned
from mpi_ntkdfl.model.projection import Projection
from mpi_ntkdfl.runtime.device import on_gpu

# About the number of rows of a tile of a symmetric matrix.
_TILE = 128


class Operator(Protocol):
    """The operations of a Jacobian over N samples that the kernel and the update need."""

    def trace_gram(self) -> torch.Tensor:
        """`sum_c J_c J_c^T`, `[sample, sample]`."""

    def transposed_product(self, residuals: torch.Tensor) -> torch.Tensor:
        """`sum_c J_c^T R_c` for each of `residuals` `[tau, sample, output]`: `[tau, param]`."""


class DirectedOperator(Protocol):
    """An operator that can restrict the kernel to some combinations of outputs."""

    def trace_gram(self, directions: torch.Tensor | None = None) -> torch.Tensor:
        """`sum_d (v_d J) (v_d J)^T`, `[sample, sample]`, of combinations v `[direction, output]`."""


class Jacobian(Operator, Protocol):
    """The Jacobian of a network over N samples, at one parameter vector."""

    @property
    def outputs(self) -> torch.Tensor:
        """Outputs of the network at the point of linearisation, `[sample, output]`."""

    def dense(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Entries of the parameters `start <= p < stop`: `[sample, output, stop - start]`."""

    def projected(self, projection: Projection) -> torch.Tensor:
        """The entries of all layers, shortened by a projection: `[sample, output, column]`."""


def even_parts(rows: int, parts: int) -> list[slice]:
    """`rows` rows in consecutive ranges whose lengths differ by at most one."""
    return [slice(*cut) for cut in pairwise(rows * part // parts for part in range(parts + 1))]


def symmetric_matrix(
    samples: int, block: Callable[[slice, slice], torch.Tensor], like: torch.Tensor
) -> torch.Tensor:
    """A symmetric matrix `[sample, sample]` from the tiles of its lower triangle.

    On a CPU this takes little more than half of the work for the whole matrix, and a tile stays in the
    cache for all operations on it. The tiles depend only on the number of samples. So the bits of the
    result do not depend on anything else, such as the rank.

    Args:
        samples: N.
        block: returns the entries for a range of rows and a range of columns.
        like: any tensor with the type and device of the matrix.
    """
    # A GPU computes the whole matrix in less time than it takes to launch the kernels of all tiles.
    tiles = 1 if on_gpu(like.device) else max(samples // _TILE, 1)
    matrix = torch.empty(samples, samples, dtype=like.dtype, device=like.device)
    for tile in even_parts(samples, tiles):
        start, stop = tile.start, tile.stop
        matrix[tile, :stop] = block(tile, slice(stop))
        matrix[:start, tile] = matrix[tile, :start].T
    return matrix


def symmetric_product(a: torch.Tensor) -> torch.Tensor:
    """`a a^T` `[n, n]` of `a [n, k]`."""
    return symmetric_matrix(a.shape[0], lambda rows, columns: a[rows] @ a[columns].T, a)


def add_lower_product(total: torch.Tensor, a: torch.Tensor) -> None:
    """Adds `a a^T` of `a [n, k]` to the lower triangle of `total [n, n]`; above it are other numbers.

    This is for long products, k much greater than n, of which several are added. `mirror` completes the
    sum. The compiled product serves where it can (`compiled_product`). Otherwise, the tiles have nearly
    equal heights, because a low tile takes as long as one of 64 rows.
    """
    build = build_for(total, a)
    if build is not None:
        build.add_lower(total, a)
        return
    rows = len(a)
    tiles = 1 if on_gpu(a.device) else -(-rows // _TILE)
    for tile in even_parts(rows, tiles):
        total[tile, : tile.stop].addmm_(a[tile], a[: tile.stop].T)


def mirror(lower: torch.Tensor) -> torch.Tensor:
    """The symmetric matrix with the lower triangle of `lower [n, n]`, in its memory."""
    upper = torch.ones_like(lower, dtype=torch.bool).triu_(1)
    return lower.copy_(torch.where(upper, lower.T, lower))


class DenseJacobian:
    """Entries of a Jacobian, `[sample, output, param]`, for all parameters or a range of them.

    The trace-Gram of the whole Jacobian is the sum of the trace-Grams of all ranges. Its transposed
    product is the concatenation of those of all ranges.
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
