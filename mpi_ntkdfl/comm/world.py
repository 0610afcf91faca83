"""What the simulator asks of a set of ranks, and the twin that is a single process.

`World` and `Channel` are the whole surface between the simulator and message passing: `mpi.py` has the
MPI implementation, `SoloWorld` the in-process one that tests and analyses use. Code above this folder
has no branch on "parallel or not".
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
        """Lets the message-passing library make progress; returns at once whether all is there."""
        ...

    def wait(self) -> torch.Tensor:
        """Blocks until done; returns the received bytes, `[bytes]` uint8."""
        ...


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
        """Starts one exchange; all ranks of the world take part, in the same order.

        Args:
            send: `[sum(send_bytes)]` uint8, the parts for each neighbour one after another.
            send_bytes: bytes for each neighbour, multiples of 64.
            receive_bytes: bytes from each neighbour, multiples of 64.
            room: `[sum(receive_bytes)]` uint8 to receive into.
        """
        ...

    def close(self) -> None:
        """Frees what the channel holds; all ranks take part."""
        ...


class World(Protocol):
    """A set of ranks."""

    rank: int
    size: int
    hosts: tuple[str, ...]
    """The node of every rank, by name; different nodes have different names."""
    local_rank: int
    """Number of this rank among those of its node."""
    library: str
    round: int
    """Which one goes on, for messages."""

    @property
    def identities(self) -> tuple[Identity | None, ...]:
        """What every rank runs, `[rank]`; None for one whose package is too old to tell."""
        ...

    @property
    def cuda_aware(self) -> bool | None:
        """Whether the library says that it takes memory of a GPU; None if it does not say."""
        ...

    def on_root(self, task: Callable[[], T]) -> T:
        """Runs `task` on rank 0 and returns its (small) result on every rank.

        Raises:
            InputError: on every rank if `task` raised it on rank 0; only rank 0's carries the message.
        """
        ...

    def agree(self, task: Callable[[], T]) -> T:
        """Runs `task` on every rank; returns each rank's own result.

        Raises:
            InputError: on every rank if any raised it; only the first such rank's has the message.
        """
        ...

    def broadcast(self, array: np.ndarray | None) -> np.ndarray:
        """Gives rank 0's array to every rank."""
        ...

    def scatter(self, parts: Callable[[int], np.ndarray]) -> np.ndarray:
        """Gives `parts(rank)`, evaluated on rank 0, to each rank."""
        ...

    def collect(self, array: np.ndarray) -> Iterator[np.ndarray]:
        """On rank 0 yields every rank's array in rank order, one in memory at a time; else nothing."""
        ...

    def total(self, array: np.ndarray) -> np.ndarray:
        """Sum over ranks, on every rank; integers only, so that no order of addition shows."""
        ...

    def largest(self, value: float) -> float:
        """Maximum over ranks, on every rank."""
        ...

    def hand_in(self, array: np.ndarray, lengths: Sequence[int]) -> Callable[[], list[np.ndarray]]:
        """Starts to bring every rank's `array` to rank 0; all ranks take part.

        Args:
            array: `[number]` int64 of this rank; must stay as it is until the end.
            lengths: numbers of every rank, `[rank]`.

        Returns:
            A function that waits for the end, and returns every rank's array on rank 0, else nothing.
        """
        ...

    def channel(self, neighbours: Sequence[int], lasting: bool = True) -> Channel:
        """Opens a channel with `neighbours`; all ranks take part.

        Args:
            neighbours: other ranks, ascending; the relation is symmetric.
            lasting: whether it serves many rounds, so that opening may cost more than an exchange.
        """
        ...

    def watched(
        self, patience: float | None, limit: float | None
    ) -> contextlib.AbstractContextManager[None]:
        """Within the block, ends all ranks if one falls silent; all ranks take part.

        Args:
            patience: seconds without a word from a rank; None for no end.
            limit: seconds from the program's start after which half a minute is enough, or None.
        """
        ...


class _Done:
    def poke(self) -> bool:
        return True

    def wait(self) -> torch.Tensor:
        import torch  # so that commands that look at records start without it

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
        """Nothing to do."""
        return _Done()

    def close(self) -> None:
        """Nothing to free."""


class SoloWorld:
    """One process that owns every client: no MPI, same verbs."""

    rank = 0
    size = 1
    hosts: tuple[str, ...] = ("localhost",)
    local_rank = 0
    library = "none (one process)"
    round = 0
    cuda_aware: bool | None = None

    @property
    def identities(self) -> tuple[Identity | None, ...]:
        """What this process runs."""
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

    def collect(self, array: np.ndarray) -> Iterator[np.ndarray]:
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
        """A channel with nobody."""
        return SoloChannel()

    def watched(
        self, patience: float | None, limit: float | None
    ) -> contextlib.AbstractContextManager[None]:
        """Nobody to wait for."""
        return contextlib.nullcontext()
