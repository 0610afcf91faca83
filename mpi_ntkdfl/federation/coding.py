"""Codecs in use: what travels instead of vectors, and what clients keep of it from round to round.

With error feedback, the neighbours of client i hold an estimate e_i of its weights. A message of the
weights x_i moves it, `e_i <- e_i + C(x_i + memory r_i - e_i)`, and the client keeps what the message has
left out, `r_i <- x_i + memory r_i - e_i`. It goes on from `e_i + gamma sum_j w_ij (e_j - e_i)`. The
decaying memory is that of Wu, Huang, Huang, Zhang, "Error compensated quantized SGD and its applications
to large-scale distributed optimization", ICML 2018. CHOCO has no r_i and goes on from `x_i + gamma sum_j
w_ij (e_j - e_i)` (Koloskova, Stich, Jaggi, "Decentralized stochastic optimization and gossip algorithms
with compressed communication", ICML 2019). A neighbour that lacks the last estimate receives the new one
in full.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mpi_ntkdfl.comm.messages import Arrays, Field, MessageFormat
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.federation.codecs import CODECS, Codec, CodecChoice, CodecSettings
from mpi_ntkdfl.federation.codecs.base import Shapes
from mpi_ntkdfl.federation.jacobian_coding import JacobianCoding
from mpi_ntkdfl.runtime import seeds
from mpi_ntkdfl.topology.mixing import Averaging

if TYPE_CHECKING:
    from mpi_ntkdfl.federation.exchange import Exchange


def make_codec(settings: CodecSettings, shapes: Shapes, dtype: torch.dtype) -> Codec[Any]:
    """The codec for vectors that consist of tensors of these `shapes`."""
    return CODECS[settings.name](settings, sum(map(math.prod, shapes)), dtype, shapes)


def message_format(codec: Codec[Any], phase: str) -> MessageFormat:
    """The layout of a codec's messages, which the ledger books under `phase`."""
    arrays, most = codec.format().items(), codec.most_bytes()
    fields: dict[str, Field] = {}
    for name, (shape, kind) in arrays:
        fields[name] = Field(phase, shape, kind, 0 if fields else most)
    return MessageFormat(fields)


def vector_format(
    choice: CodecChoice | None,
    phase: str,
    shapes: Shapes,
    dtype: torch.dtype,
    whole_estimates: bool = False,
) -> MessageFormat:
    """The layout of the message in which a client sends a vector.

    Protocol bytes are the most that a message can take.

    Args:
        choice: the method's codecs, None for none.
        phase: phase of the ledger.
        shapes: shapes of the tensors of which the vector consists.
        dtype: of the vector.
        whole_estimates: whether neighbours lack the last estimate, so that it travels in full.
    """
    settings = None if choice is None else choice.chosen.get(phase)
    params = sum(map(math.prod, shapes))
    if settings is None:
        return MessageFormat({"vector": Field(phase, (params,), dtype)})
    codec = make_codec(settings, shapes, dtype)
    if not settings.error_feedback:
        return message_format(codec, phase)
    # Ranks move whole estimates, because their clients' neighbours change.
    most = None if whole_estimates else codec.most_bytes()
    return MessageFormat({"vector": Field(phase, (params,), dtype, most)})


def kept_bytes(
    choice: CodecChoice, vectors: Mapping[str, int], shapes: Shapes, dtype: torch.dtype, nodes: int
) -> int:
    """Bytes that the streams of a method keep per client; the arguments are those of `Codings.of`."""
    total = 0
    for phase, count in vectors.items():
        if (settings := choice.chosen.get(phase)) is not None:
            codec = make_codec(settings, shapes, dtype)
            arrays = codec.state().values()
            kept = sum(array.numel() * array.element_size() for array in arrays)
            if settings.error_feedback:
                kept += (1 + settings.remembers) * codec.params * dtype.itemsize + nodes
            total += count * kept
    return total


