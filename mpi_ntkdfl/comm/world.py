"""The interface between the simulator and message passing, and its implementation for one process.

`World` and `Channel` are the whole interface. `mpi.py` implements it with MPI. `SoloWorld` implements it
inside one process, for tests and analyses. Code outside this folder has no branch on "parallel or not".
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from mpi_ntkdfl.runtime import identity
from mpi_ntkdfl.runtime.identity import Identity

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class Pending(Protocol):
    """A started exchange."""

    def poke(self) -> bool:
        """Lets the MPI library make progress; returns at once whether the exchange is complete."""

    def wait(self) -> torch.Tensor:
        """Blocks until the exchange is complete; returns the received bytes, `[bytes]` uint8."""


class Channel(Protocol):
    """Neighbourhood collectives with a fixed, symmetric set of other ranks."""

    neighbours: tuple[int, ...]

    def start(
        self,
        send: torch.Tensor,
        send_bytes: tuple[int, ...],
        receive_bytes: tuple[int, ...],
        room: torch.Tensor,
    ) -> Pending:
        """Starts one exchange; all ranks of the world take part and start exchanges in the same order.

        Args:
            send: `[sum(send_bytes)]` uint8, the parts for all neighbours one after another.
            send_bytes: bytes for each neighbour, multiples of 64.
            receive_bytes: bytes from each neighbour, multiples of 64.
            room: `[sum(receive_bytes)]` uint8 to receive into.
        """

    def close(self) -> None:
        """Frees the resources of the channel; all ranks take part."""


class World(Protocol):
    """A set of ranks."""

    rank: int
    size: int
    hosts: tuple[str, ...]
    """Name of the node of every rank, `[rank]`; different nodes have different names."""
    local_rank: int
    """Number of this rank among the ranks of its node."""
    library: str
    """Name and version of the MPI library."""
    round: int
    """Number of the current round, for messages."""

    @property
    def identities(self) -> tuple[Identity | None, ...]:
        """The program that every rank runs, `[rank]`; None if a rank's package is too old to say it."""

    @property
    def cuda_aware(self) -> bool | None:
        """Whether the library says that it accepts memory of a GPU; None if it says nothing."""

    def on_root(self, task: Callable[[], T]) -> T:
        """Runs `task` on rank 0 and returns its (small) result on every rank.

        Raises:
            InputError: on every rank if `task` raised it on rank 0; only rank 0's error has the message.
        """

    def agree(self, task: Callable[[], T]) -> T:
        """Runs `task` on every rank; returns each rank's own result.

        Raises:
            InputError: on every rank if any rank raised it; only the error of the first such rank has
                the message.
        """

    def broadcast(self, array: np.ndarray | None) -> np.ndarray:
        """Gives rank 0's array to every rank."""

    def scatter(self, parts: Callable[[int], np.ndarray]) -> np.ndarray:
        """Gives `parts(rank)`, evaluated on rank 0, to each rank."""

    def collect(self, array: np.ndarray, group: range | None = None) -> Iterator[np.ndarray]:
        """Yields every rank's array on rank 0, in rank order; yields nothing on other ranks.

        Rank 0 holds one array at a time.

        Args:
            array: of this rank.
            group: consecutive ranks with this one among them, of which the first takes the part of
                rank 0; None for all ranks.
        """

    def total(self, array: np.ndarray) -> np.ndarray:
        """Sum over ranks, on every rank; only of integers, whose sum is the same in any order."""

    def largest(self, value: float) -> float:
        """Maximum over ranks, on every rank."""

    def hand_in(self, array: np.ndarray, lengths: Sequence[int]) -> Callable[[], list[np.ndarray]]:
        """Starts to bring every rank's `array` to rank 0; all ranks take part.

        Args:
            array: `[number]` int64 of this rank; it must not change until the transfer has ended.
            lengths: length of every rank's array, `[rank]`.

        Returns:
            A function that waits until the transfer has ended. On rank 0 it returns every rank's array,
            on other ranks an empty list.
        """

    def channel(self, neighbours: Sequence[int], lasting: bool = True) -> Channel:
        """Opens a channel with `neighbours`; all ranks take part.

        Args:
            neighbours: other ranks, ascending; the relation is symmetric.
            lasting: whether it is used for many rounds, so that opening may cost more than an exchange.
        """

    def watched(
        self, patience: float | None, limit: float | None
    ) -> contextlib.AbstractContextManager[None]:
        """Within the block, ends all ranks if one of them is silent for long; all ranks take part.

        Args:
            patience: seconds of silence that end the job; None for no limit.
            limit: seconds from the program's start after which half a minute of silence is enough; None
                for never.
        """


class _Done:
    def poke(self) -> bool:
        return True

    def wait(self) -> torch.Tensor:
        import torch  # imported here, so that commands that look at records start without torch

        return torch.empty(0, dtype=torch.uint8)


class SoloChannel:
    """A channel without neighbours."""

    neighbours: tuple[int, ...] = ()

    def start(
        self,
        send: torch.Tensor,
        send_bytes: tuple[int, ...],
        receive_bytes: tuple[int, ...],
        room: torch.Tensor,
    ) -> Pending:
        """Returns an exchange that is complete and received nothing."""
        return _Done()

    def close(self) -> None:
        """Nothing to free."""


class SoloWorld:
    """One process that owns every client. It has the same methods as other worlds and needs no MPI."""

    rank = 0
    size = 1
    hosts: tuple[str, ...] = ("localhost",)
    local_rank = 0
    library = "none (one process)"
    round = 0
    cuda_aware: bool | None = None

    @property
    def identities(self) -> tuple[Identity | None, ...]:
        """The program that this process runs."""
        return (identity.own(),) * self.size

    def on_root(self, task: Callable[[], T]) -> T:
        """Runs `task`."""
        return task()

    def agree(self, task: Callable[[], T]) -> T:
        """Runs `task`."""
        return task()

    def broadcast(self, array: np.ndarray | None) -> np.ndarray:
        """Returns `array`."""
        assert array is not None
        return array

    def scatter(self, parts: Callable[[int], np.ndarray]) -> np.ndarray:
        """Returns the only part."""
        return parts(0)

    def collect(self, array: np.ndarray, group: range | None = None) -> Iterator[np.ndarray]:
        """Yields `array`."""
        yield array

    def total(self, array: np.ndarray) -> np.ndarray:
        """Returns `array`."""
        return array

    def largest(self, value: float) -> float:
        """Returns `value`."""
        return value

    def hand_in(self, array: np.ndarray, lengths: Sequence[int]) -> Callable[[], list[np.ndarray]]:
        """Returns the only array."""
        return lambda: [array]

    def channel(self, neighbours: Sequence[int], lasting: bool = True) -> Channel:
        """A channel without neighbours."""
        return SoloChannel()

    def watched(
        self, patience: float | None, limit: float | None
    ) -> contextlib.AbstractContextManager[None]:
        """There is no other rank to watch."""
        return contextlib.nullcontext()
