"""Messages between clients and a server, for methods that have a server; the graph is not used."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from mpi_ntkdfl.comm.messages import Arrays, Field, MessageFormat
from mpi_ntkdfl.comm.reduce import exact_mean, reduced_bytes
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.federation.jacobian_messages import smallest_message
from mpi_ntkdfl.federation.neighbourhood import Neighbourhood
from mpi_ntkdfl.federation.transfer import Outgoing

if TYPE_CHECKING:
    from mpi_ntkdfl.federation.exchange import Exchange

Answer = Callable[[Neighbourhood], tuple[torch.Tensor, int]]
"""A function from the participants' stacked samples to new weights `[param]` and a number."""


def average(
    exchange: Exchange, vectors: torch.Tensor, kind: Literal["plain", "samples"]
) -> torch.Tensor:
    """Every client that is present sends its vector to a server and receives the mean of their vectors.

    A server does not use vectors that are late.

    Args:
        exchange: the round's messages.
        vectors: vectors of this rank's clients, `[owned, param]`.
        kind: `plain` for equal weights, `samples` for weights in proportion to the clients' samples.

    Returns:
        The mean, `[param]`, the same on every rank.
    """
    f = exchange.federation
    present, used = f.presence.ids(f.placement.clients), f.presence.delivered(f.placement.clients)
    for phase in ("weights", "averages"):
        form = MessageFormat({"vector": Field(phase, (vectors.shape[1],), vectors.dtype)})
        _book(exchange, form, present, np.ones_like(f.sizes))
    if f.world.size > 1:
        f.ledger.book_mpi("weights", reduced_bytes(vectors.shape[1], f.world.size))
    shares = np.zeros(f.placement.clients, dtype=np.int64)
    shares[used] = f.sizes[used] if kind == "samples" else 1
    with f.clock("exchange"):
        own = shares[f.owned.start : f.owned.stop]
        return exact_mean(f.world, vectors, int(shares.sum()), own.tolist())


def ask(
    exchange: Exchange, w: torch.Tensor, participants: np.ndarray, answer: Answer
) -> tuple[torch.Tensor, int]:
    """Participants send their Jacobians at `w` to a server, which answers all clients that are present.

    The participants send the network's smallest message for Jacobians. If there are none, or all their
    messages are late, the answer is `w`. The server is connected to all clients, whatever the graph is.
    It runs on rank 0; ranks that wait for it sleep.

    Args:
        exchange: the round's messages.
        w: weights that all clients hold, `[param]`.
        participants: client ids, ascending.
        answer: computes new weights `[param]` and a number (such as tau) from the stacked samples of the
            participants; it is called only on the server.

    Returns:
        The answer, on every rank.
    """
    f, clients = exchange.federation, exchange.graph.clients
    message = smallest_message(f.network)
    form = message.form(f)
    new: np.ndarray | None = None

    def serve() -> int:
        nonlocal new
        if not parts:
            new = w.cpu().numpy()
            return 0
        with f.clock("jacobian"):
            hood = message.receive(f, w, clients, parts)
        parts.clear()
        weights, number = answer(hood)
        new = weights.cpu().numpy()
        return number

    with f.clock("exchange"):
        used = np.intersect1d(participants, f.presence.delivered(clients))
        parts = _collected(f, form, used, partial(message.make, f, w))
        number = f.world.on_root(serve)
        answered = f.world.broadcast(new)
    _book(exchange, form, participants, f.sizes)
    down = MessageFormat({"vector": Field("weights", w.shape, w.dtype)})
    _book(exchange, down, f.presence.ids(clients), np.ones_like(f.sizes))
    if exchange.rank == 0 and f.world.size > 1:
        f.ledger.book_mpi("weights", answered.nbytes)
    return torch.from_numpy(answered).to(f.device), number


def model_of_server(exchange: Exchange, weights: torch.Tensor) -> torch.Tensor:
    """The server's model `[param]`, on every rank: the weights of a client that received it last.

    Args:
        exchange: the round's messages.
        weights: the weights of this rank's clients, `[owned, param]`; absent clients have older ones.
    """
    f = exchange.federation
    holder = f.presence.first_holder
    if holder is None:  # everybody has it
        return weights[0]
    mine = weights[holder - f.owned.start][None] if holder in f.owned else weights[:0]
    parts = list(f.world.collect(mine.cpu().numpy()))
    model = f.world.broadcast(np.concatenate(parts)[0] if parts else None)
    return torch.from_numpy(model).to(f.device)


def _collected(
    f: Federation, form: MessageFormat, clients: np.ndarray, make: Callable[[int], Arrays]
) -> list[Arrays]:
    """The messages `make(client)` of `clients` in id order on rank 0; an empty list on other ranks."""
    owners = np.asarray(f.placement.owner(clients))
    outgoing = Outgoing(f.ledger, f.staging)
    if f.world.rank:
        for client in clients[owners == f.world.rank].tolist():
            outgoing.add(form, int(f.sizes[client]), partial(make, client))
    messages = []
    for rank, received in enumerate(f.world.collect(outgoing.pack().cpu().numpy())):
        buffer, position = torch.from_numpy(received).to(f.device), 0
        for client in clients[owners == rank].tolist():
            if rank == f.world.rank:
                messages.append(make(client))
                continue
            samples = int(f.sizes[client])
            messages.append(form.read(buffer, position, samples))
            position += form.nbytes(samples)
    return messages


def _book(exchange: Exchange, form: MessageFormat, clients: np.ndarray, rows: np.ndarray) -> None:
    """Books a message with `rows[client]` rows between each of `clients` and the server."""
    through = np.zeros(exchange.graph.clients + 1, dtype=np.int64)
    through[clients] = rows[clients]
    through[-1] = through.sum()
    for phase, count in form.by_phase(1, travelling=False).items():
        exchange.book_protocol(phase, count * through)
