"""What a method is: facts about it, and a round as a function of weights and an `Exchange`."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Literal, TypeVar

import torch

from mpi_ntkdfl.algorithms.coded import CodedSettings
from mpi_ntkdfl.algorithms.work import Load, Work
from mpi_ntkdfl.comm.messages import MessageFormat
from mpi_ntkdfl.config import MethodSettings
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.federation.codecs.base import Shapes
from mpi_ntkdfl.federation.coding import NO_CODINGS, Codings
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.model.losses import Loss
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.runtime.errors import Diverged, locating
from mpi_ntkdfl.runtime.looks import LineStyle

_log = logging.getLogger(__name__)

SettingsT = TypeVar("SettingsT", bound=MethodSettings)


@dataclass(frozen=True)
class RoundResult:
    """The result of a round on one rank.

    Attributes:
        weights: the weights with which the rank's clients start the next round, `[owned, param]`.
        taus: the number of steps that each client chose, `[owned]`. Methods without such a choice give
            none, and the numbers are then zeros.
    """

    weights: torch.Tensor
    taus: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Fills in zeros."""
        if not self.taus:
            object.__setattr__(self, "taus", [0] * len(self.weights))


def require_finite(weights: torch.Tensor, way_out: str) -> None:
    """Reports a client that has diverged. Call it inside `may_diverge`, before the weights are stored.

    Args:
        weights: new weights of the client, or another array that it carries.
        way_out: what the user can change, such as "lower algorithm.lr".

    Raises:
        Diverged: if an entry is not finite.
    """
    if not bool(torch.isfinite(weights).all()):
        raise not_finite(way_out)


def not_finite(way_out: str) -> Diverged:
    """The exception that `require_finite` raises, for callers that check the values themselves."""
    return Diverged(
        f"the client's weights became non-finite; {way_out}, look for extreme values in the data, "
        "or set on_divergence=continue"
    )


@contextmanager
def may_diverge(federation: Federation, number: int, client: int | None = None) -> Iterator[None]:
    """Surrounds the computation of a client (of a server if `client` is None) in round `number`.

    Client and round are added to every exception. The code inside must raise `Diverged` if values become
    non-finite, for example by `require_finite`. With `on_divergence: continue` this client then takes no
    step: the exception ends here, the log gets a line about it, and the weights that were stored before
    stay.
    """
    where = {"round": number} if client is None else {"client": client, "round": number}
    absent = client is not None and federation.presence.absent(client)
    try:
        with locating(**where):
            yield
    except Diverged as error:
        if absent:  # it takes no step anyway
            return
        if federation.on_divergence == "stop":
            raise
        # Logged as an error, because ranks other than 0 log nothing below that level.
        _log.error("%s; no step is taken (%s)", error, ", ".join(error.__notes__))


@dataclass(frozen=True)
class Leg:
    """Messages of a round that travel at the same time; simulated time is counted by legs.

    Attributes:
        phases: phases of the ledger under which the messages are booked.
        before: phases of `Method.work` that a client has done when it sends the messages. Phases that no
            leg names are done after the last leg.
        way: `neighbours`: from every client to its neighbours. `up`: from clients to a server; the
            `participants` of a method send their blocks, and without participants every client sends a
            parameter vector. `down`: a parameter vector from the server to every client; the server
            computes before it sends.
    """

    phases: tuple[str, ...]
    before: tuple[str, ...] = ()
    way: Literal["neighbours", "up", "down"] = "neighbours"


@dataclass(frozen=True)
class Needs:
    """What the clients of a method send and keep. `check` and the placement of clients read it.

    It only describes what `round` will send through its `Exchange`; nothing is sent because of it. A
    method whose clients send only their weights returns `Needs(vectors=("weights",))`.

    Attributes:
        vectors: one entry for each time that every client sends a parameter vector to all its
            neighbours in a round: the phase under which the ledger books it, `weights` or `averages`.
        messages: the layout of every other message that a client sends to each neighbour once per
            round. Where the length depends on the data, the largest length.
        blocks: the layout, per sample, of messages about a client's samples, such as layer inputs or
            raw samples, which go to each neighbour. These messages are large, so a rank collects
            them for a few of its clients at a time; how many at a time follows from the size of the
            first layout.
        samples: whether every client sends its raw samples to each neighbour, or the participants to the
            server. Give no `blocks` then: planning knows whether inputs travel as bytes.
        dense: whether `blocks` are dense Jacobians, which travel in slices of parameters.
        stacked: as in `federation.waves.WorkingSet`: numbers per sample of the neighbours' blocks.
        matrices: bytes that a rank holds during a round for all its clients together, such as the
            matrices of projections.
        taus: how many weight vectors a client holds while it chooses the best one; 0 for methods that
            have no choice of steps.
        server: whether every client sends a parameter vector to a server and receives one.
        participants: number of clients per round that send their `blocks` to a server, which then
            sends a parameter vector to all clients; 0 if there is no such server.
        kept: function of a client's number of samples that returns how many bytes its rank keeps for
            the method from round to round, beside the weights; None for nothing.
        legs: the groups of messages that travel together, in the order in which they depend on each
            other. If it is empty, there is one leg per phase in `vectors`, one for `messages` and one
            for `blocks`, and a client has done all its work before the first.
    """

    vectors: tuple[str, ...] = ()
    messages: tuple[MessageFormat, ...] = ()
    blocks: tuple[MessageFormat, ...] = ()
    samples: bool = False
    dense: bool = False
    stacked: int = 0
    matrices: int = 0
    taus: int = 0
    server: bool = False
    participants: int = 0
    kept: Callable[[int], int] | None = None
    legs: tuple[Leg, ...] = ()

    @property
    def sent_vectors(self) -> dict[str, int]:
        """How many vectors a client sends or receives per round, by phase."""
        if self.server:
            return {"weights": 1, "averages": 1}
        return {"weights": 1} if self.participants else dict(Counter(self.vectors))

    @property
    def learned(self) -> str:
        """What a receiver learns of a client's samples, for people: `a neighbour learns: ...`.

        The reasons are in docs/explanation/privacy.md, and `audit` shows it for a run.
        """
        if self.stacked:
            what = (
                "every label; every input if layers are linear and outputs x projection are at least "
                "their numbers of inputs"
            )
        elif self.dense:
            what = "every label; every input if the first layer is linear"
        elif self.samples or self.blocks:
            what = "every input and every label"
        elif self.vectors or self.messages or self.server:
            what = "mixtures of samples and a rough histogram of labels, from changes of weights"
        else:
            what = "nothing, because nothing is sent"
        return f"{'the server' if self.central else 'a neighbour'} learns: {what}"

    @property
    def central(self) -> bool:
        """Whether the method has a server, so that messages do not go along the graph only."""
        return self.server or self.participants > 0


