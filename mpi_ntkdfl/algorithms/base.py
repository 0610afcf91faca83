"""What a method is: settings, and a round as a function of weights and an `Exchange`."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch

from mpi_ntkdfl.comm.messages import MessageFormat
from mpi_ntkdfl.config import MethodSettings
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.model.losses import Loss
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.runtime.errors import Diverged, locating

_log = logging.getLogger(__name__)

SettingsT = TypeVar("SettingsT", bound=MethodSettings)


@dataclass(frozen=True)
class RoundResult:
    """What a round leaves behind on one rank.

    Attributes:
        weights: of the rank's clients, carried into the next round, `[owned, param]`.
        taus: evolution steps each of them chose, `[owned]`; zeros for methods that know no tau.
    """

    weights: torch.Tensor
    taus: list[int]


def require_finite(weights: torch.Tensor, way_out: str) -> None:
    """Lets a client diverge: to be called inside `may_diverge` on what it goes on with.

    Args:
        weights: of the client, or anything else it carries.
        way_out: what the user can change, such as "lower algorithm.lr".

    Raises:
        Diverged: if an entry is not finite.
    """
    if not bool(torch.isfinite(weights).all()):
        raise not_finite(way_out)


def not_finite(way_out: str) -> Diverged:
    """What `require_finite` raises, for those who looked themselves."""
    return Diverged(
        f"the client's weights became non-finite; {way_out}, look for extreme values in the data, "
        "or set on_divergence=continue"
    )


@contextmanager
def may_diverge(federation: Federation, number: int, client: int | None = None) -> Iterator[None]:
    """Around a client's (or, without one, a server's) computation in round `number`.

    Names both to any exception. It checks nothing itself: what diverges raises `Diverged`, as
    `require_finite` does. With `on_divergence: continue` such a client takes no step: the block ends,
    a line in the log says so, and what its weights were set to before stays.
    """
    where = {"round": number} if client is None else {"client": client, "round": number}
    try:
        with locating(**where):
            yield
    except Diverged as error:
        if federation.on_divergence == "stop":
            raise
        # As an error, because ranks other than 0 say nothing less.
        _log.error("%s; no step is taken (%s)", error, ", ".join(error.__notes__))


@dataclass(frozen=True)
class Needs:
    """What a round of a method sends and holds, for planning.

    Attributes:
        vectors: ledger phases in which every client sends a parameter vector to its neighbours.
        messages: formats of what else every client sends once to each neighbour; where lengths depend
            on the data, the most they can be.
        server: whether every client sends a parameter vector to a server and gets one back.
        blocks: formats of the messages every client sends for its samples to each neighbour; the
            first is what waves are cut by.
        dense: whether the blocks are dense Jacobians, which travel in slices.
        taus: residual sums a client multiplies by at once.
        participants: clients a round that send their blocks to a server instead, which then sends
            a parameter vector to all clients; 0 for methods without a server.
        kept: bytes a rank keeps for the method between rounds for a client, given its samples.
    """

    vectors: tuple[str, ...] = ()
    messages: tuple[MessageFormat, ...] = ()
    server: bool = False
    blocks: tuple[MessageFormat, ...] = ()
    dense: bool = False
    taus: int = 0
    participants: int = 0
    kept: Callable[[int], int] | None = None


class Method(ABC, Generic[SettingsT]):
    """A decentralized learning method. One file each; it never sees MPI.

    Attributes:
        Settings: the class of the `algorithm:` section that the method understands.
        settings: that section.
        federation: the clients of this rank.
        loss: the loss that the record reports.
    """

    Settings: ClassVar[type[MethodSettings]]
    loss: Loss = "cross-entropy"

    def __init__(self, settings: SettingsT, federation: Federation) -> None:
        """Prepares the method for the clients of `federation`."""
        self.settings, self.federation = settings, federation

    @classmethod
    @abstractmethod
    def needs(cls, settings: SettingsT, network: Network, dtype: torch.dtype) -> Needs:
        """Says what a round will send and keep, from the settings and the network only."""

    @abstractmethod
    def round(self, weights: torch.Tensor, number: int, exchange: Exchange) -> RoundResult:
        """One round for all clients of this rank.

        Every client has a sample at least. What becomes non-finite is reported inside `may_diverge`; what
        the method returns and carries must be finite.

        Args:
            weights: `[owned, param]`.
            number: of the round, from 0.
            exchange: the round's messages.
        """

    def state(self) -> dict[str, torch.Tensor]:
        """What it carries from round to round beside the weights, by name: arrays `[owned, ...]`.

        Momentum, masks and the like; the checkpoint copies them at once, by client. Names, types and
        shapes beyond the first axis stay the same for a whole run.
        """
        return {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes back what `state` gave, for the clients of this rank, on any device.

        Called before the first round of a resumed run, which then goes on with the same bits.
        """
        if state:
            raise ValueError(f"this method carries no state, got {', '.join(state)}")
