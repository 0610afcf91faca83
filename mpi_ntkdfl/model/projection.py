r"""Gaussian projections of Jacobians, layer by layer, from random numbers that every client can draw.

The Jacobian of layer l, `J_l [sample, output, p_l]`, becomes `J_l P_l [sample, output, k]`. The entries
of `P_l [p_l, k]` are normal with mean 0 and variance 1/k, so the mean of `P_l P_l^T` is the identity.
Hence the kernel of projections and the lifted product `P_l (J_l P_l)^T R` are right in the mean. Errors:

* kernel: a product `u v` of two rows of J_l has the deviation `sqrt((|u|^2 |v|^2 + (u v)^2) / k)`, so the
  relative error falls as 1/sqrt(k);
* lifted product g: its norm grows to about `sqrt(1 + (p_l + 1) / k)` times the exact one.

A layer with at most k parameters is not projected, because everybody can undo a projection that does not
shorten. Compare Johnson and Lindenstrauss, "Extensions of Lipschitz mappings into a Hilbert space", 1984.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise

import numpy as np
import torch

from mpi_ntkdfl.model.params import Layout, aligned
from mpi_ntkdfl.runtime.seeds import generator

MATRIX_ROOM = 2**29
"""Bytes of matrices that a rank keeps during a round; larger ones are drawn anew for every use."""


@dataclass(frozen=True)
class Part:
    """A layer of the network in the projected Jacobian.

    Attributes:
        number: of the layer, from 0.
        start, stop: the range of its parameters.
        columns: where its entries are in the projected Jacobian.
        projected: whether it is projected; otherwise its entries travel as they are.
    """

    number: int
    start: int
    stop: int
    columns: slice
    projected: bool

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.stop - self.start


def layers(layout: Layout) -> list[tuple[int, int]]:
    """The range of parameters of each layer: tensors that follow each other and belong to one module."""
    ranges = zip(layout.shapes, pairwise(layout.offsets), strict=True)
    grouped = groupby(ranges, key=lambda each: each[0].rpartition(".")[0])
    whole = [[span for _, span in members] for _, members in grouped]
    return [(spans[0][0], spans[-1][1]) for spans in whole]


def parts(layout: Layout, width: int) -> list[Part]:
    """The layers with their columns in a Jacobian that is projected to `width` numbers per layer."""
    found, column = [], 0
    for number, (start, stop) in enumerate(layers(layout)):
        stretch = min(stop - start, width)
        columns = slice(column, column + stretch)
        found.append(Part(number, start, stop, columns, stop - start > width))
        column += stretch
    return found


def columns(layout: Layout, width: int) -> int:
    """Numbers per sample and output of a Jacobian that is projected to `width` numbers per layer."""
    return sum(min(stop - start, width) for start, stop in layers(layout))


def matrix_numbers(layout: Layout, width: int) -> int:
    """Numbers of all matrices together."""
    return sum(part.size for part in parts(layout, width) if part.projected) * width


class Projection:
    """The matrices of one round, the same on all clients.

    Attributes:
        width: k.
        parts: the layers.
        columns: K, the sum of the layers' columns.
    """

    def __init__(
        self, layout: Layout, width: int, seed: int, number: int, like: torch.Tensor, room: int
    ) -> None:
        """Draws nothing yet.

        Args:
            layout: of the network's parameters.
            width: k, numbers per layer.
            seed: of the run.
            number: of the round.
            like: any tensor with the type and the device of the Jacobians.
            room: bytes of matrices that may be kept. The numbers do not depend on it.
        """
        self.width, self.parts = width, parts(layout, width)
        self.columns = self.parts[-1].columns.stop
        self._size, self._seed, self._number, self._like = layout.size, seed, number, like
        self._kept = matrix_numbers(layout, width) * like.element_size() <= room

    def rows(self, part: Part, counts: Iterable[int]) -> Iterator[torch.Tensor]:
        """The matrix of a layer from its first row on: a block `[count, k]` for each of `counts`."""
        if self._kept:
            start = 0
            for count in counts:
                yield aligned(self._matrices[part.number][start : start + count])
                start += count
        else:
            yield from self._drawn(part, counts)

    def entries(
        self, dense: Callable[[int, int], torch.Tensor], projected: Callable[[Part], torch.Tensor]
    ) -> torch.Tensor:
        """The entries of a Jacobian as they are sent, `[sample, output, column]`.

        Args:
            dense: the entries of a range of parameters, for layers that are sent entry by entry.
            projected: the entries of a layer times its matrix, `[sample, output, k]`.
        """
        pieces = [projected(p) if p.projected else dense(p.start, p.stop) for p in self.parts]
        return torch.cat(pieces, dim=2)

    def lift(self, products: torch.Tensor) -> torch.Tensor:
        """`P q` of `products` `[tau, K]`: `[tau, param]`."""
        lifted = products.new_empty(len(products), self._size)
        for part in self.parts:
            own, start = aligned(products[:, part.columns]), part.start
            if not part.projected:
                lifted[:, start : part.stop] = own
                continue
            counts = [min(self.step, part.size - done) for done in range(0, part.size, self.step)]
            for block in self.rows(part, counts):
                lifted[:, start : start + len(block)] = own @ block.T
                start += len(block)
        return lifted

    @property
    def step(self) -> int:
        """How many rows of a matrix are used at once."""
        return max(_BLOCK // self.width, 1)

    @cached_property
    def _matrices(self) -> dict[int, torch.Tensor]:
        shortened = (part for part in self.parts if part.projected)
        return {part.number: next(self._drawn(part, [part.size])) for part in shortened}

    def _drawn(self, part: Part, counts: Iterable[int]) -> Iterator[torch.Tensor]:
        rng = generator(self._seed, "projection", self._number, part.number)
        for count in counts:
            # One stream of float32 numbers, however it is cut and whatever the type of the run.
            normal = rng.standard_normal((count, self.width), dtype=np.float32)
            block = torch.from_numpy(normal).to(self._like)
            yield block.mul_(1 / math.sqrt(self.width))


_BLOCK = 2**20
"""How many numbers of a matrix are used at once."""
