"""The Jacobian of any module, from gradients of single outputs for single samples.

Gradients `G_c [sample, param]` of output c are computed for a range of samples and multiplied at once:
`sum_c J_c J_c^T = sum_c G_c G_c^T`. The ranges are as long as the limit on numbers in memory allows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch

from mpi_ntkdfl.model.jacobian import symmetric_product
from mpi_ntkdfl.model.module.function import FlatModule, chunks, vectorised
from mpi_ntkdfl.model.params import aligned, outside


@dataclass(frozen=True)
class Limits:
    """Limits of a computation.

    Attributes:
        room: how many numbers of gradients it may hold at once.
        at_once: number of samples that pass through the module together.
        vectorised: whether gradients of several samples are computed together (`torch.func.vmap`).
            Otherwise they are computed one after another, for modules that torch cannot vectorise.
    """

    room: int
    at_once: int
    vectorised: bool


class ModuleJacobian:
    """The Jacobian of a module over N samples. See `Jacobian`."""

    def __init__(
        self,
        function: FlatModule,
        params: torch.Tensor,
        inputs: torch.Tensor,
        classes: int,
        limits: Limits,
    ) -> None:
        """Keeps the arguments; results are computed when they are needed.

        Args:
            function: the module.
            params: `[P]`, the point of linearisation.
            inputs: `[sample, *shape]`.
            classes: C.
            limits: limits of the computation.
        """
        with torch.inference_mode(False):
            self._params, self._inputs = outside(aligned(params)), outside(inputs)
        self._function, self._classes, self._limits = function, classes, limits
        self._samples = len(inputs)

    @cached_property
    def outputs(self) -> torch.Tensor:
        """Outputs of the module, `[sample, output]`."""
        with torch.inference_mode(False), torch.no_grad():
            parts = chunks(self._samples, self._limits.at_once)
            return torch.cat([self._function(self._params, self._inputs[rows]) for rows in parts])

    def trace_gram(self) -> torch.Tensor:
        """`sum_c J_c J_c^T`, `[sample, sample]`."""
        size = self._function.layout.size
        # Memory holds two blocks of rows, a block and one before it, and a copy that is being made.
        blocks = chunks(self._samples, max(self._limits.room // (3 * size), 1))
        total = self._params.new_zeros(self._samples, self._samples)
        every = list(self._function.layout.shapes)
        for output in range(self._classes):
            for index, rows in enumerate(blocks):
                own = self._gradients(output, rows, every)
                total[rows, rows] += symmetric_product(own)
                for before in blocks[:index]:
                    total[rows, before] += own @ self._gradients(output, before, every).T
        for rows in blocks:
            total[: rows.start, rows] = total[rows, : rows.start].T
        return total

    def transposed_product(self, residuals: torch.Tensor) -> torch.Tensor:
        """`sum_c J_c^T R_c` of `residuals` `[tau, sample, output]`: `[tau, param]`.

        This takes one vector-Jacobian product per tau.
        """
        with torch.inference_mode(False), torch.enable_grad():
            residuals = outside(residuals)
            total = self._params.new_zeros(len(residuals), len(self._params))
            for rows in chunks(self._samples, self._limits.at_once):
                point = self._params.detach().requires_grad_()
                outputs = self._function(point, self._inputs[rows])
                for row, each in zip(total, residuals[:, rows], strict=True):
                    (gradient,) = torch.autograd.grad(outputs, point, each, retain_graph=True)
                    row.add_(gradient)
            return total

    def dense(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Entries of the parameters `start <= p < stop`: `[sample, output, stop - start]`."""
        layout = self._function.layout
        stop = layout.size if stop is None else stop
        ranges = dict(zip(layout.shapes, pairwise(layout.offsets), strict=True))
        touched = [name for name, (low, high) in ranges.items() if low < stop and start < high]
        first = ranges[touched[0]][0]
        width = ranges[touched[-1]][1] - first
        entries = self._params.new_empty(self._samples, self._classes, stop - start)
        for rows in chunks(self._samples, max(self._limits.room // width, 1)):
            for output in range(self._classes):
                whole = self._gradients(output, rows, touched)
                entries[rows, output] = whole[:, start - first : stop - first]
        return entries

    def _gradients(self, output: int, rows: slice, names: list[str]) -> torch.Tensor:
        """Flattened gradients of one output with respect to the tensors `names`, `[row, entry]`."""
        with torch.inference_mode(False), torch.enable_grad():
            tensors = self._function.layout.unflatten(self._params.detach())
            differentiated = {name: tensors.pop(name) for name in names}
            inputs = self._inputs[rows]
            if not self._limits.vectorised:
                return torch.stack(
                    [self._gradient(output, x, differentiated, tensors) for x in inputs]
                )

            def value(chosen: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
                state = {**tensors, **chosen}
                return self._function.with_tensors(state, self._params, x[None])[0, output]

            gradient, parts = torch.func.grad(value), []
            for some in chunks(len(inputs), self._limits.at_once):
                each = vectorised(gradient, differentiated, inputs[some], in_dims=(None, 0))
                parts.append(torch.cat([piece.flatten(1) for piece in each.values()], 1))
            return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _gradient(
        self,
        output: int,
        x: torch.Tensor,
        differentiated: dict[str, torch.Tensor],
        others: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """The gradient for one sample `x` `[*shape]`, by autograd."""
        points = {name: each.detach().requires_grad_() for name, each in differentiated.items()}
        outputs = self._function.with_tensors({**others, **points}, self._params, x[None])
        gradients = torch.autograd.grad(
            outputs[0, output], list(points.values()), allow_unused=True, materialize_grads=True
        )
        return torch.cat([gradient.flatten() for gradient in gradients])
