"""Raw samples of neighbourhoods. They never change, so on a static graph they travel once per run.

Inputs travel as bytes where the data set stores bytes. A receiver computes the same inputs from the bytes
as the sender, bit by bit.

On a static graph every client keeps the samples of its neighbours, so the ledger books their protocol
bytes in the first round of the run only. A rank keeps them as well if they fit into its working memory.
Then every client's samples are sent to a rank once. Otherwise ranks send them again in every round, and
only the MPI bytes say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from mpi_ntkdfl.comm.messages import Arrays, MessageFormat
from mpi_ntkdfl.federation.clients import Federation, Samples
from mpi_ntkdfl.federation.formats import samples_format
from mpi_ntkdfl.federation.neighbourhood import stacked
from mpi_ntkdfl.federation.waves import WorkingSet, can_keep

if TYPE_CHECKING:
    from mpi_ntkdfl.federation.exchange import Exchange


def message(federation: Federation, client: int) -> Arrays:
    """The samples of the own `client` as they travel."""
    own = federation.samples[client]
    inputs = own.inputs if federation.table is None else own.stored
    if inputs is None:
        raise RuntimeError(f"the bytes of client {client}'s samples were not kept")
    return {"inputs": inputs, "labels": own.labels}


def together(federation: Federation, parts: Sequence[Arrays]) -> Samples:
    """The samples of several messages, one after another, as inputs of the network."""
    inputs: torch.Tensor = stacked(parts, "inputs")
    if federation.table is not None:
        inputs = federation.table.inputs(inputs)
    return Samples(inputs, stacked(parts, "labels").long())


def collected(
    exchange: Exchange, work: WorkingSet, at_once: int
) -> Iterator[tuple[int, list[Arrays]]]:
    """Collects the samples of every closed neighbourhood. Every rank must exhaust the iterator.

    Args:
        exchange: the round's messages.
        work: sizes that decide how much memory the caller needs for one client.
        at_once: number of clients that the caller processes together.

    Yields:
        Own clients in id order, each with the messages of its closed neighbourhood in id order.
    """
    f, graph = exchange.federation, exchange.graph
    form = samples_format(f.network, f.travelling)
    exchange.book_once(form)
    kept = exchange.kept
    if kept is None and exchange.lasting:
        nbytes = form.nbytes_each(f.sizes)
        if can_keep(graph, f.placement, f.sizes, nbytes, work, f.memory_limit, at_once):
            kept = exchange.kept = _shared(exchange, form)
    if kept is None:
        yield from exchange.in_waves(form, work, lambda pair: message(f, pair[1]), at_once)
        return
    heard, codec = exchange.heard(form.phase), exchange.codings.jacobians

    def told(i: int, j: int) -> Arrays:
        """What client i knows of client j in this round."""
        return kept[j] if codec is None or i == j else codec.encode(form, (i, j), kept[j])

    for client in f.owned:
        if not f.presence.absent(client):
            yield client, [told(client, j) for j in heard.closed(client).tolist()]


def _shared(exchange: Exchange, form: MessageFormat) -> dict[int, Arrays]:
    """The samples of the own clients and of all their neighbours, by client id."""
    f = exchange.federation
    own = {client: message(f, client) for client in f.owned}
    return exchange.share_messages(form, own, f.sizes)
