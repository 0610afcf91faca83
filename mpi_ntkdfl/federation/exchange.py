"""What methods do with messages: share vectors, average, collect neighbours' Jacobians, ask a server.

A method uses an `Exchange` and knows nothing about ranks. Clients on the same rank exchange by reference.
A vector that several clients of another rank need is sent to that rank once. With any placement, a client
combines the received vectors in ascending order of client ids, so its bits do not depend on the number
of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Literal

import numpy as np
import torch

from mpi_ntkdfl.comm.flight import Flight
from mpi_ntkdfl.comm.messages import Arrays, Field, MessageFormat
from mpi_ntkdfl.comm.reduce import exact_mean, reduced_bytes
from mpi_ntkdfl.federation import dense, raw_samples, server
from mpi_ntkdfl.federation.booking import Booking
from mpi_ntkdfl.federation.clients import Federation, Samples
from mpi_ntkdfl.federation.coding import NO_CODINGS, Codings
from mpi_ntkdfl.federation.crossing import Crossing
from mpi_ntkdfl.federation.jacobian_messages import FactoredMessage, JacobianMessage, SamplesMessage
from mpi_ntkdfl.federation.neighbourhood import Neighbourhood
from mpi_ntkdfl.federation.transfer import Outgoing, Pair, Transfer
from mpi_ntkdfl.federation.waves import (
    WorkingSet,
    clients_at_once,
    factored_waves,
    largest_neighbourhood,
)
from mpi_ntkdfl.topology.graphs import Graph
from mpi_ntkdfl.topology.mixing import Averaging, weights
from mpi_ntkdfl.topology.placement import neighbour_ranks
from mpi_ntkdfl.topology.present import Hearing

JacobianKind = Literal["inputs", "factored", "dense"]


class Exchange(Booking):
    """The messages of one graph. It is a context manager that frees its communicator at the end.

    Attributes:
        kept: the raw samples of the rank's clients and their neighbours, by client id, once they were
            sent and if they are kept.
        rank: this rank.
    """

    def __init__(
        self,
        federation: Federation,
        graph: Graph,
        lasting: bool = True,
        resumed: bool = False,
        codings: Codings = NO_CODINGS,
    ) -> None:
        """Opens the exchange; all ranks take part.

        Args:
            federation: the clients.
            graph: the communication graph.
            lasting: whether the graph is used for many rounds.
            resumed: whether the run had rounds on this graph before, in an earlier start.
            codings: the codecs of the run's method.
        """
        super().__init__(federation, graph, codings, lasting, held=lasting and resumed)
        self.kept: dict[int, Arrays] | None = None
        self.rank = federation.world.rank
        with federation.clock("connect"):
            neighbours = neighbour_ranks(graph, federation.placement, self.rank)
            self._channel = federation.world.channel(neighbours.tolist(), lasting)
        self._crossing = Crossing(graph, federation.placement, self.rank, self._channel.neighbours)

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After a failure on one rank the other ranks do not take part in a collective free.
        if error is None:
            self.close()

    def close(self) -> None:
        """Frees the communicator; all ranks take part."""
        self._channel.close()

    def heard(self, phase: str) -> Graph | Hearing:
        """Whose messages of a phase each client uses: those of its neighbours that are not late."""
        return self.federation.presence.heard.get(phase, self.graph)

    # --------------------------------------------------------------------------------- vectors

    def share(
        self, vectors: torch.Tensor, phase: str, booked: bool = True
    ) -> dict[int, torch.Tensor]:
        """Every client sends its vector, as it is, to its neighbours.

        Args:
            vectors: vectors of this rank's clients in id order, `[owned, param]`.
            phase: phase under which the ledger books the messages.
            booked: whether the protocol bytes are booked; False if the caller has booked them.

        Returns:
            Vectors `[param]` of the rank's own clients and of all their neighbours, by client id.
        """
        form = MessageFormat({"vector": Field(phase, (vectors.shape[1],), vectors.dtype)})
        own = zip(self.federation.owned, vectors, strict=True)
        if booked:
            self.book_vectors(form)
        messages = self.share_messages(form, {client: {"vector": row[None]} for client, row in own})
        return {client: message["vector"][0] for client, message in messages.items()}

    def share_messages(
        self, form: MessageFormat, messages: Mapping[int, Arrays], rows: np.ndarray | None = None
    ) -> dict[int, Arrays]:
        """Every client sends one message to its neighbours; the caller books the protocol bytes.

        Args:
            form: layout of a message.
            messages: arrays `[row, ...]` of this rank's clients, by client id.
            rows: number of rows of each client's message, `[client]`; None for one.

        Returns:
            Messages of the rank's own clients and of all their neighbours, by client id.
        """
        f, channel = self.federation, self._channel
        by_client = dict(messages)
        with f.clock("exchange"):
            leaving, coming = self._crossing.leaving, self._crossing.coming
            count = np.ones(self.graph.clients, dtype=np.int64) if rows is None else rows
            outgoing, nbytes = Outgoing(f.ledger, f.staging), form.nbytes_each(count)
            for clients in leaving:
                for client in clients:
                    outgoing.add(form, int(count[client]), partial(by_client.__getitem__, client))
            pending = outgoing.start(
                channel,
                [int(nbytes[c].sum()) for c in leaving],
                [int(nbytes[c].sum()) for c in coming],
            )
            received, start = f.staging.arrive(Flight(pending, f.clock).wait()), 0
            for clients in coming:
                for client in clients:
                    by_client[client] = form.read(received, start, int(count[client]))
                    start += int(nbytes[client])
        return by_client

    def average(
        self, vectors: torch.Tensor, kind: Averaging = "plain", since: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Each client averages its own and its neighbours' vectors, in float64 and in client-id order.

        Args:
            vectors: vectors of this rank's clients, `[owned, param]`.
            kind: `plain` for equal weights, `samples` for weights in proportion to the clients' samples,
                `metropolis` for those that keep the mean of all clients on any graph.
            since: what the vectors were at the start of the round. With a codec, clients send what has
                changed since then; None if they send whole vectors.

        Returns:
            The averages of this rank's clients, `[owned, param]`.
        """
        stream = self.codings.next("weights")
        if stream is None:
            return self.mixed(self.share(vectors, "weights"), vectors, kind)
        return stream.average(self, vectors, kind, since, self.codings.number)

    def tell(self, points: torch.Tensor) -> dict[int, torch.Tensor]:
        """Every client sends its average, or the point at which it linearises, to its neighbours.

        Args:
            points: of this rank's clients, `[owned, param]`.

        Returns:
            What neighbours read, as for `share`.
        """
        stream = self.codings.next("averages")
        if stream is None:
            return self.share(points, "averages")
        told = stream.share(self, points, self.codings.number)
        return {client: vector.to(points.dtype) for client, vector in told.items()}

    def mixed(
        self, shared: Mapping[int, torch.Tensor], like: torch.Tensor, kind: Averaging
    ) -> torch.Tensor:
        """The averages `[owned, param]`, in the type of `like`, of vectors that clients have shared."""
        heard = self.heard("weights")
        mixing = weights(kind, heard, self.federation.sizes)
        averages = torch.empty_like(like)
        with self.federation.clock("update"):
            for row, client in enumerate(self.federation.owned):
                total = torch.zeros_like(like[0], dtype=torch.float64)
                for other, weight in zip(
                    heard.closed(client).tolist(), mixing.of(client).tolist(), strict=True
                ):
                    total.add_(shared[other], alpha=weight)
                averages[row] = total
        return averages

    def server_average(
        self, vectors: torch.Tensor, kind: Literal["plain", "samples"], since: torch.Tensor
    ) -> torch.Tensor:
        """Every client sends its vector to a server and receives the mean. See `server.average`."""
        return server.average(self, vectors, kind, since)

    def ask_server(
        self,
        w: torch.Tensor,
        participants: np.ndarray,
        answer: Callable[[Neighbourhood], tuple[torch.Tensor, int]],
    ) -> tuple[torch.Tensor, int]:
        """Participants send their Jacobians to a server; all clients get its answer. See `server.ask`."""
        return server.ask(self, w, participants, answer)

    # ----------------------------------------------------------------------- samples, Jacobians

    def at_once(self, taus: int) -> int:
        """The number of neighbourhoods that a rank evolves together; `taus` as for `neighbourhoods`."""
        f = self.federation
        work = WorkingSet(f.network, taus, f.dtype.itemsize)
        one_client = work.one_client(largest_neighbourhood(self.graph, f.sizes))
        return clients_at_once(f.batch, f.batch_bytes, f.memory_limit, one_client)

    def samples(self, taus: int) -> Iterator[tuple[int, Samples]]:
        """Collects the raw samples of every closed neighbourhood.

        Every rank must exhaust the iterator, as with `neighbourhoods`.

        Args:
            taus: number of weight vectors that the caller holds at once.

        Yields:
            This rank's present clients in id order, with their stacked samples in client-id order.
        """
        f = self.federation
        work = WorkingSet(f.network, taus, f.dtype.itemsize)
        for client, parts in raw_samples.collected(self, work, at_once=1):
            yield client, raw_samples.together(f, parts)

    def neighbourhoods(
        self, w_bar: torch.Tensor, kind: JacobianKind, inputs: bool, taus: int
    ) -> Iterator[Neighbourhood]:
        """Collects the neighbours' Jacobians at each client's average; they receive it if they need it.

        Every rank must exhaust the iterator: the messages for the next clients are on their way while
        the caller works on the current ones.

        Args:
            w_bar: averages of this rank's clients, `[owned, param]`.
            kind: `inputs` sends the samples, from which the receiver computes the Jacobian, so that no
                average is sent; `factored` sends the network's factored form, `dense` every entry.
            inputs: whether the neighbours' raw inputs are needed. Only dense Jacobians come without
                them; they are then sent in addition.
            taus: number of residuals by which the caller multiplies at once.

        Yields:
            The neighbourhoods of this rank's present clients in id order.
        """
        f, at_once = self.federation, self.at_once(taus)
        if (codec := self.codings.jacobians) is not None and not codec.exact:
            f = replace(f, levels=None)  # coded inputs lie on no levels
        work = WorkingSet(f.network, taus, f.dtype.itemsize)
        message: JacobianMessage
        if kind == "inputs":
            at: Mapping[int, torch.Tensor] = dict(zip(f.owned, w_bar, strict=True))
            message, collected = SamplesMessage(), raw_samples.collected(self, work, at_once)
        else:
            at = self.tell(w_bar)
            if kind == "dense":
                yield from dense.neighbourhoods(self, at, work, inputs)
                return
            message = FactoredMessage()
            form = message.form(f)
            self.book_samples(form)
            collected = self.in_waves(
                form, work, lambda p: message.make(f, at[p[0]], p[1]), at_once
            )
        for client, parts in collected:
            with f.clock("jacobian"):
                neighbourhood = message.receive(f, at[client], client, parts)
            yield neighbourhood

    def in_waves(
        self, form: MessageFormat, work: WorkingSet, make: Callable[[Pair], Arrays], at_once: int
    ) -> Iterator[tuple[int, list[Arrays]]]:
        """Collects the messages `make(i, j)` of closed neighbourhoods for the own clients i.

        The clients are processed in waves, so that a rank keeps to its working memory. The caller books
        the protocol bytes.

        Args:
            form: layout of a message; its number of rows is the number of samples of j.
            work: sizes that decide how much memory the caller needs for a client's messages.
            make: returns the message of the own client j for client i.
            at_once: number of clients that the caller processes together.

        Yields:
            Own clients that are present in id order, each with its messages in id order.
        """
        f = self.federation
        message_bytes = self.coded(form).nbytes_each(self.rows)
        waves = factored_waves(
            self.graph, f.placement, f.sizes, message_bytes, work, f.memory_limit, at_once
        )
        heard = self.heard(form.phase)
        turns = len(waves[self.rank])
        transfer = self.transfer(form, [wave[0] for wave in waves], make)
        for turn in range(turns):
            arrived = transfer.finish()
            if turn + 1 < turns:
                transfer = self.transfer(form, [wave[turn + 1] for wave in waves], make)
            for client in waves[self.rank][turn]:
                transfer.poke()
                if not f.presence.absent(client):
                    yield client, [arrived(client, j) for j in heard.closed(client).tolist()]

    def transfer(
        self, form: MessageFormat, targets: list[range], make: Callable[[Pair], Arrays]
    ) -> Transfer:
        """Starts to send `make(i, j)` for the targets i of every rank and the clients j of this rank.

        Args:
            form: layout of a message; its number of rows is the number of samples of j.
            targets: the clients of each rank that collect messages in this exchange, `[rank]`.
            make: returns the message of the own client j for client i.
        """
        f, channel, sizes = self.federation, self._channel, self.rows
        opened = None
        if (codec := self.codings.jacobians) is not None:
            make, opened = codec.sending(form, make), partial(codec.decode, form)
            form = codec.form(form)
        with f.clock("exchange"):
            outgoing, send_bytes = Outgoing(f.ledger, f.staging), []
            for wanted in self._crossing.pairs_leaving(targets):
                send_bytes.append(sum(form.nbytes(int(sizes[j])) for _, j in wanted))
                for pair in wanted:
                    outgoing.add(form, int(sizes[pair[1]]), partial(make, pair))
            coming = self._crossing.pairs_coming(targets)
            receive_bytes = [
                sum(form.nbytes(int(sizes[j])) for _, j in wanted) for wanted in coming
            ]
            pending = Flight(outgoing.start(channel, send_bytes, receive_bytes), f.clock)
        order = [pair for wanted in coming for pair in wanted]
        return Transfer(pending, order, form, sizes, make, f.staging, f.clock, opened)


def mean_over_clients(federation: Federation, vectors: torch.Tensor) -> torch.Tensor:
    """Mean `[param]` over all clients of `vectors` `[owned, param]`; its bytes count as statistics."""
    if federation.world.size > 1:
        sent = reduced_bytes(vectors.shape[1], federation.world.size)
        federation.ledger.book_mpi("statistics", sent)
    return exact_mean(federation.world, vectors, federation.placement.clients)