class Method(ABC, Generic[SettingsT]):
    """A decentralized learning method. Each method has its own file with everything about it.

    A subclass must define `Settings`, `label`, `needs` and `round`. It should define `look`, and `work`
    if its clients compute something. A method never sees MPI: it talks to an `Exchange`.

    Attributes:
        Settings: class of the section `algorithm:` for this method. Its field `name` is a `Literal`
            with one value, and that value is the method's name.
        label: what tables and figures call the method, such as "NTK-DFL".
        look: how its lines look in figures; None takes a spare style.
        settings: the section `algorithm:` of this run.
        federation: the clients of this rank.
        codings: the codecs that the settings choose, which the `Exchange` of a round uses.
        loss: the loss that the record reports.
    """

    Settings: ClassVar[type[MethodSettings]]
    label: ClassVar[str]
    look: ClassVar[LineStyle | None] = None
    loss: Loss = "cross-entropy"

    def __init__(self, settings: SettingsT, federation: Federation) -> None:
        """Prepares the method for the clients of `federation`."""
        self.settings, self.federation = settings, federation
        self.codings = NO_CODINGS
        if isinstance(settings, CodedSettings) and settings.codecs is not None:
            needs = self.needs(settings, federation.network, federation.dtype)
            shapes = self.coded_shapes(settings, federation.network)
            vectors = needs.sent_vectors
            self.codings = Codings.of(settings.codecs, federation, vectors, shapes, needs.central)

    @classmethod
    def coded_shapes(cls, settings: SettingsT, network: Network) -> Shapes:
        """Shapes of the tensors of a vector that codecs write; by default those of the parameters."""
        return tuple(network.layout.shapes.values())

    def no_vectors(self) -> torch.Tensor:
        """Zeros, one parameter vector per client of this rank, `[owned, param]`."""
        f = self.federation
        shape = len(f.owned), f.network.layout.size
        return torch.zeros(shape, dtype=f.dtype, device=f.device)

    @classmethod
    def name(cls) -> str:
        """The name by which configurations call the method."""
        return str(cls.Settings.model_fields["name"].default)

    @classmethod
    @abstractmethod
    def needs(cls, settings: SettingsT, network: Network, dtype: torch.dtype) -> Needs:
        """Says what a round will send and what is kept, from the settings and the network only."""

    @classmethod
    def work(cls, settings: SettingsT, load: Load) -> dict[str, Work]:
        """Counts the work of each client in round 0, by phase of the clock (`runtime/clock.py`).

        Averaging (from `needs`), evaluation and recording are counted for every method elsewhere, so a
        method counts only its own work. Clients are distributed over ranks by these counts, and `check`
        predicts seconds from them; no result depends on them. The default counts nothing.
        """
        return {}

    @classmethod
    def server_work(cls, settings: SettingsT, load: Load) -> dict[str, Work]:
        """Counts what a server computes in a round, by phase; `load` holds the server as one client.

        Its samples `own` are those of an average choice of `Needs.participants` clients.
        """
        return {}

    @abstractmethod
    def round(self, weights: torch.Tensor, number: int, exchange: Exchange) -> RoundResult:
        """Does one round for all clients of this rank.

        Every client has at least one sample. If the weights of a client become non-finite, the method
        raises `Diverged` inside `may_diverge`; all that it returns and carries must be finite.

        Args:
            weights: the weights of this rank's clients, `[owned, param]`.
            number: the number of the round; the first is 0.
            exchange: sends messages between clients along the graph of this round.
        """

    def state(self) -> dict[str, torch.Tensor]:
        """The arrays `[owned, ...]` that the method carries from round to round, by name.

        The weights are not among them; examples are velocities and masks. A checkpoint stores the arrays
        by client. Names, types, and shapes beyond the first axis must stay the same for a whole run.
        """
        return {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes back what `state` returned, for the clients of this rank; tensors may be on any device.

        It is called before the first round of a resumed run, which then continues with the same bits.
        """
        if state:
            raise ValueError(f"this method carries no state, got {', '.join(state)}")

    def whole_state(self) -> dict[str, torch.Tensor]:
        """What is carried from round to round beside the weights: the method's state and its codecs'."""
        return {**self.codings.state(), **self.state()}

    def restore_whole(self, carried: Mapping[str, torch.Tensor]) -> None:
        """Takes back what `whole_state` returned."""
        self.codings.restore(carried)
        coded = self.codings.state()
        self.restore({name: array for name, array in carried.items() if name not in coded})
