"""The kernel of a module from the uses of its parameters, by one backward pass per output.

For each output, autograd computes the signals: gradients with respect to the results of operations, for
all samples of a batch together. The gradients of single samples follow from them (`uses`). Two forms turn
them into `sum_c J_c J_c^T`:

* A linear map at one place per sample has inputs a `[sample, in]` and signals s_c `[sample, out]`. It
  needs no gradients: its part is `(a a^T) * sum_c s_c s_c^T`, and `a a^T + 1` together with its bias.
* All others are multiplied: `sum_c G_c G_c^T` with gradients G_c `[sample, entry]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mpi_ntkdfl.model.jacobian import add_lower_product, even_parts, mirror
from mpi_ntkdfl.model.module.function import FlatModule, chunks
from mpi_ntkdfl.model.module.plan import Pass, Plan
from mpi_ntkdfl.model.module.uses import Use, linear_inputs
from mpi_ntkdfl.runtime.device import on_gpu

_BATCH = 160
_BATCH_NUMBERS = 2**22, 2**24
"""On a CPU, a batch has about so many pairs of a sample and an output, and so many numbers at least and
at most. Larger ones leave the caches, and smaller ones do not share the cost of the calls."""

_LINE = 16
"""Arrays start at multiples of so many numbers, which is a cache line of float32."""

_NARROW = 2048
"""Gradients with fewer columns share an array, because products of few columns are slow."""


class OtherGraph(Exception):
    """A pass did not do what the trial did, for example because its operations depend on the data."""


@dataclass(frozen=True)
class Piece:
    """Some entries of a parameter's gradient.

    Attributes:
        name: the parameter.
        entries: which of its entries.
    """

    name: str
    entries: slice

    @property
    def width(self) -> int:
        """How many entries."""
        width: int = self.entries.stop - self.entries.start
        return width


def pieces(sizes: dict[str, int], most: int) -> list[list[Piece]]:
    """Groups of parameters with at most `most` entries per group; only larger parameters are cut."""
    groups: list[list[Piece]] = [[]]
    for name, size in sizes.items():
        filled = sum(piece.width for piece in groups[-1])
        if filled and filled + size > most:
            groups.append([])
        parts = [Piece(name, entries) for entries in chunks(size, max(most, 1))]
        groups[-1].append(parts[0])
        groups += [[part] for part in parts[1:]]
    return groups


def turns(
    width: int, samples: np.ndarray | int, outputs: int, room: int
) -> tuple[np.ndarray, np.ndarray]:
    """How often `FastGram` passes all samples, so that its gradients fit into `room` numbers.

    Args:
        width: entries of the parameters that are multiplied, per output.
        samples: N, or several.
        outputs: number of directions.
        room: limit on the numbers of gradients.

    Returns:
        The number of outputs at once, and the number of groups of parameters for each of them.
    """
    each = np.asarray(samples) * max(width, 1)
    most = np.maximum(room // each, 1)
    at_once = np.ceil(outputs / np.ceil(outputs / most)).astype(np.int64)
    groups = np.ceil(each * at_once / room).astype(np.int64)
    return at_once, groups


def fast_numbers(plan: Plan, samples: int, outputs: int, room: int) -> int:
    """How many numbers `FastGram` holds at most, beside the samples, on a CPU.

    Args:
        plan: of the trial.
        samples: N.
        outputs: number of directions.
        room: limit on the numbers of gradients.
    """
    width = sum(plan.multiplied.values())
    at_once = int(turns(width, samples, outputs, room)[0])
    gradients = min(room, samples * at_once * width)
    per_sample = plan.activations + at_once * plan.signals
    batch = min(max(room // 2 // per_sample, 1), _most_at_once(at_once, per_sample), samples)
    squares = (1 + 2 * len(plan.linear)) * samples * samples
    # Signals are copied into one array per use, and convolutions have workspaces of their own.
    return gradients + 2 * batch * per_sample + squares


def _most_at_once(outputs: int, per_sample: int) -> int:
    """Number of samples of a batch on a CPU, which need so many numbers each."""
    least, most = (max(numbers // per_sample, 1) for numbers in _BATCH_NUMBERS)
    return min(max(_BATCH // outputs, least), most)


class _Linear:
    """A linear map at one place per sample: `(a a^T) * sum_c s_c s_c^T`.

    Batches are copied into arrays for all samples. Kept one by one, they would lie between the blocks
    that passes free, and the process would grow with every batch.
    """

    def __init__(self, like: torch.Tensor, samples: int, with_bias: bool) -> None:
        """Starts the sum over outputs."""
        self._sum = like.new_zeros(samples, samples)
        self._inputs = self._signals = like.new_empty(samples, 0)
        self._with_bias = with_bias

    def set(self, rows: slice, inputs: torch.Tensor, signals: torch.Tensor) -> None:
        """Copies a batch's inputs `[row, in]` and some outputs' signals `[row, output * out]`."""
        if self._signals.shape[1] != signals.shape[1]:
            self._signals = signals.new_empty(len(self._sum), signals.shape[1])
        if self._inputs.shape[1] != inputs.shape[1]:
            self._inputs = inputs.new_empty(len(self._sum), inputs.shape[1])
        self._inputs[rows], self._signals[rows] = inputs, signals

    def add_signals(self) -> None:
        """Adds the products of the signals of all samples."""
        add_lower_product(self._sum, self._signals)

    def add_to(self, total: torch.Tensor) -> None:
        """Adds this part of the kernel to the lower triangle of `total`."""
        gram = torch.full_like(total, float(self._with_bias))
        add_lower_product(gram, self._inputs)
        total.addcmul_(gram, self._sum)


class FastGram:
    """Computes the part of `sum_c J_c J_c^T` that belongs to a plan's parameters."""

    def __init__(
        self,
        function: FlatModule,
        params: torch.Tensor,
        inputs: torch.Tensor,
        plan: Plan,
        room: int,
    ) -> None:
        """Keeps the arguments.

        Args:
            function: the module.
            params: `[P]`.
            inputs: `[sample, *shape]`.
            plan: of the trial.
            room: how many numbers of gradients to hold at once.
        """
        self._function, self._params, self._inputs = function, params, inputs
        self._plan, self._room = plan, room
        self._samples = len(inputs)

    @torch.no_grad()
    def compute(self, directions: torch.Tensor) -> torch.Tensor:
        """The sum over `directions` `[direction, output]`, which are unit vectors for all outputs.

        Raises:
            OtherGraph: if a pass does not do what the trial did.
        """
        plan, samples = self._plan, self._samples
        total = self._params.new_zeros(samples, samples)
        linear = {
            name: _Linear(total, samples, with_bias) for name, with_bias in plan.linear.items()
        }
        width = sum(plan.multiplied.values())
        at_once = int(turns(width, samples, len(directions), self._room)[0])
        groups = pieces(dict(plan.multiplied), self._room // (samples * at_once))
        batches = self._batches(at_once)
        # One buffer serves all passes. Arrays of single passes would leave gaps that others do not fill.
        widest = max(sum(piece.width for piece in group) for group in groups)
        longest = max(map(len, groups))
        buffer = total.new_empty(samples * at_once * widest + _LINE * longest)
        for some in chunks(len(directions), at_once):
            for number, group in enumerate(groups):
                parts = {} if number else linear
                self._add(total, directions[some], group, parts, batches, buffer)
        for part in linear.values():
            part.add_to(total)
        return mirror(total)

    def _add(
        self,
        total: torch.Tensor,
        directions: torch.Tensor,
        group: Sequence[Piece],
        linear: dict[str, _Linear],
        batches: Sequence[slice],
        buffer: torch.Tensor,
    ) -> None:
        """Adds the products of a group's gradients to `total`, and signals to `linear`.

        Gradients are in `buffer`.
        """
        count = len(directions)
        columns, arrays = self._arrays(buffer, [count * piece.width for piece in group])
        targets = {
            piece.name: (piece, column) for piece, column in zip(group, columns, strict=True)
        }
        for rows, done in self._passes(batches):
            uses = done.uses_of([*linear, *targets], self._plan.orders)
            if not all(uses.values()):
                raise OtherGraph
            readers: dict[int, list[tuple[str, Use]]] = {}
            for name, each in uses.items():
                for use in each:
                    readers.setdefault(use.place, []).append((name, use))
            sums: dict[str, torch.Tensor] = {}
            steps = done.gradients(sorted(readers), directions, self._plan.folded)
            for place, gradients, known in steps:
                for name, use in readers[place]:
                    if name in linear:
                        own = use.signals(gradients, count)
                        linear[name].set(rows, linear_inputs(use), own.flatten(1))
                        continue
                    piece, column = targets[name]
                    width, out = self._plan.multiplied[name], column[rows]
                    in_place = len(uses[name]) == 1 and piece.width == width
                    if not in_place:
                        out = column.new_empty(len(out), count * width)
                    if use.edge in known:
                        out.copy_(known[use.edge])
                    else:
                        use.write(use.signals(gradients, count), out)
                    if name in sums:
                        sums[name] += out
                    elif not in_place:
                        sums[name] = out
            for name, whole in sums.items():
                piece, column = targets[name]
                column[rows] = whole[:, count * piece.entries.start : count * piece.entries.stop]
        for array in arrays:
            add_lower_product(total, array)
        for part in linear.values():
            part.add_signals()

    def _arrays(
        self, buffer: torch.Tensor, widths: Sequence[int]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Arrays for gradients in `buffer`.

        Returns:
            An array `[sample, width]` for each of `widths`; and all arrays that are multiplied. Narrow
            arrays are columns of one of them.
        """
        start = 0

        def taken(width: int) -> torch.Tensor:
            nonlocal start
            size = self._samples * width
            array = buffer[start : start + size].view(self._samples, width)
            start += -(-size // _LINE) * _LINE
            return array

        narrow = [width for width in widths if width < _NARROW]
        shared = taken(sum(narrow))
        parts = iter(torch.split(shared, narrow, 1))
        columns, wide = [], []
        for width in widths:
            if width < _NARROW:
                columns.append(next(parts))
            else:
                wide.append(taken(width))
                columns.append(wide[-1])
        return columns, [shared, *wide] if narrow else wide

    def _batches(self, outputs: int) -> list[slice]:
        """Ranges of samples that pass together, for the signals of at most that many outputs."""
        per_sample = self._plan.activations + outputs * self._plan.signals
        most = max(self._room // 2 // per_sample, 1)
        if not on_gpu(self._params.device):
            most = min(most, _most_at_once(outputs, per_sample))
        return even_parts(self._samples, -(-self._samples // most))

    def _passes(self, batches: Iterable[slice]) -> Iterator[tuple[slice, Pass]]:
        """The forward passes of all batches."""
        for rows in batches:
            done = Pass(self._function, self._params, self._inputs[rows])
            if not (
                self._plan.serves(done.graph, done.samples) and done.ordered(self._plan.orders)
            ):
                raise OtherGraph
            yield rows, done
