"""Messages in transfer: the sender writes them into one buffer, the receiver reads them in its buffer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from mpi_ntkdfl.comm.ledger import Ledger
from mpi_ntkdfl.comm.messages import Arrays, MessageFormat
from mpi_ntkdfl.comm.staging import Staging
from mpi_ntkdfl.comm.world import Channel, Pending
from mpi_ntkdfl.runtime.clock import Clock

Pair = tuple[int, int]


class Outgoing:
    """Messages to be written into one buffer."""

    def __init__(self, ledger: Ledger, staging: Staging) -> None:
        """Starts without a message.

        Args:
            ledger: books the bytes that are sent.
            staging: provides the buffers.
        """
        self._ledger, self._staging = ledger, staging
        self._messages: list[tuple[MessageFormat, int, Callable[[], Arrays]]] = []

    def add(self, form: MessageFormat, samples: int, make: Callable[[], Arrays]) -> None:
        """Adds a message of `samples` samples; `make` is called when the message is written."""
        self._messages.append((form, samples, make))

    def start(self, channel: Channel, send_bytes: list[int], receive_bytes: list[int]) -> Pending:
        """Writes all messages and starts to send the buffer on the channel."""
        send = self._staging.depart(self.pack())
        room = self._staging.room(sum(receive_bytes))
        self._staging.settle()
        return channel.start(send, tuple(send_bytes), tuple(receive_bytes), room)

    def pack(self) -> torch.Tensor:
        """Writes and books all messages, one after another: `[bytes]` uint8 on the device."""
        size = sum(form.nbytes(samples) for form, samples, _ in self._messages)
        buffer = self._staging.space(size)
        position, sent = 0, Counter[str]()
        for form, samples, make in self._messages:
            position = form.write(buffer, position, samples, make())
            sent.update(form.by_phase(samples, travelling=True))
        for phase, count in sent.items():
            self._ledger.book_mpi(phase, count)
        return buffer


@dataclass(frozen=True)
class Transfer:
    """A started exchange of messages for pairs (i, j), from client j to client i.

    Attributes:
        pending: the started exchange.
        coming: pairs of the messages in the received buffer, in the order of the buffer.
        form: layout of the messages.
        sizes: number of samples of each client, `[client]`.
        make: returns the message of the own client j for client i.
        staging: moves the received buffer to the device.
        clock: books the time of waiting.
        opened: reads a coded message; None if messages travel as they are. A client's message to
            itself is not coded.
    """

    pending: Pending
    coming: list[Pair]
    form: MessageFormat
    sizes: np.ndarray
    make: Callable[[Pair], Arrays]
    staging: Staging
    clock: Clock
    opened: Callable[[Arrays], Arrays] | None = None

    def poke(self) -> None:
        """Lets the MPI library make progress."""
        self.pending.poke()

    def finish(self) -> Callable[[int, int], Arrays]:
        """Waits; returns a function of (i, j) that reads a received message or makes a local one."""
        with self.clock("exchange"):
            buffer, position = self.staging.arrive(self.pending.wait()), 0
        places: dict[Pair, tuple[int, int]] = {}
        for pair in self.coming:
            samples = int(self.sizes[pair[1]])
            places[pair] = position, samples
            position += self.form.nbytes(samples)

        def message(i: int, j: int) -> Arrays:
            own = (i, j) not in places
            arrays = self.make((i, j)) if own else self.form.read(buffer, *places[i, j])
            return arrays if self.opened is None or i == j else self.opened(arrays)

        return message
