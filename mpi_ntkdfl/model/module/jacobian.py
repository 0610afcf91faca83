"""The Jacobian of any module, from gradients of single outputs for single samples.

This generic form is right for everything that torch can differentiate. Gradients `G_c [sample, param]` of
output c are computed for ranges of samples, and multiplied: `sum_c J_c J_c^T = sum_c G_c G_c^T`. If they
exceed the limit on numbers in memory, they are computed for one range of parameters after another.

The fast form (`fast`) serves the parameters whose uses are recognised.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch

from mpi_ntkdfl.model.jacobian import add_lower_product, mirror
from mpi_ntkdfl.model.module.fast import FastGram, OtherGraph, Piece, pieces
from mpi_ntkdfl.model.module.function import FlatModule, chunks, vectorised
from mpi_ntkdfl.model.module.plan import Plan
from mpi_ntkdfl.model.module.unchanged import restored
from mpi_ntkdfl.model.params import aligned, outside
from mpi_ntkdfl.model.projection import Part, Projection

LOGGER = logging.getLogger(__name__)

_OTHER_GRAPH = (
    "a kernel is computed by the slower generic form, because the network did not do the same operations "
    "as in the trial at the start (do they depend on the data?)"
)


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
        plan: Plan | None = None,
        strict: bool = False,
    ) -> None:
        """Keeps the arguments; results are computed when they are needed.

        Args:
            function: the module.
            params: `[P]`, the point of linearisation.
            inputs: `[sample, *shape]`.
            classes: C.
            limits: limits of the computation.
            plan: what the fast form of the kernel serves; None for the generic form.
            strict: whether to raise `OtherGraph` if the plan does not serve; otherwise the generic form
                is used then.
        """
        with torch.inference_mode(False):
            self._params, self._inputs = outside(aligned(params)), outside(aligned(inputs))
        self._plan, self._strict = plan, strict
        self._function, self._classes, self._limits = function, classes, limits
        self._samples = len(inputs)

    @cached_property
    def outputs(self) -> torch.Tensor:
        """Outputs of the module, `[sample, output]`."""
        with torch.inference_mode(False), torch.no_grad():
            parts = chunks(self._samples, self._limits.at_once)
            found = [self._function(self._params, self._inputs[rows]) for rows in parts]
            return torch.cat(found).detach()  # a module may turn gradients on for itself

    def trace_gram(self, directions: torch.Tensor | None = None) -> torch.Tensor:
        """`sum_c J_c J_c^T`, `[sample, sample]`.

        The parameters of the plan are served by the fast form, if the passes do what the trial did, and
        all others by the generic form.

        Args:
            directions: `[direction, output]`: the sum is over these combinations of outputs. None for the
                outputs themselves.
        """
        with torch.inference_mode(False), restored(self._function.module):
            if directions is None:
                directions = torch.eye(self._classes).to(self._params)
            directions = outside(directions)
            names = list(self._function.layout.shapes)
            if self._plan is None:
                return self._generic_gram(names, directions)
            room = self._limits.room
            fast = FastGram(self._function, self._params, self._inputs, self._plan, room)
            try:
                total = fast.compute(directions)
            except OtherGraph:
                if self._strict:
                    raise
                LOGGER.warning("%s", _OTHER_GRAPH)
                return self._generic_gram(names, directions)
            return (
                total + self._generic_gram(self._plan.rest, directions)
                if self._plan.rest
                else total
            )

    def _generic_gram(self, names: Sequence[str], directions: torch.Tensor) -> torch.Tensor:
        """The part of `trace_gram` that belongs to the parameters `names`.

        Each direction's gradients `[sample, entry]` are multiplied at once, or for one range of entries
        after another.
        """
        sizes = dict(zip(self._function.layout.shapes, self._function.layout.sizes, strict=True))
        total = self._params.new_zeros(self._samples, self._samples)
        # One half is for the gradients to be multiplied, the other for those that are being computed.
        half = self._limits.room // 2
        wanted = {name: sizes[name] for name in names if sizes[name]}
        groups = pieces(wanted, half // self._samples) if wanted else []
        for direction in directions:
            for group in groups:
                add_lower_product(total, self._columns(direction, group, sizes))
        return mirror(total)

    def _columns(
        self, direction: torch.Tensor, group: Sequence[Piece], sizes: Mapping[str, int]
    ) -> torch.Tensor:
        """Gradients of all samples in one direction, `[sample, entry]`, for the entries of `group`."""
        names = [piece.name for piece in group]
        computed = sum(sizes[name] for name in names)
        first, width = group[0].entries.start, sum(piece.width for piece in group)
        rows = chunks(self._samples, max(self._limits.room // (4 * computed), 1))
        if len(rows) == 1 and width == computed:
            return self._gradients(direction, rows[0], names)
        columns = self._params.new_empty(self._samples, width)
        for some in rows:
            columns[some] = self._gradients(direction, some, names)[:, first : first + width]
        return columns

    def transposed_product(self, residuals: torch.Tensor) -> torch.Tensor:
        """`sum_c J_c^T R_c` of `residuals` `[tau, sample, output]`: `[tau, param]`.

        This takes one vector-Jacobian product per tau.
        """
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            restored(self._function.module),
        ):
            residuals = outside(residuals)
            total = self._params.new_zeros(len(residuals), len(self._params))
            for rows in chunks(self._samples, self._limits.at_once):
                point = self._params.detach().requires_grad_()
                outputs = self._function(point, self._inputs[rows])
                if not outputs.requires_grad:  # these samples do not reach any parameter
                    continue
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
            for output, direction in enumerate(torch.eye(self._classes).to(entries)):
                whole = self._gradients(direction, rows, touched)
                entries[rows, output] = whole[:, start - first : stop - first]
        return entries

    def projected(self, projection: Projection) -> torch.Tensor:
        """The projected entries, `[sample, output, column]`, from ranges of dense ones."""
        return projection.entries(self.dense, lambda part: self._projected(part, projection))

    def _projected(self, part: Part, projection: Projection) -> torch.Tensor:
        rows = self._samples * self._classes
        total = self._params.new_zeros(rows, projection.width)
        step = max(self._limits.room // rows, 1)
        cuts = [*range(part.start, part.stop, step), part.stop]
        matrix = projection.rows(part, [high - low for low, high in pairwise(cuts)])
        for (low, high), some in zip(pairwise(cuts), matrix, strict=True):
            total.addmm_(self.dense(low, high).flatten(0, 1), some)
        return total.view(self._samples, self._classes, projection.width)

    def _gradients(
        self, direction: torch.Tensor, rows: slice, names: Sequence[str]
    ) -> torch.Tensor:
        """Flattened gradients of a combination of outputs by the tensors `names`, `[row, entry]`.

        Args:
            direction: how the outputs are combined, `[output]`.
            rows: the range of samples.
            names: the parameters.
        """
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            restored(self._function.module),
        ):
            tensors = self._function.layout.unflatten(self._params.detach())
            differentiated = {name: tensors.pop(name) for name in names}
            inputs = self._inputs[rows]
            if not self._limits.vectorised:
                return torch.stack(
                    [self._gradient(direction, x, differentiated, tensors) for x in inputs]
                )

            def value(chosen: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
                state = {**tensors, **chosen}
                return self._function.with_tensors(state, self._params, x[None])[0] @ direction

            gradient, parts = torch.func.grad(value), []
            for some in chunks(len(inputs), self._limits.at_once):
                each = vectorised(gradient, differentiated, inputs[some], in_dims=(None, 0))
                parts.append(torch.cat([piece.flatten(1) for piece in each.values()], 1))
            return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _gradient(
        self,
        direction: torch.Tensor,
        x: torch.Tensor,
        differentiated: dict[str, torch.Tensor],
        others: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """The gradient for one sample `x` `[*shape]`, by autograd."""
        points = {name: each.detach().requires_grad_() for name, each in differentiated.items()}
        outputs = self._function.with_tensors({**others, **points}, self._params, x[None])
        if not outputs.requires_grad:  # this sample does not reach any of these parameters
            return self._params.new_zeros(sum(point.numel() for point in points.values()))
        gradients = torch.autograd.grad(
            outputs[0] @ direction, list(points.values()), allow_unused=True, materialize_grads=True
        )
        return torch.cat([gradient.flatten() for gradient in gradients])
