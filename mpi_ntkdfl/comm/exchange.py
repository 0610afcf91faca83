"""The verbs a decentralized method has: share vectors, average, see the neighbours' Jacobians.

A method sees an `Exchange`, never a rank. Clients that live on one rank exchange by reference; a vector
that several clients of a rank need crosses once; whatever the placement, a client combines what it got
in ascending client id, so that its bits do not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Literal, Protocol

import numpy as np
import torch

from mpi_ntkdfl.clock import Clock
from mpi_ntkdfl.comm.ledger import Ledger
from mpi_ntkdfl.comm.messages import Field, MessageFormat
from mpi_ntkdfl.comm.reduce import exact_mean, reduced_bytes
from mpi_ntkdfl.comm.waves import WorkingSet, factored_waves, slice_width
from mpi_ntkdfl.comm.world import Channel, Pending, World
from mpi_ntkdfl.model.nets import MLP
from mpi_ntkdfl.model.params import aligned
from mpi_ntkdfl.ntk.jacobian import DenseJacobian, FactoredJacobian
from mpi_ntkdfl.ntk.kernel import trace_kernel
from mpi_ntkdfl.topology.graphs import Graph
from mpi_ntkdfl.topology.mixing import weights
from mpi_ntkdfl.topology.placement import (
    Placement,
    neighbour_ranks,
    pairs,
    receive_clients,
    send_clients,
)

JacobianKind = Literal["factored", "dense"]
Arrays = Mapping[str, torch.Tensor]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Samples:
    """A client's own data on the rank's device: inputs `[sample, feature]`, labels `[sample]` int64."""

    inputs: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Federation:
    """The clients, where they live, and what they compute with; the same for a whole run.

    Attributes:
        world: the ranks.
        placement: which rank owns which client.
        network: the model of every client.
        samples: data of the clients this rank owns, by client id.
        sizes: samples of every client, `[client]`.
        device: where this rank computes.
        dtype: floating-point type of weights and data.
        memory_limit: working memory of a rank in bytes, None for the default.
        seed: the run's, for randomness keyed by purpose, client and round.
        ledger: books the traffic.
        clock: books the time.
    """

    world: World
    placement: Placement
    network: MLP
    samples: Mapping[int, Samples]
    sizes: np.ndarray
    device: torch.device
    dtype: torch.dtype
    memory_limit: int | None
    seed: int
    ledger: Ledger
    clock: Clock

    @property
    def owned(self) -> range:
        """Ids of the clients of this rank."""
        return self.placement.owned(self.world.rank)


class Neighbourhood(Protocol):
    """A client with the data its closed neighbourhood sent it; samples stacked in client-id order.

    `kernel` and `transposed_product` may be asked for once each, in this order.

    Attributes:
        client: whose it is.
        outputs: of the client's average on all N samples, `[sample, output]`.
        labels: `[sample]` int64.
        inputs: raw inputs `[sample, feature]`, None unless asked for.
    """

    client: int
    outputs: torch.Tensor
    labels: torch.Tensor
    inputs: torch.Tensor | None

    def kernel(self) -> torch.Tensor:
        """The trace kernel `[sample, sample]`."""
        ...

    def transposed_product(self, residuals: torch.Tensor) -> torch.Tensor:
        """`sum_c J_c^T R_c` of `residuals` `[tau, sample, output]`: `[tau, param]`."""
        ...


class Exchange:
    """The messages of one graph. A context manager: leaving it frees its communicator."""

    def __init__(self, federation: Federation, graph: Graph) -> None:
        """Opens the exchange; all ranks take part."""
        self.federation = federation
        self.graph = graph
        self._rank = federation.world.rank
        found = neighbour_ranks(graph, federation.placement, self._rank)
        self._channel = federation.world.channel(found.tolist())

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

    def share(self, vectors: torch.Tensor, phase: str) -> dict[int, torch.Tensor]:
        """Every client sends its vector to its neighbours.

        Args:
            vectors: this rank's clients' vectors in id order, `[owned, param]`.
            phase: the ledger's phase.

        Returns:
            Vectors `[param]` of the rank's own clients and of all their neighbours, by client id.
        """
        form = MessageFormat({"vector": Field(phase, (vectors.shape[1],), vectors.dtype)})
        own = zip(self.federation.owned, vectors, strict=True)
        self.book_protocol(form, rows=2 * len(self.graph.edges))
        known = self.share_messages(form, {client: {"vector": row[None]} for client, row in own})
        return {client: message["vector"][0] for client, message in known.items()}

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
            leaving = [
                send_clients(self.graph, f.placement, self._rank, to) for to in channel.neighbours
            ]
            coming = [
                receive_clients(self.graph, f.placement, self._rank, source)
                for source in channel.neighbours
            ]
            outgoing = _Outgoing(f)
            for clients in leaving:
                for client in clients.tolist():
                    outgoing.add(form, 1, partial(known.__getitem__, client))
            pending = outgoing.start(
                channel,
                [len(c) * form.nbytes(1) for c in leaving],
                [len(c) * form.nbytes(1) for c in coming],
            )
            received, start = pending.wait(), 0
            for client in (int(c) for clients in coming for c in clients):
                views = form.read(received, start, 1)
                known[client] = {name: view.to(f.device) for name, view in views.items()}
                start += form.nbytes(1)
        return known

    def average(
        self, vectors: torch.Tensor, kind: Literal["plain", "samples"] = "plain"
    ) -> torch.Tensor:
        """Each client averages its own and its neighbours' vectors, in client-id order in float64.

        Args:
            vectors: `[owned, param]`.
            kind: equal weights, or in proportion to the clients' samples.

        Returns:
            The averages of this rank's clients, `[owned, param]`.
        """
        known = self.share(vectors, "weights")
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

    def mean(self, vectors: torch.Tensor) -> torch.Tensor:
        """Mean `[param]` over all clients of their `vectors` `[owned, param]`; not a client's message."""
        return mean_over_clients(self.federation, vectors)

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
        for phase in ("weights", "averages"):
            form = MessageFormat({"vector": Field(phase, (vectors.shape[1],), vectors.dtype)})
            self.book_protocol(form, rows=count)
        if f.world.size > 1:
            f.ledger.book_mpi("weights", reduced_bytes(vectors.shape[1]))
        shares = f.sizes if kind == "samples" else np.ones(count, dtype=np.int64)
        with f.clock("exchange"):
            own = shares[f.owned.start : f.owned.stop]
            return exact_mean(f.world, vectors, int(shares.sum()), own.tolist())

    # ------------------------------------------------------------------------------- Jacobians

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
        message_bytes = form.nbytes_each(f.sizes)
        waves = factored_waves(
            self.graph, f.placement, f.sizes, message_bytes, work, f.memory_limit
        )

        def make(pair: Pair) -> Arrays:
            return _factored_message(f, at[pair[0]], pair[1])

        self.book_protocol(form, rows=int(self.graph.degrees @ f.sizes))
        turns = len(waves[self._rank])
        transfer = self._transfer(form, [wave[0] for wave in waves], make)
        for turn in range(turns):
            arrived = transfer.finish()
            if turn + 1 < turns:
                transfer = self._transfer(form, [wave[turn + 1] for wave in waves], make)
            for client in waves[self._rank][turn]:
                transfer.poke()
                parts = [arrived(client, j) for j in self.graph.closed(client).tolist()]
                with f.clock("jacobian"):
                    neighbourhood = HeldNeighbourhood(f.network, client, at[client], parts)
                yield neighbourhood

    def _dense(
        self, at: Mapping[int, torch.Tensor], work: WorkingSet, inputs: bool
    ) -> Iterator[Neighbourhood]:
        f = self.federation
        form = dense_heading(f.network, f.dtype, inputs)
        width = slice_width(self.graph, f.sizes, work, f.memory_limit)
        for part in (form, dense_entries(f.network, f.dtype, work.params)):
            self.book_protocol(part, rows=int(self.graph.degrees @ f.sizes))
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
    ) -> _Transfer:
        """Starts sending `make(i, j)` for the targets i of every rank and the clients j of this one.

        Args:
            form: layout of a message, by the samples of j.
            targets: for each rank the clients that collect in this exchange.
            make: the message of own client j for client i.
        """
        f, channel = self.federation, self._channel
        sizes = f.sizes
        with f.clock("exchange"):
            outgoing, send_bytes = _Outgoing(f), []
            for to in channel.neighbours:
                wanted = self._pairs(self._rank, to, targets[to])
                send_bytes.append(sum(form.nbytes(int(sizes[j])) for _, j in wanted))
                for pair in wanted:
                    outgoing.add(form, int(sizes[pair[1]]), partial(make, pair))
            coming = [
                self._pairs(source, self._rank, targets[self._rank])
                for source in channel.neighbours
            ]
            receive_bytes = [
                sum(form.nbytes(int(sizes[j])) for _, j in wanted) for wanted in coming
            ]
            pending = outgoing.start(channel, send_bytes, receive_bytes)
        return _Transfer(f, form, pending, [pair for wanted in coming for pair in wanted], make)

    def _pairs(self, source: int, target: int, clients: range) -> list[Pair]:
        """(i, j) for clients i of rank `target` within `clients` and their neighbours j of `source`."""
        found = pairs(self.graph, self.federation.placement, source, target)
        kept = found[(found[:, 0] >= clients.start) & (found[:, 0] < clients.stop)]
        return [(int(i), int(j)) for i, j in kept]

    def book_protocol(self, form: MessageFormat, rows: int) -> None:
        """Books the payload of messages of `rows` rows in all, once for the whole job."""
        if self._rank == 0:
            for phase, count in form.by_phase(rows, travelling=False).items():
                self.federation.ledger.book_protocol(phase, count)


