"""Messages between clients and a server, for methods that have a server; the graph is not used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from mpi_ntkdfl.comm.messages import Arrays, MessageFormat
from mpi_ntkdfl.comm.reduce import exact_mean, reduced_bytes
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.federation.jacobian_messages import JacobianMessage, smallest_message
from mpi_ntkdfl.federation.neighbourhood import Neighbourhood
from mpi_ntkdfl.federation.transfer import Outgoing

if TYPE_CHECKING:
    from mpi_ntkdfl.federation.exchange import Exchange

Answer = Callable[[Neighbourhood], tuple[torch.Tensor, int]]
"""A function from the participants' stacked samples to new weights `[param]` and a number."""


def average(
    exchange: Exchange,
    vectors: torch.Tensor,
    kind: Literal["plain", "samples"],
    since: torch.Tensor,
) -> torch.Tensor:
    """Every client that is present sends its vector to a server and receives the mean of their vectors.

    A server does not use vectors that are late.

    Args:
        exchange: the round's messages.
        vectors: vectors of this rank's clients, `[owned, param]`.
        kind: `plain` for equal weights, `samples` for weights in proportion to the clients' samples.
        since: what the server knows of the vectors from the round before, `[owned, param]`; with a
            codec, clients send what has changed since then.

    Returns:
        The mean, `[param]`, the same on every rank.
    """
    f, codings = exchange.federation, exchange.codings
    present, used = f.presence.ids(f.placement.clients), f.presence.delivered(f.placement.clients)
    whole = np.full(f.placement.clients, vectors.shape[1] * vectors.dtype.itemsize)
    up, down = codings.next("weights"), codings.next("averages")
    counts = whole
    if up is not None:
        vectors, counts = up.to_server(vectors, since, codings.number)
    _book(exchange, "weights", present, counts)
    if f.world.size > 1:
        f.ledger.book_mpi("weights", reduced_bytes(vectors.shape[1], f.world.size))
    shares = np.zeros(f.placement.clients, dtype=np.int64)
    shares[used] = f.sizes[used] if kind == "samples" else 1
    with f.clock("exchange"):
        own = shares[f.owned.start : f.owned.stop]
        mean = exact_mean(f.world, vectors, int(shares.sum()), own.tolist())
    counts = whole
    if down is not None:
        mean, count = down.from_server(mean, codings.number)
        counts = np.full_like(whole, count)
    _book(exchange, "averages", present, counts)
    return mean


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
    message, codings = smallest_message(f.network), exchange.codings
    form, make = message.form(f), _sending(exchange, message, w)
    codec, down = codings.jacobians, codings.next("weights")
    new: np.ndarray | None = None
    answer_bytes = w.numel() * w.dtype.itemsize

    def serve() -> int:
        nonlocal new, answer_bytes
        if not parts:
            new = w.cpu().numpy()
            return 0
        with f.clock("jacobian"):
            told = parts if codec is None else [codec.decode(form, part) for part in parts]
            # Coded inputs lie on no levels.
            receiver = f if codec is None or codec.exact else replace(f, levels=None)
            hood = message.receive(receiver, w, clients, told)
        parts.clear()
        weights, number = answer(hood)
        if down is not None:
            weights, answer_bytes = down.from_server(weights, codings.number)
        new = weights.cpu().numpy()
        return number

    with f.clock("exchange"):
        used = np.intersect1d(participants, f.presence.delivered(clients))
        parts = _collected(f, exchange.coded(form), used, make, exchange.rows)
        number = f.world.on_root(serve)
        answered = f.world.broadcast(new)
    for phase, count in exchange.coded(form).by_phase(1, travelling=False).items():
        _book(exchange, phase, participants, count * exchange.rows)
    _book(exchange, "weights", f.presence.ids(clients), np.full(clients, answer_bytes))
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


def _sending(
    exchange: Exchange, message: JacobianMessage, w: torch.Tensor
) -> Callable[[int], Arrays]:
    """A function that returns the message of an own client about its Jacobian at `w` `[param]`."""
    f, server, codec = exchange.federation, exchange.graph.clients, exchange.codings.jacobians
    if codec is None:
        return partial(message.make, f, w)
    make = codec.sending(message.form(f), lambda pair: message.make(f, w, pair[1]))
    return lambda client: make((server, client))


def _collected(
    f: Federation,
    form: MessageFormat,
    clients: np.ndarray,
    make: Callable[[int], Arrays],
    rows: np.ndarray,
) -> list[Arrays]:
    """The messages of `clients` in id order on rank 0; an empty list on other ranks.

    Args:
        f: the clients.
        form: layout of a message.
        clients: ids, ascending.
        make: returns the message of an own client.
        rows: number of rows of each client's message, `[client]`.
    """
    owners = np.asarray(f.placement.owner(clients))
    outgoing = Outgoing(f.ledger, f.staging)
    if f.world.rank:
        for client in clients[owners == f.world.rank].tolist():
            outgoing.add(form, int(rows[client]), partial(make, client))
    messages = []
    for rank, received in enumerate(f.world.collect(outgoing.pack().cpu().numpy())):
        buffer, position = torch.from_numpy(received).to(f.device), 0
        for client in clients[owners == rank].tolist():
            if rank == f.world.rank:
                messages.append(make(client))
                continue
            samples = int(rows[client])
            messages.append(form.read(buffer, position, samples))
            position += form.nbytes(samples)
    return messages


def _book(exchange: Exchange, phase: str, clients: np.ndarray, counts: np.ndarray) -> None:
    """Books `counts[client]` bytes between each of `clients` and the server."""
    through = np.zeros(exchange.graph.clients + 1, dtype=np.int64)
    through[clients] = counts[clients]
    through[-1] = through.sum()
    exchange.book_protocol(phase, through)
