"""What a method can do with messages: share vectors, average, see neighbours' Jacobians, ask a server.

A method sees an `Exchange`, never a rank. Clients on the same rank exchange by reference. A vector that
several clients of a rank need crosses to this rank once. On any placement a client combines what it
received in ascending client id, so that its bits do not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from types import TracebackType
from typing import Literal

import numpy as np
import torch

from mpi_ntkdfl.comm.flight import Flight
from mpi_ntkdfl.comm.messages import Arrays, Field, MessageFormat
from mpi_ntkdfl.comm.reduce import exact_mean, reduced_bytes
from mpi_ntkdfl.federation.clients import Federation, Samples
from mpi_ntkdfl.federation.codecs import Coding, Decoded
from mpi_ntkdfl.federation.crossing import Crossing
from mpi_ntkdfl.federation.formats import (
    dense_entries,
    dense_heading,
    factored_format,
    samples_format,
)
from mpi_ntkdfl.federation.neighbourhood import HeldNeighbourhood, Neighbourhood, stacked
from mpi_ntkdfl.federation.transfer import Outgoing, Pair, Transfer
from mpi_ntkdfl.federation.waves import (
    WorkingSet,
    clients_at_once,
    factored_waves,
    largest_neighbourhood,
    neighbourhood_sums,
    slice_width,
)
from mpi_ntkdfl.model.params import aligned
from mpi_ntkdfl.ntk.jacobian import DenseJacobian, FactoredJacobian
from mpi_ntkdfl.topology.graphs import Graph
from mpi_ntkdfl.topology.mixing import weights
from mpi_ntkdfl.topology.placement import neighbour_ranks

JacobianKind = Literal["factored", "dense"]


class Exchange:
    """The messages of one graph. A context manager: leaving it frees its communicator."""

    def __init__(self, federation: Federation, graph: Graph) -> None:
        """Opens the exchange; all ranks take part."""
        self.federation = federation
        self.graph = graph
        self._rank = federation.world.rank
        found = neighbour_ranks(graph, federation.placement, self._rank)
        self._channel = federation.world.channel(found.tolist())
        self._crossing = Crossing(graph, federation.placement, self._rank, self._channel.neighbours)

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After a failure on one rank the others will not take part in a collective free.
        if error is None:
            self.close()

    def close(self) -> None:
        """Frees the communicator; all ranks take part."""
        self._channel.close()

    # --------------------------------------------------------------------------------- vectors

    def share(
        self, vectors: torch.Tensor, phase: str, codec: Coding | None = None, number: int = 0
    ) -> Mapping[int, torch.Tensor]:
        """Every client sends its vector to its neighbours.

        Args:
            vectors: this rank's clients' vectors in id order, `[owned, param]`.
            phase: under which the ledger books the messages.
            codec: writes the vectors into smaller messages; None sends them as they are.
            number: of the round, from which a codec's random numbers follow.

        Returns:
            Vectors `[param]` of the rank's own clients and of all their neighbours, by client id.
            With a codec these are what a receiver decodes, for a rank's own clients as well.
        """
        if codec is not None:
            return self._share_coded(vectors, phase, codec, number)
        form = MessageFormat({"vector": Field(phase, (vectors.shape[1],), vectors.dtype)})
        own = zip(self.federation.owned, vectors, strict=True)
        self.book_vectors(form)
        known = self.share_messages(form, {client: {"vector": row[None]} for client, row in own})
        return {client: message["vector"][0] for client, message in known.items()}

    def _share_coded(
        self, vectors: torch.Tensor, phase: str, codec: Coding, number: int
    ) -> Mapping[int, torch.Tensor]:
        f = self.federation
        with f.clock("update"):
            own = codec.encode(vectors, phase, number)
        counts = np.zeros(self.graph.clients, dtype=np.int64)
        counts[f.owned.start : f.owned.stop] = [codec.protocol_bytes(m) for m in own.values()]
        self.book_sent(phase, f.world.total(counts))
        return Decoded(self.share_messages(codec.format(phase), own), codec)

    def share_messages(
        self, form: MessageFormat, messages: Mapping[int, Arrays]
    ) -> dict[int, Arrays]:
        """Every client sends its neighbours one message; the caller books its protocol bytes.

        Args:
            form: layout of a message, of one row each.
            messages: arrays `[1, ...]` of this rank's clients, by client id.

        Returns:
            Messages of the rank's own clients and of all their neighbours, by client id.
        """
        f, channel = self.federation, self._channel
        known = dict(messages)
        with f.clock("exchange"):
            leaving, coming = self._crossing.leaving, self._crossing.coming
            each, outgoing = form.nbytes(1), Outgoing(f.ledger, f.staging)
            for clients in leaving:
                for client in clients:
                    outgoing.add(form, 1, partial(known.__getitem__, client))
            pending = outgoing.start(
                channel, [len(c) * each for c in leaving], [len(c) * each for c in coming]
            )
            received, start = f.staging.arrive(Flight(pending, f.clock).wait()), 0
            for clients in coming:
                for client in clients:
                    known[client] = form.read(received, start, 1)
                    start += each
        return known

    def average(
        self,
        vectors: torch.Tensor,
        kind: Literal["plain", "samples"] = "plain",
        codec: Coding | None = None,
        number: int = 0,
    ) -> torch.Tensor:
        """Each client averages its own and its neighbours' vectors, in client-id order in float64.

        Args:
            vectors: of this rank's clients, `[owned, param]`.
            kind: equal weights, or in proportion to the clients' samples.
            codec: as for `share`.
            number: as for `share`.

        Returns:
            The averages of this rank's clients, `[owned, param]`.
        """
        known = self.share(vectors, "weights", codec, number)
        mixing = weights(kind, self.graph, self.federation.sizes)
        averages = torch.empty_like(vectors)
        with self.federation.clock("update"):
            for row, client in enumerate(self.federation.owned):
                total = torch.zeros_like(vectors[0], dtype=torch.float64)
                for other, weight in zip(
                    self.graph.closed(client).tolist(), mixing.of(client).tolist(), strict=True
                ):
                    total.add_(known[other], alpha=weight)
                averages[row] = total
        return averages

    def server_average(
        self, vectors: torch.Tensor, kind: Literal["plain", "samples"] = "plain"
    ) -> torch.Tensor:
        """Every client sends its vector to a server and gets the mean of all back; no graph.

        Args:
            vectors: `[owned, param]`.
            kind: equal weights, or in proportion to the clients' samples.

        Returns:
            The mean, `[param]`, the same on every rank.
        """
        f, count = self.federation, self.federation.placement.clients
        everybody = np.arange(count)
        for phase in ("weights", "averages"):
            form = MessageFormat({"vector": Field(phase, (vectors.shape[1],), vectors.dtype)})
            self.book_server(form, everybody, np.ones_like(everybody))
        if f.world.size > 1:
            f.ledger.book_mpi("weights", reduced_bytes(vectors.shape[1]))
        shares = f.sizes if kind == "samples" else np.ones(count, dtype=np.int64)
        with f.clock("exchange"):
            own = shares[f.owned.start : f.owned.stop]
            return exact_mean(f.world, vectors, int(shares.sum()), own.tolist())

    # ----------------------------------------------------------------------- samples, Jacobians

    def at_once(self, taus: int) -> int:
        """How many neighbourhoods a rank evolves together; `taus` as for `neighbourhoods`."""
        f = self.federation
        work = WorkingSet.of(f.network, taus, f.dtype)
        one_client = work.one_client(largest_neighbourhood(self.graph, f.sizes))
        return clients_at_once(f.batch, f.batch_bytes, f.memory_limit, one_client)

    def samples(self, taus: int) -> Iterator[tuple[int, Samples]]:
        """Collects the raw samples of every closed neighbourhood.

        Every rank must exhaust the iterator, as with `neighbourhoods`.

        Args:
            taus: number of weight vectors the caller will hold at once.

        Yields:
            This rank's clients in id order, with their stacked samples in client-id order.
        """
        f = self.federation
        form = samples_format(f.network, f.dtype)

        def make(pair: Pair) -> Arrays:
            own = f.samples[pair[1]]
            return {"inputs": own.inputs, "labels": own.labels}

        work = WorkingSet.of(f.network, taus, f.dtype)
        for client, parts in self._in_waves(form, work, make, at_once=1):
            yield client, Samples(stacked(parts, "inputs"), stacked(parts, "labels").long())

    def neighbourhoods(
        self, w_bar: torch.Tensor, kind: JacobianKind, inputs: bool, taus: int
    ) -> Iterator[Neighbourhood]:
        """Sends the averages back, and collects the neighbours' Jacobians at them.

        Every rank must exhaust the iterator: the messages of the next clients travel while the
        caller works on these.

        Args:
            w_bar: averages of this rank's clients, `[owned, param]`.
            kind: `factored` sends layer inputs, `dense` every entry of the Jacobian.
            inputs: whether the neighbours' raw inputs are wanted. Factored Jacobians hold them
                anyway; with dense ones they are sent as well.
            taus: number of residuals the caller will multiply by at once.

        Yields:
            This rank's clients in id order.
        """
        at = self.share(w_bar, "averages")
        f = self.federation
        work = WorkingSet.of(f.network, taus, f.dtype)
        if kind == "factored":
            yield from self._factored(at, work)
        else:
            yield from self._dense(at, work, inputs)

    def _factored(
        self, at: Mapping[int, torch.Tensor], work: WorkingSet
    ) -> Iterator[Neighbourhood]:
        f = self.federation
        form = factored_format(f.network, f.dtype)

        def make(pair: Pair) -> Arrays:
            return _factored_message(f, at[pair[0]], pair[1])

        for client, parts in self._in_waves(form, work, make, self.at_once(work.taus)):
            with f.clock("jacobian"):
                neighbourhood = HeldNeighbourhood(f.network, client, at[client], parts, f.levels)
            yield neighbourhood

    def _in_waves(
        self, form: MessageFormat, work: WorkingSet, make: Callable[[Pair], Arrays], at_once: int
    ) -> Iterator[tuple[int, list[Arrays]]]:
        """Collects `make(i, j)` for own clients i from their closed neighbourhoods, within memory.

        Args:
            form: layout of a message, by the samples of j.
            work: sizes of what the caller does with a client's messages.
            make: the message of own client j for client i.
            at_once: clients the caller computes together.

        Yields:
            Own clients in id order, each with its messages in id order.
        """
        f = self.federation
        message_bytes = form.nbytes_each(f.sizes)
        waves = factored_waves(
            self.graph, f.placement, f.sizes, message_bytes, work, f.memory_limit, at_once
        )
        self._book_samples(form)
        turns = len(waves[self._rank])
        transfer = self._transfer(form, [wave[0] for wave in waves], make)
        for turn in range(turns):
            arrived = transfer.finish()
            if turn + 1 < turns:
                transfer = self._transfer(form, [wave[turn + 1] for wave in waves], make)
            for client in waves[self._rank][turn]:
                transfer.poke()
                yield client, [arrived(client, j) for j in self.graph.closed(client).tolist()]

    def _dense(
        self, at: Mapping[int, torch.Tensor], work: WorkingSet, inputs: bool
    ) -> Iterator[Neighbourhood]:
        f = self.federation
        form = dense_heading(f.network, f.dtype, inputs)
        width = slice_width(self.graph, f.sizes, work, f.memory_limit)
        for part in (form, dense_entries(f.network, f.dtype, work.params)):
            self._book_samples(part)
        owned = [f.placement.owned(rank) for rank in range(f.world.size)]
        for turn in range(max(map(len, owned))):
            targets = [own[turn : turn + 1] for own in owned]
            arrived = self._transfer(
                form, targets, lambda p: _dense_heading_message(f, at, p)
            ).finish()
            stream = _Stream(self, at, targets, width)
            for client in targets[self._rank]:
                parts = [arrived(client, j) for j in self.graph.closed(client).tolist()]
                yield StreamedNeighbourhood(client, parts, stream)
            stream.complete()

    def _transfer(
        self, form: MessageFormat, targets: list[range], make: Callable[[Pair], Arrays]
    ) -> Transfer:
        """Starts sending `make(i, j)` for the targets i of every rank and the clients j of this one.

        Args:
            form: layout of a message, by the samples of j.
            targets: for each rank the clients that collect in this exchange.
            make: the message of own client j for client i.
        """
        f, channel = self.federation, self._channel
        sizes = f.sizes
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
        return Transfer(pending, order, form, sizes, make, f.staging, f.clock)

    # ----------------------------------------------------------------------------------- server

    def ask_server(
        self,
        w: torch.Tensor,
        participants: np.ndarray,
        answer: Callable[[Neighbourhood], tuple[torch.Tensor, int]],
    ) -> tuple[torch.Tensor, int]:
        """Participants send a server their Jacobians at `w`; its answer goes to all clients.

        The server reaches everybody, whatever the graph. It lives on rank 0; ranks that wait for it
        sleep.

        Args:
            w: weights that all clients hold, `[param]`.
            participants: client ids, ascending.
            answer: new weights `[param]` and a number (such as tau) that follow from the stacked
                samples of the participants; called on the server alone.

        Returns:
            The answer, on every rank.
        """
        f = self.federation
        form = factored_format(f.network, f.dtype)
        new: np.ndarray | None = None

        def serve() -> int:
            nonlocal new
            with f.clock("jacobian"):
                hood = HeldNeighbourhood(f.network, self.graph.clients, w, parts, f.levels)
            parts.clear()
            weights, number = answer(hood)
            new = weights.cpu().numpy()
            return number

        with f.clock("exchange"):
            parts = self._at_server(form, participants, partial(_factored_message, f, w))
            number = f.world.on_root(serve)
            answered = f.world.broadcast(new)
        self.book_server(form, participants, f.sizes)
        down = MessageFormat({"vector": Field("weights", w.shape, w.dtype)})
        everybody = np.arange(self.graph.clients)
        self.book_server(down, everybody, np.ones_like(everybody))
        if self._rank == 0 and f.world.size > 1:
            f.ledger.book_mpi("weights", answered.nbytes)
        return torch.from_numpy(answered).to(f.device), number

    def _at_server(
        self, form: MessageFormat, clients: np.ndarray, make: Callable[[int], Arrays]
    ) -> list[Arrays]:
        """Messages `make(client)` of `clients`, in id order, on rank 0; elsewhere none."""
        f = self.federation
        owners = np.asarray(f.placement.owner(clients))
        outgoing = Outgoing(f.ledger, f.staging)
        if self._rank:
            for client in clients[owners == self._rank].tolist():
                outgoing.add(form, int(f.sizes[client]), partial(make, client))
        found = []
        for rank, received in enumerate(f.world.collect(outgoing.pack().cpu().numpy())):
            buffer, position = torch.from_numpy(received).to(f.device), 0
            for client in clients[owners == rank].tolist():
                if rank == self._rank:
                    found.append(make(client))
                    continue
                samples = int(f.sizes[client])
                found.append(form.read(buffer, position, samples))
                position += form.nbytes(samples)
        return found

    def book_server(self, form: MessageFormat, clients: np.ndarray, rows: np.ndarray) -> None:
        """Books a message of `rows` `[client]` rows between each of `clients` and the server."""
        through = np.zeros(self.graph.clients + 1, dtype=np.int64)
        through[clients] = rows[clients]
        through[-1] = through.sum()
        for phase, count in form.by_phase(1, travelling=False).items():
            self._book_protocol(phase, count * through)

    def book_vectors(self, form: MessageFormat) -> None:
        """Books a message of one row from every client to each of its neighbours."""
        self._book_rows(form, self._vectors_through)

    def _book_samples(self, form: MessageFormat) -> None:
        """Books a message of a row a sample from every client to each of its neighbours."""
        self._book_rows(form, self._samples_through)

    def _book_rows(self, form: MessageFormat, through: np.ndarray) -> None:
        for phase, count in form.by_phase(1, travelling=False).items():
            self._book_protocol(phase, count * through)

    def book_sent(self, phase: str, counts: np.ndarray) -> None:
        """Books `counts` `[client]` bytes, known on rank 0, from every client to each neighbour."""
        self._book_protocol(phase, self._through(counts))

    def _through(self, counts: np.ndarray) -> np.ndarray:
        """In plus out of each node, `[client + 1]`, if client i sends `counts[i]` to each neighbour."""
        sent, received = self.graph.degrees * counts, neighbourhood_sums(self.graph, counts)
        return np.append(sent + received, 0)

    @cached_property
    def _vectors_through(self) -> np.ndarray:
        return self._through(np.ones(self.graph.clients, dtype=np.int64))

    @cached_property
    def _samples_through(self) -> np.ndarray:
        return self._through(self.federation.sizes)

    def _book_protocol(self, phase: str, through: np.ndarray) -> None:
        """Books payload once for the whole job: bytes in plus out of each node, `[client + 1]`."""
        if self._rank == 0:
            self.federation.ledger.book_protocol(phase, through)


def mean_over_clients(federation: Federation, vectors: torch.Tensor) -> torch.Tensor:
    """Mean `[param]` over all clients of `vectors` `[owned, param]`; booked as a statistic."""
    if federation.world.size > 1:
        federation.ledger.book_mpi("statistics", reduced_bytes(vectors.shape[1]))
    return exact_mean(federation.world, vectors, federation.placement.clients)


# ------------------------------------------------------------------------ messages of own clients


def _factored_message(f: Federation, params: torch.Tensor, source: int) -> Arrays:
    samples = f.samples[source]
    with f.clock("jacobian"):
        passed = f.network.activations(params, samples.inputs)
    layers = {f"layer{index}": inputs for index, inputs in enumerate(passed.inputs)}
    return {**layers, "outputs": passed.outputs, "labels": samples.labels}


def _dense_heading_message(f: Federation, at: Mapping[int, torch.Tensor], pair: Pair) -> Arrays:
    passed = _factored_message(f, at[pair[0]], pair[1])
    return {**passed, "inputs": passed["layer0"]}


# ------------------------------------------------------------------------------- dense Jacobians


class StreamedNeighbourhood:
    """A neighbourhood whose dense Jacobian passes by in slices, twice. See `Neighbourhood`."""

    def __init__(self, client: int, parts: list[Arrays], stream: _Stream) -> None:
        self.client = client
        self.outputs = stacked(parts, "outputs")
        self.labels = stacked(parts, "labels").long()
        self.inputs = stacked(parts, "inputs") if "inputs" in parts[0] else None
        self._stream = stream

    def kernel(self) -> torch.Tensor:
        """The trace kernel `[sample, sample]`, summed over slices."""
        total = torch.zeros(
            2 * (len(self.labels),), dtype=self.outputs.dtype, device=self.outputs.device
        )
        for jacobian in self._stream.slices():
            total.add_(jacobian.trace_gram())
        return total.div_(self.outputs.shape[1])

    def transposed_product(self, residuals: torch.Tensor) -> torch.Tensor:
        """`sum_c J_c^T R_c`, `[tau, param]`, slice after slice."""
        return torch.cat(
            [jacobian.transposed_product(residuals) for jacobian in self._stream.slices()], dim=1
        )


class _Stream:
    """Passes of dense slices in which every rank serves every other, whether it has a client or not."""

    PASSES = 2

    def __init__(
        self, exchange: Exchange, at: Mapping[int, torch.Tensor], targets: list[range], width: int
    ) -> None:
        self._exchange, self._at, self._targets, self._width = exchange, at, targets, width
        self._jacobians: dict[Pair, FactoredJacobian] = {}
        self._passes = 0

    def slices(self) -> Iterator[DenseJacobian]:
        """One pass: the rank's client's Jacobian, a range of parameters at a time."""
        if self._passes == self.PASSES:
            raise RuntimeError(f"a neighbourhood's Jacobian can be passed {self.PASSES} times only")
        self._passes += 1
        size = self._exchange.federation.network.layout.size
        for start in range(0, size, self._width):
            yield from self._one_slice(start, min(start + self._width, size))

    def complete(self) -> None:
        """Takes part in the passes that this rank's own client did not ask for."""
        while self._passes < self.PASSES:
            for _ in self.slices():
                pass

    def _jacobian(self, pair: Pair) -> FactoredJacobian:
        """Own client j's Jacobian at client i's average; kept, since every slice is cut from it."""
        if pair not in self._jacobians:
            f = self._exchange.federation
            params = aligned(self._at[pair[0]])
            passed = f.network.activations(params, f.samples[pair[1]].inputs)
            self._jacobians[pair] = FactoredJacobian(f.network, params, passed.inputs)
        return self._jacobians[pair]

    def _one_slice(self, start: int, stop: int) -> Iterator[DenseJacobian]:
        f, graph = self._exchange.federation, self._exchange.graph

        def make(pair: Pair) -> Arrays:
            with f.clock("jacobian"):
                return {"entries": self._jacobian(pair).dense(start, stop)}

        form = dense_entries(f.network, f.dtype, stop - start)
        arrived = self._exchange._transfer(form, self._targets, make).finish()
        for client in self._targets[self._exchange._rank]:
            parts = [arrived(client, j) for j in graph.closed(client).tolist()]
            yield DenseJacobian(stacked(parts, "entries"))