def mean_over_clients(federation: Federation, vectors: torch.Tensor) -> torch.Tensor:
    """Mean `[param]` over all clients of `vectors` `[owned, param]`; booked as a statistic."""
    if federation.world.size > 1:
        federation.ledger.book_mpi("statistics", reduced_bytes(vectors.shape[1]))
    return exact_mean(federation.world, vectors, federation.placement.clients)


# ------------------------------------------------------------------------------- message formats


def factored_format(network: MLP, dtype: torch.dtype) -> MessageFormat:
    """Layer inputs, outputs and labels."""
    layers = {
        f"layer{index}": Field("jacobians", (width,), dtype)
        for index, width in enumerate(network.widths[:-1])
    }
    return MessageFormat({**layers, **_results(network, dtype)})


def dense_heading(network: MLP, dtype: torch.dtype, inputs: bool) -> MessageFormat:
    """What goes ahead of the slices of a dense Jacobian: outputs, labels, and inputs if wanted."""
    raw = {"inputs": Field("inputs", (network.widths[0],), dtype)} if inputs else {}
    return MessageFormat({**raw, **_results(network, dtype)})


def _results(network: MLP, dtype: torch.dtype) -> dict[str, Field]:
    return {
        "outputs": Field("outputs", (network.widths[-1],), dtype),
        "labels": Field("labels", (), torch.int32),
    }


