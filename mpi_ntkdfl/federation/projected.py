"""Projected Jacobians: messages that are shortened layer by layer with matrices that every client knows.

A client computes the kernel from the projections of its whole neighbourhood. Its update consists of its
own exact part and of its neighbours' part, which is lifted back or left out. The errors are described in
`model/projection.py`. No message contains inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from mpi_ntkdfl.comm.messages import Arrays
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.federation.formats import projected_format
from mpi_ntkdfl.federation.neighbourhood import stacked
from mpi_ntkdfl.federation.transfer import Pair
from mpi_ntkdfl.federation.waves import WorkingSet
from mpi_ntkdfl.model.jacobian import Jacobian, symmetric_product
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.model.params import aligned
from mpi_ntkdfl.model.projection import MATRIX_ROOM, Projection

if TYPE_CHECKING:
    from mpi_ntkdfl.federation.exchange import Exchange


@dataclass(frozen=True)
class Projecting:
    """How the Jacobians of a round are projected.

    Attributes:
        projection: the matrices.
        lifted: whether the neighbours' part of an update is lifted back; otherwise it is left out.
    """

    projection: Projection
    lifted: bool


def projection_of_round(federation: Federation, width: int, number: int) -> Projection:
    """The matrices of round `number` for `width` numbers per layer.

    A rank keeps them in memory during the round if they are small and the user sets no limit.
    """
    like = torch.empty(0, dtype=federation.dtype, device=federation.device)
    room = MATRIX_ROOM if federation.memory_limit is None else 0
    return Projection(federation.network.layout, width, federation.seed, number, like, room)


def stacked_numbers(network: Network, columns: int) -> int:
    """Numbers per sample that a client holds of stacked projections: themselves, and a copy."""
    return 2 * network.classes * columns


def neighbourhoods(
    exchange: Exchange, points: torch.Tensor, how: Projecting, taus: int
) -> Iterator[ProjectedNeighbourhood]:
    """Sends each client's point to its neighbours, and collects their projected Jacobians there.

    Every rank must exhaust the iterator, as with `Exchange.neighbourhoods`. The caller should use one
    neighbourhood at a time, because projections are large.

    Args:
        exchange: the round's messages.
        points: where this rank's clients linearise, `[owned, param]`.
        how: the projection.
        taus: number of residuals by which the caller multiplies at once.

    Yields:
        The neighbourhoods of the own clients that are present in id order.
    """
    at, f = exchange.tell(points), exchange.federation
    columns = how.projection.columns
    work = WorkingSet(f.network, taus, f.dtype.itemsize, stacked_numbers(f.network, columns))
    form = projected_format(f.network, f.dtype, columns)
    heard = exchange.heard(form.phase)
    exchange.book_samples(form)
    make = partial(_message, f, at, how.projection)
    for client, parts in exchange.in_waves(form, work, make, at_once=1):
        closed = heard.closed(client)
        first = int(exchange.rows[closed[closed < client]].sum())
        own = slice(first, first + int(f.sizes[client]))
        with f.clock("jacobian"):
            exact = f.network.jacobian(aligned(at[client]), f.samples[client].inputs)
        yield ProjectedNeighbourhood(client, parts, f.samples[client].inputs, own, exact, how)


def _message(
    f: Federation, at: Mapping[int, torch.Tensor], projection: Projection, pair: Pair
) -> Arrays:
    """What the own client j sends to client i."""
    samples = f.samples[pair[1]]
    with f.clock("jacobian"):
        jacobian = f.network.jacobian(aligned(at[pair[0]]), samples.inputs)
        entries = jacobian.projected(projection)
        return {"entries": entries, "outputs": jacobian.outputs, "labels": samples.labels}


class ProjectedNeighbourhood:
    """A neighbourhood of which the client knows projections, and its own samples. See `Neighbourhood`."""

    def __init__(
        self,
        client: int,
        parts: list[Arrays],
        inputs: torch.Tensor,
        own: slice,
        exact: Jacobian,
        how: Projecting,
    ) -> None:
        """Stacks the messages.

        Args:
            client: the receiver.
            parts: the messages of its closed neighbourhood, in the order of ids.
            inputs: its own raw inputs, `[sample, *shape]`.
            own: where its own samples are among all N.
            exact: the Jacobian of its own samples.
            how: the projection.
        """
        self.client, self.held = client, own
        self.outputs = stacked(parts, "outputs")
        self.labels = stacked(parts, "labels").long()
        self.inputs: torch.Tensor | None = inputs
        self._entries = stacked(parts, "entries")
        self._exact, self._how = exact, how

    def kernel(self) -> torch.Tensor:
        """The trace kernel of the projections, `[sample, sample]`."""
        return symmetric_product(self._entries.flatten(1)).div_(self.outputs.shape[1])

    def transposed_product(self, residuals: torch.Tensor) -> torch.Tensor:
        """`sum_c J_c^T R_c` of the own samples, plus that of the neighbours if lifted: `[tau, param]`."""
        product = self._exact.transposed_product(aligned(residuals[:, self.held]))
        if self._how.lifted:
            others = residuals.clone()
            others[:, self.held] = 0
            products = others.flatten(1) @ self._entries.flatten(0, 1)
            product = product + self._how.projection.lift(products)
        return product
