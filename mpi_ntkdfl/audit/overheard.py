"""The messages of one round of a run, computed again from its files by the code that runs use.

The weights of a round's start are in a checkpoint, the data set is read again, and random numbers are
functions of seed and round. So the messages are those that were sent, bit by bit on the same machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.algorithms.absence import attended_round
from mpi_ntkdfl.assembly import Problem, assemble, prepare
from mpi_ntkdfl.comm.messages import Arrays, MessageFormat
from mpi_ntkdfl.comm.world import SoloWorld
from mpi_ntkdfl.config import Config, parse
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.federation.coding import Codings, Decoded
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.federation.jacobian_messages import smallest_message
from mpi_ntkdfl.federation.neighbourhood import Neighbourhood
from mpi_ntkdfl.federation.transfer import Pair, Transfer
from mpi_ntkdfl.model.params import outside
from mpi_ntkdfl.presets import read_overrides
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.hdf5 import reading, sane
from mpi_ntkdfl.runtime.yaml_text import read_yaml
from mpi_ntkdfl.storage.checkpoint import Checkpoint, newest
from mpi_ntkdfl.storage.identity import recorded, require_record_of
from mpi_ntkdfl.storage.outputs import Outputs
from mpi_ntkdfl.topology.graphs import Graph
from mpi_ntkdfl.topology.mixing import Averaging


@dataclass
class Told:
    """What one client told a neighbour, or a server, in the round.

    Attributes:
        receiver: id of the neighbour; the server has the id after the last client.
        sender: id of the client.
        point: where the receiver linearises, `[param]`; None if it asks for no Jacobian.
        before: weights of the sender at the start of the round, `[param]`.
        vectors: the parameter vectors `[param]` that the receiver reads, by phase of the ledger.
        changes: whether a codec wrote the changes of a round instead of weights.
        picked: places of the samples among those of the sender, `[sample]`; None for the first ones.
        arrays: the messages about the sender's first samples, `[sample, ...]`, by their fields.
    """

    receiver: int
    sender: int
    point: torch.Tensor | None
    before: torch.Tensor
    vectors: dict[str, torch.Tensor] = field(default_factory=dict)
    arrays: dict[str, torch.Tensor] = field(default_factory=dict)
    changes: bool = False
    picked: torch.Tensor | None = None


@dataclass(frozen=True)
class Overheard:
    """The messages of a round and what an attack on them needs.

    Attributes:
        config: of the run, with what the user wants to be different.
        problem: the data set and who has which samples.
        federation: all clients, in this process.
        round: number of the round, from 0.
        told: what each of some clients told one receiver.
    """

    config: Config
    problem: Problem
    federation: Federation
    round: int
    told: list[Told]


def overhear(
    outputs: Outputs,
    clients: int,
    samples: int,
    number: int | None,
    overrides: tuple[str, ...] = (),
) -> Overheard:
    """Computes what the first clients told their neighbours with the lowest ids.

    Args:
        outputs: the files of the run, which may go on while they are read.
        clients: how many senders.
        samples: how many samples of each sender at most.
        number: of the round. None for the last round whose start a checkpoint holds, or for round 0.
        overrides: settings that the messages shall have instead of those of the run.

    Raises:
        InputError: if files are missing or damaged, or the data set is another one, or no checkpoint
            holds the start of the round.
    """
    with contextlib.ExitStack() as held:
        starts = _starts(outputs, held)
        written = read_yaml(next(iter(starts.values())).config, "the checkpoint")
        config = parse([written, read_overrides(overrides)])
        number = _round(starts, number)
        problem = prepare(config, 1, going_on=True)
        _require_same_samples(outputs, problem)
        assembly = assemble(config, SoloWorld(), problem)
        f, weights = assembly.federation, assembly.weights
        method = METHODS[config.algorithm.name](config.algorithm, f)
        if number in starts:
            start = starts[number]
            weights = _rows(start, "params").to(weights)
            arrays = {name.removeprefix("state/"): name for name in start.arrays[1:]}
            if arrays and set(arrays) == set(method.whole_state()):
                method.restore_whole({short: _rows(start, name) for short, name in arrays.items()})
    graph = assembly.schedule.graph(number)
    senders = range(min(clients, f.placement.clients))
    exchange = Listening(f, graph, method.codings, senders, samples)
    with exchange:
        for client in exchange.senders:
            exchange.told[client].before = weights[client]
        with torch.inference_mode(), contextlib.suppress(_Enough):
            attended_round(method, weights, number, exchange)
    return Overheard(config, problem, f, number, [_usable(told) for told in exchange.told.values()])


def _usable(told: Told) -> Told:
    """The same with tensors that autograd accepts."""
    vectors, arrays = (
        {n: outside(t) for n, t in each.items()} for each in (told.vectors, told.arrays)
    )
    point = None if told.point is None else outside(told.point)
    return replace(told, point=point, before=outside(told.before), vectors=vectors, arrays=arrays)


def _starts(outputs: Outputs, held: contextlib.ExitStack) -> dict[int, Checkpoint]:
    """The checkpoints by the number of the round that starts with their weights, newest first."""
    checkpoint = held.enter_context(newest(outputs))
    require_record_of(outputs, checkpoint)
    starts = {checkpoint.round: checkpoint}
    if outputs.former_checkpoint.exists() and checkpoint.path == outputs.checkpoint:
        with contextlib.suppress(InputError):
            former = held.enter_context(contextlib.closing(Checkpoint(outputs.former_checkpoint)))
            if former.run == checkpoint.run:
                starts[former.round] = former
    return starts


def _round(starts: Mapping[int, Checkpoint], wanted: int | None) -> int:
    """The number of the round: as wanted, or the last one whose messages were sent.

    Raises:
        InputError: if no checkpoint holds the start of that round.
    """
    if wanted is None:
        return min(starts) if len(starts) > 1 else 0
    if wanted and wanted not in starts:
        possible = ", ".join(map(str, sorted({0, *starts})))
        raise InputError(
            f"the round must start with weights that are in a checkpoint, which are rounds {possible}, "
            f"got {wanted}"
        )
    return wanted


def _rows(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    return torch.from_numpy(checkpoint.rows(name, range(checkpoint.clients)))


def _require_same_samples(outputs: Outputs, problem: Problem) -> None:
    """Checks that the data set and the clients' samples are those of the record.

    Raises:
        InputError: if they are others.
    """
    with reading(outputs.record) as file:
        same = recorded(file)["data"] == problem.dataset.fingerprint()
        shares = problem.partition
        for name, array in (("offsets", shares.offsets), ("indices", shares.indices)):
            same = same and np.array_equal(sane(file, f"partition/{name}")[:], array)
    if not same:
        raise InputError(
            f"{outputs.record} was made with other samples than those that its configuration names now; "
            "put the data set back"
        )


class _Enough(Exception):  # noqa: N818 - it is no error
    """Everything wanted was heard."""


class Listening(Exchange):
    """An exchange in one process that keeps what some clients tell their neighbours.

    Attributes:
        senders: the clients.
        told: what each sender told its receiver, by the sender's id.
    """

    def __init__(
        self, federation: Federation, graph: Graph, codings: Codings, senders: range, rows: int
    ) -> None:
        """Listens to `senders`, and keeps `rows` samples of each."""
        super().__init__(federation, graph, codings=codings)
        self.senders, self._rows, nobody = senders, rows, torch.empty(0)
        self.told = {j: Told(self._receiver(j), j, None, nobody) for j in senders}
        self._slices: dict[Pair, list[torch.Tensor]] = {}
        self._complete: set[Pair] = set()
        self._changes = False

    def _receiver(self, sender: int) -> int:
        """The neighbour with the lowest id; the sender itself where it has none."""
        closed = self.graph.closed(sender).tolist()
        return min((other for other in closed if other != sender), default=sender)

    def average(
        self, vectors: torch.Tensor, kind: Averaging = "plain", since: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Averages, and remembers whether codecs write changes of a round."""
        self._changes = since is not None
        return super().average(vectors, kind, since)

    def mixed(
        self, shared: Mapping[int, torch.Tensor], like: torch.Tensor, kind: Averaging
    ) -> torch.Tensor:
        """Mixes, and keeps what receivers read."""
        for sender, told in self.told.items():
            told.vectors.setdefault("weights", shared[sender])
            told.changes = self._changes and isinstance(shared, Decoded)
        return super().mixed(shared, like, kind)

    def tell(self, points: torch.Tensor) -> dict[int, torch.Tensor]:
        """Tells, and keeps what receivers read and where they linearise."""
        told_to_all = super().tell(points)
        for sender, told in self.told.items():
            told.vectors["averages"] = told_to_all[sender]
            told.point = told_to_all[told.receiver]
        return told_to_all

    def share_messages(
        self, form: MessageFormat, messages: Mapping[int, Arrays], rows: np.ndarray | None = None
    ) -> dict[int, Arrays]:
        """Shares, and keeps messages about samples."""
        if rows is not None:
            for sender, told in self.told.items():
                pair = told.receiver, sender
                self._note(pair, form, self._read(form, pair, messages[sender]))
        return super().share_messages(form, messages, rows)

    def transfer(
        self, form: MessageFormat, targets: list[range], make: Callable[[Pair], Arrays]
    ) -> Transfer:
        """Transfers, and keeps the messages of the pairs that are listened to."""

        def heard(pair: Pair) -> Arrays:
            arrays = make(pair)
            if pair[1] in self.told and self.told[pair[1]].receiver == pair[0]:
                self._note(pair, form, self._read(form, pair, arrays))
            return arrays

        return super().transfer(form, targets, heard)

    def _read(self, form: MessageFormat, pair: Pair, arrays: Arrays) -> Arrays:
        """What a receiver reads, with the codec of the run."""
        codec = self.codings.jacobians
        if codec is None or pair[0] == pair[1]:
            return arrays
        self.told[pair[1]].picked = codec.picked(
            pair[1], len(arrays["labels" if "labels" in arrays else "entries"])
        )
        return codec.decode(form, codec.encode(form, pair, arrays))

    def server_average(
        self, vectors: torch.Tensor, kind: Literal["plain", "samples"], since: torch.Tensor
    ) -> torch.Tensor:
        """The server receives the vectors of all clients; a codec's errors are left out."""
        for sender, told in self.told.items():
            told.receiver, told.vectors["weights"] = self.graph.clients, vectors[sender]
        raise _Enough

    def ask_server(
        self,
        w: torch.Tensor,
        participants: np.ndarray,
        answer: Callable[[Neighbourhood], tuple[torch.Tensor, int]],
    ) -> tuple[torch.Tensor, int]:
        """The server receives the participants' messages; the first participants are the senders."""
        message = smallest_message(self.federation.network)
        form, server = message.form(self.federation), self.graph.clients
        asked = participants.tolist()[: len(self.senders)]
        self.told = {sender: Told(server, sender, w, w) for sender in asked}
        for sender in asked:
            self._note((server, sender), form, message.make(self.federation, w, sender))
        raise _Enough

    def _note(self, pair: Pair, form: MessageFormat, arrays: Arrays) -> None:
        """Keeps the first rows of a message; slices of a dense Jacobian are put together."""
        told = self.told[pair[1]]
        kept = {name: arrays[name][: self._rows].clone() for name in form.fields}
        entries, whole = kept.get("entries"), self.federation.network.layout.size
        if entries is not None and list(form.fields) == ["entries"]:
            if pair in self._complete:
                return
            slices = self._slices.setdefault(pair, [])
            slices.append(entries)
            if sum(each.shape[2] for each in slices) < whole:
                return
            kept = {"entries": torch.cat(self._slices.pop(pair), dim=2)}
        elif "outputs" in kept and set(kept) <= {"inputs", "outputs", "labels"}:
            told.arrays.update(kept)  # the heading of a dense Jacobian, whose slices follow
            return
        told.arrays.update(kept)
        self._complete.add(pair)
        if len(self._complete) == len(self.told):
            raise _Enough