def dense_entries(network: MLP, dtype: torch.dtype, width: int) -> MessageFormat:
    """Entries of a dense Jacobian for `width` of its parameters."""
    return MessageFormat({"entries": Field("jacobians", (network.widths[-1], width), dtype)})


def _factored_message(f: Federation, params: torch.Tensor, source: int) -> Arrays:
    samples = f.samples[source]
    with f.clock("jacobian"):
        passed = f.network.activations(params, samples.inputs)
    layers = {f"layer{index}": inputs for index, inputs in enumerate(passed.inputs)}
    return {**layers, "outputs": passed.outputs, "labels": samples.labels}


def _dense_heading_message(f: Federation, at: Mapping[int, torch.Tensor], pair: Pair) -> Arrays:
    passed = _factored_message(f, at[pair[0]], pair[1])
    return {**passed, "inputs": passed["layer0"]}


# -------------------------------------------------------------------------------------- transfers


class _Outgoing:
    """Messages on their way into one host buffer."""

    def __init__(self, f: Federation) -> None:
        self._f = f
        self._messages: list[tuple[MessageFormat, int, Callable[[], Arrays]]] = []

    def add(self, form: MessageFormat, samples: int, make: Callable[[], Arrays]) -> None:
        self._messages.append((form, samples, make))

    def start(self, channel: Channel, send_bytes: list[int], receive_bytes: list[int]) -> Pending:
        """Writes all messages and hands the buffer to the channel."""
        buffer = torch.empty(
            sum(send_bytes), dtype=torch.uint8, pin_memory=self._f.device.type == "cuda"
        )
        position = 0
        for form, samples, make in self._messages:
            position = form.write(buffer, position, samples, make())
            for phase, count in form.by_phase(samples, travelling=True).items():
                self._f.ledger.book_mpi(phase, count)
        return channel.start(buffer, send_bytes, receive_bytes)