class Stream:
    """One vector per client and round: its codec, and what is kept per client for the next round."""

    def __init__(self, codec: Codec[Any], federation: Federation, purpose: str, nodes: int) -> None:
        """Starts with the state before the first round.

        Args:
            codec: the codec.
            federation: the clients.
            purpose: what tells the stream apart from others, such as its phase.
            nodes: number of those who may hold an estimate: all clients, or a server only.
        """
        self._codec, self._federation, self._purpose = codec, federation, purpose
        self._feedback = codec.settings.error_feedback
        rows = len(federation.owned)
        self._state = {
            name: torch.stack([array] * rows).to(federation.device)
            for name, array in codec.state().items()
        }
        vectors = torch.zeros(rows, codec.params, dtype=codec.dtype, device=federation.device)
        if self._feedback:
            self._state["estimates"] = torch.full_like(vectors, torch.nan)
            held = torch.full((rows, nodes), federation.shared_start, device=federation.device)
            self._state["held"] = held
            if codec.settings.remembers:
                self._state["unsent"] = vectors

    # ------------------------------------------------------------------------------- what is sent

    def average(
        self,
        exchange: Exchange,
        vectors: torch.Tensor,
        kind: Averaging,
        since: torch.Tensor | None,
        number: int,
    ) -> torch.Tensor:
        """What `Exchange.average` is with this codec."""
        if not self._feedback:
            own = self._messages(vectors if since is None else vectors - since, number)
            mean = exchange.mixed(self._told(exchange, own), vectors, kind)
            return mean if since is None else since + mean
        new, counts = self._moved(vectors, since, number)
        self._book_estimates(exchange, counts)
        told = exchange.share(new, "weights", booked=False)
        ahead = exchange.mixed(told, vectors, kind) - new
        point = new if self._codec.settings.remembers else vectors
        taken: torch.Tensor = point + self._codec.settings.gamma * ahead
        return taken

    def share(
        self, exchange: Exchange, vectors: torch.Tensor, number: int
    ) -> Mapping[int, torch.Tensor]:
        """What `Exchange.share` is with this codec."""
        return self._told(exchange, self._messages(vectors, number))

    def messages(
        self, vectors: torch.Tensor, number: int
    ) -> tuple[MessageFormat, dict[int, Arrays], np.ndarray]:
        """Messages that the caller sends: their layout, those of the own clients, bytes `[client]`."""
        own = self._messages(vectors, number)
        return message_format(self._codec, self._phase), own, self._of_all(self._counts(own))

    def to_server(
        self, vectors: torch.Tensor, since: torch.Tensor, number: int
    ) -> tuple[torch.Tensor, np.ndarray]:
        """What a server knows of the clients' vectors, which it knew to be `since` before.

        Returns:
            Its vectors of this rank's clients, `[owned, param]`, and the bytes that each client has sent,
            `[client]`, on every rank.
        """
        if self._feedback:
            new, counts = self._moved(vectors, since, number)
            held, whole = self._state["held"], vectors.shape[1] * vectors.dtype.itemsize
            counts = np.where(held[:, 0].cpu().numpy(), counts, whole)
            self._state["held"] = torch.ones_like(held)
            return new, self._of_all(counts)
        own = self._messages(vectors - since, number)
        told = torch.stack([self.decode(message) for message in own.values()])
        return since + told.to(vectors), self._of_all(self._counts(own))

    def from_server(self, vector: torch.Tensor, number: int) -> tuple[torch.Tensor, int]:
        """What clients read of a server's vector `[param]`, and the bytes that it takes."""
        f = self._federation
        rng = seeds.generator(f.seed, f"codec {self._purpose}", f.placement.clients, number)
        message = self._codec.encode(vector, rng, self._codec.state())
        return self._codec.decode(message).to(vector), self._codec.protocol_bytes(message)

    def _messages(self, vectors: torch.Tensor, number: int) -> dict[int, Arrays]:
        """The messages of this rank's clients by client id, with one row each."""
        f, messages = self._federation, dict[int, Arrays]()
        with f.clock("update"):
            for row, client in enumerate(f.owned):
                rng = seeds.generator(f.seed, f"codec {self._purpose}", client, number)
                state = {name: array[row] for name, array in self._state.items()}
                arrays = self._codec.encode(vectors[row], rng, state)
                messages[client] = {name: array[None] for name, array in arrays.items()}
        return messages

    def _told(self, exchange: Exchange, own: dict[int, Arrays]) -> Mapping[int, torch.Tensor]:
        """Sends messages, books them, and reads those of the neighbours."""
        exchange.book_sent(self._phase, self._of_all(self._counts(own)))
        form = message_format(self._codec, self._phase)
        return Decoded(exchange.share_messages(form, own), self)

    def _moved(
        self, vectors: torch.Tensor, since: torch.Tensor | None, number: int
    ) -> tuple[torch.Tensor, np.ndarray]:
        """The estimates `[owned, param]` after the messages, and the messages' bytes `[owned]`."""
        former = self._state["estimates"]
        # A client's first estimate is what it starts with.
        start = vectors if since is None else since
        former = torch.where(former[:, :1].isnan(), start, former)
        settings = self._codec.settings
        if settings.remembers:
            vectors = vectors + settings.memory * self._state["unsent"]
        own = self._messages(vectors - former, number)
        told = torch.stack([self.decode(message) for message in own.values()])
        self._state["estimates"] = new = former + told.to(former)
        if settings.remembers:
            self._state["unsent"] = vectors - new
        return new, self._counts(own)

    def _book_estimates(self, exchange: Exchange, counts: np.ndarray) -> None:
        """Books messages of `counts` `[owned]` bytes; who lacks the last estimate gets a whole one."""
        f, graph = self._federation, exchange.graph
        through = np.zeros(graph.clients + 1, dtype=np.int64)
        held, whole = (
            self._state["held"].cpu().numpy(),
            self._codec.params * self._codec.dtype.itemsize,
        )
        now = np.zeros_like(held)
        for row, client in enumerate(f.owned):
            others = graph.closed(client)
            others = others[others != client]
            sent = np.where(held[row, others], counts[row], whole)
            through[others] += sent
            through[client] += sent.sum()
            now[row, others] = True
        self._state["held"] = torch.from_numpy(now).to(f.device)
        exchange.book_protocol("weights", f.world.total(through))

    # ------------------------------------------------------------------------------- its messages

    @property
    def _phase(self) -> str:
        return self._purpose.split()[0]

    def decode(self, message: Arrays) -> torch.Tensor:
        """The vector `[param]` of a message of one row, in the type of the codec's vectors or float64."""
        return self._codec.decode({name: array[0] for name, array in message.items()})

    def _counts(self, messages: Mapping[int, Arrays]) -> np.ndarray:
        """Protocol bytes of messages of one row, `[owned]`."""
        rows = ({name: array[0] for name, array in each.items()} for each in messages.values())
        return np.array([self._codec.protocol_bytes(each) for each in rows], dtype=np.int64)

    def _of_all(self, counts: np.ndarray) -> np.ndarray:
        """Numbers of all clients `[client]`, given those of this rank's `[owned]`."""
        f = self._federation
        every = np.zeros(f.placement.clients, dtype=np.int64)
        every[f.owned.start : f.owned.stop] = counts
        return f.world.total(every)

    def state(self) -> dict[str, torch.Tensor]:
        """What is kept, by name: arrays `[owned, ...]`."""
        return {self._name(name): array for name, array in self._state.items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes back what `state` returned."""
        self._state = {
            name: state[self._name(name)].to(array) for name, array in self._state.items()
        }

    def _name(self, name: str) -> str:
        return name if self._purpose == "weights" else f"{self._purpose} {name}".replace(" ", "-")


class Decoded(Mapping[int, torch.Tensor]):
    """Vectors `[param]` by client id, decoded when they are read, because messages need less memory."""

    def __init__(self, messages: Mapping[int, Arrays], stream: Stream) -> None:
        """Keeps the messages of one row that clients have written for `stream`, by client id."""
        self._messages, self._stream = messages, stream

    def __getitem__(self, client: int) -> torch.Tensor:
        return self._stream.decode(self._messages[client])

    def __iter__(self) -> Iterator[int]:
        return iter(self._messages)

    def __len__(self) -> int:
        return len(self._messages)


class Codings:
    """The codecs of a run.

    Attributes:
        jacobians: codec of messages about samples, None for none.
        number: number of the current round.
    """

    def __init__(
        self, streams: Mapping[str, list[Stream]], jacobians: JacobianCoding | None
    ) -> None:
        """Collects streams by phase, in the order in which a method sends them."""
        self._streams, self.jacobians = streams, jacobians
        self.begin(0)

    @classmethod
    def of(
        cls,
        choice: CodecChoice | None,
        federation: Federation,
        vectors: Mapping[str, int],
        shapes: Shapes,
        server: bool,
    ) -> Codings:
        """Makes the codecs that a method's settings choose.

        Args:
            choice: what they choose; None for no codec.
            federation: the clients.
            vectors: how many vectors a client sends per round, by phase.
            shapes: shapes of the tensors of which a vector consists.
            server: whether vectors go to a server.
        """
        chosen = {} if choice is None else choice.chosen
        streams = {}
        nodes = 1 if server else federation.placement.clients
        for phase, count in vectors.items():
            if phase in chosen:
                codec = make_codec(chosen[phase], shapes, federation.dtype)
                purposes = [phase, *(f"{phase} {turn}" for turn in range(1, count))]
                streams[phase] = [Stream(codec, federation, each, nodes) for each in purposes]
        jacobians = None
        if "jacobians" in chosen:
            jacobians = JacobianCoding(chosen["jacobians"], federation.seed)
        return cls(streams, jacobians)

    def begin(self, number: int) -> None:
        """Begins round `number`."""
        self.number, self._turns = number, dict.fromkeys(self._streams, 0)
        if self.jacobians is not None:
            self.jacobians.number = number

    def next(self, phase: str) -> Stream | None:
        """The stream of the next vector of a phase; None if it travels as it is."""
        if phase not in self._streams:
            return None
        turn = self._turns[phase]
        self._turns[phase] = turn + 1
        return self._streams[phase][turn]

    def state(self) -> dict[str, torch.Tensor]:
        """What the codecs keep per client, by name: arrays `[owned, ...]`."""
        return {
            name: array
            for streams in self._streams.values()
            for stream in streams
            for name, array in stream.state().items()
        }

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes back what `state` returned."""
        for streams in self._streams.values():
            for stream in streams:
                stream.restore(state)


NO_CODINGS = Codings({}, None)
"""All messages travel as they are."""
