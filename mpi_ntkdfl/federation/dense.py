"""Dense Jacobians: every entry is sent, in slices of parameters, once for each use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch

from mpi_ntkdfl.comm.messages import Arrays
from mpi_ntkdfl.federation.formats import dense_entries, dense_heading
from mpi_ntkdfl.federation.neighbourhood import Neighbourhood, stacked
from mpi_ntkdfl.federation.transfer import Pair
from mpi_ntkdfl.federation.waves import WorkingSet, slice_width
from mpi_ntkdfl.model.jacobian import DenseJacobian, Jacobian
from mpi_ntkdfl.model.params import aligned

if TYPE_CHECKING:
    from mpi_ntkdfl.federation.exchange import Exchange


def neighbourhoods(
    exchange: Exchange, at: Mapping[int, torch.Tensor], work: WorkingSet, inputs: bool
) -> Iterator[Neighbourhood]:
    """Collects the neighbours' Jacobians for one client of every rank at a time.

    Args:
        exchange: the round's messages.
        at: the parameters `[param]` at which each client linearises, by client id.
        work: sizes that decide how much memory the caller needs for a neighbourhood.
        inputs: whether raw inputs are sent as well.

    Yields:
        The neighbourhoods of the own clients that are present in id order.
    """
    f, graph = exchange.federation, exchange.graph
    heading = dense_heading(f.network, f.dtype, inputs)
    heard = exchange.heard(heading.phase)
    width = slice_width(graph, f.sizes, work, f.memory_limit)
    for part in (heading, dense_entries(f.network, f.dtype, work.params)):
        exchange.book_samples(part)
    owned = [f.placement.owned(rank) for rank in range(f.world.size)]
    for turn in range(max(map(len, owned))):
        targets = [own[turn : turn + 1] for own in owned]
        stream = _Stream(exchange, at, targets, width)
        arrived = exchange.transfer(heading, targets, stream.heading).finish()
        for client in targets[exchange.rank]:
            if f.presence.absent(client):
                continue
            parts = [arrived(client, j) for j in heard.closed(client).tolist()]
            yield StreamedNeighbourhood(client, parts, stream, inputs)
        stream.complete()


class StreamedNeighbourhood:
    """A neighbourhood whose dense Jacobian is received in slices, once per use. See `Neighbourhood`."""

    held = slice(None)

    def __init__(self, client: int, parts: list[Arrays], stream: _Stream, inputs: bool) -> None:
        self.client = client
        self.outputs = stacked(parts, "outputs")
        self.labels = stacked(parts, "labels").long()
        self.inputs = stacked(parts, "inputs") if inputs else None
        self._stream = stream

    def kernel(self) -> torch.Tensor:
        """The trace kernel `[sample, sample]`, summed over slices."""
        total = torch.zeros(
            2 * (len(self.labels),), dtype=self.outputs.dtype, device=self.outputs.device
        )
        for part in self._stream.slices():
            total.add_(part.trace_gram())
        return total.div_(self.outputs.shape[1])

    def transposed_product(self, residuals: torch.Tensor) -> torch.Tensor:
        """`sum_c J_c^T R_c`, `[tau, param]`, computed slice by slice."""
        return torch.cat(
            [part.transposed_product(residuals) for part in self._stream.slices()], dim=1
        )


class _Stream:
    """Passes through the dense slices.

    In each pass every rank sends its slices to the ranks that need them, even if it has no client of its
    own in this turn.
    """

    PASSES = 2

    def __init__(
        self, exchange: Exchange, at: Mapping[int, torch.Tensor], targets: list[range], width: int
    ) -> None:
        self._exchange, self._at, self._targets, self._width = exchange, at, targets, width
        self._jacobians: dict[Pair, Jacobian] = {}
        self._passes = 0

    def heading(self, pair: Pair) -> Arrays:
        """The message that the own client j sends to client i before the slices."""
        f = self._exchange.federation
        samples = f.samples[pair[1]]
        with f.clock("jacobian"):
            outputs = self._jacobian(pair).outputs
        return {"inputs": samples.inputs, "outputs": outputs, "labels": samples.labels}

    def slices(self) -> Iterator[DenseJacobian]:
        """One pass: the Jacobian of this rank's client, a range of parameters at a time."""
        if self._passes == self.PASSES:
            raise RuntimeError(f"a neighbourhood's Jacobian is sent only {self.PASSES} times")
        self._passes += 1
        size = self._exchange.federation.network.layout.size
        for start in range(0, size, self._width):
            yield from self._one_slice(start, min(start + self._width, size))

    def complete(self) -> None:
        """Takes part in the passes that this rank's own client did not use."""
        while self._passes < self.PASSES:
            for _ in self.slices():
                pass

    def _jacobian(self, pair: Pair) -> Jacobian:
        """The Jacobian of the own client j at client i's average.

        It is kept, because every slice is cut from it.
        """
        if pair not in self._jacobians:
            f = self._exchange.federation
            params, inputs = aligned(self._at[pair[0]]), f.samples[pair[1]].inputs
            self._jacobians[pair] = f.network.jacobian(params, inputs)
        return self._jacobians[pair]

    def _entries(self, start: int, stop: int, pair: Pair) -> Arrays:
        with self._exchange.federation.clock("jacobian"):
            return {"entries": self._jacobian(pair).dense(start, stop)}

    def _one_slice(self, start: int, stop: int) -> Iterator[DenseJacobian]:
        exchange, f = self._exchange, self._exchange.federation
        make: Callable[[Pair], Arrays] = partial(self._entries, start, stop)
        form = dense_entries(f.network, f.dtype, stop - start)
        arrived = exchange.transfer(form, self._targets, make).finish()
        for client in self._targets[exchange.rank]:
            heard = exchange.heard(form.phase).closed(client).tolist()
            parts = [arrived(client, j) for j in heard]
            yield DenseJacobian(stacked(parts, "entries"))