class _Transfer:
    """A started exchange of messages for pairs (i, j)."""

    def __init__(
        self,
        f: Federation,
        form: MessageFormat,
        pending: Pending,
        coming: list[Pair],
        make: Callable[[Pair], Arrays],
    ) -> None:
        self._f, self._form, self._pending, self._coming, self._make = (
            f,
            form,
            pending,
            coming,
            make,
        )

    def poke(self) -> None:
        self._pending.poke()

    def finish(self) -> Callable[[int, int], Arrays]:
        """Waits; returns a function of (i, j) that reads a received message or makes a local one."""
        with self._f.clock("exchange"):
            buffer, position = self._pending.wait(), 0
        found: dict[Pair, tuple[int, int]] = {}
        for pair in self._coming:
            samples = int(self._f.sizes[pair[1]])
            found[pair] = position, samples
            position += self._form.nbytes(samples)

        def message(i: int, j: int) -> Arrays:
            if (i, j) not in found:
                return self._make((i, j))
            views = self._form.read(buffer, *found[i, j])
            return {name: view.to(self._f.device) for name, view in views.items()}

        return message


# ---------------------------------------------------------------------------------- neighbourhoods


def _stacked(parts: list[Arrays], name: str) -> torch.Tensor:
    return torch.cat([part[name] for part in parts])


class HeldNeighbourhood:
    """A neighbourhood whose factored Jacobian is in memory. See `Neighbourhood`."""

    def __init__(
        self, network: MLP, client: int, params: torch.Tensor, parts: list[Arrays]
    ) -> None:
        self.client = client
        self.outputs = _stacked(parts, "outputs")
        self.labels = _stacked(parts, "labels").long()
        layers = [_stacked(parts, f"layer{index}") for index in range(network.layers)]
        self.inputs: torch.Tensor | None = layers[0]
        self._jacobian = FactoredJacobian(network, params, layers)

    def kernel(self) -> torch.Tensor:
        """The trace kernel `[sample, sample]`."""
        return trace_kernel(self._jacobian, self.outputs.shape[1])

    def transposed_product(self, residuals: torch.Tensor) -> torch.Tensor:
        """`sum_c J_c^T R_c`, `[tau, param]`."""
        return self._jacobian.transposed_product(residuals)


class StreamedNeighbourhood:
    """A neighbourhood whose dense Jacobian passes by in slices, twice. See `Neighbourhood`."""

    def __init__(self, client: int, parts: list[Arrays], stream: _Stream) -> None:
        self.client = client
        self.outputs = _stacked(parts, "outputs")
        self.labels = _stacked(parts, "labels").long()
        self.inputs = _stacked(parts, "inputs") if "inputs" in parts[0] else None
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
            yield DenseJacobian(_stacked(parts, "entries"))
