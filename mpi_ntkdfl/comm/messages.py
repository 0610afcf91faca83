"""The layout of messages: named arrays of `[samples, ...]`, each starting on its own cache line.

Sender and receiver know the number of samples of every client. So they know the length and the layout of
every message without asking, and a message holds only payload.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from mpi_ntkdfl.model.params import ALIGNMENT

Arrays = Mapping[str, torch.Tensor]
"""A message's arrays by the names of its fields."""


def padded(nbytes: int) -> int:
    """`nbytes` rounded up to whole cache lines."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Field:
    """One array of a message.

    Attributes:
        phase: the phase of the ledger under which it is booked.
        trailing: its shape after the sample axis.
        dtype: its element type.
        protocol: bytes per sample that real clients would send; None for the payload.
    """

    phase: str
    trailing: tuple[int, ...]
    dtype: torch.dtype
    protocol: int | None = None

    @cached_property
    def row_bytes(self) -> int:
        """Payload bytes per sample."""
        return math.prod(self.trailing) * self.dtype.itemsize


@dataclass(frozen=True)
class MessageFormat:
    """The fields of a message by name, in their order in the message."""

    fields: Mapping[str, Field]

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases of its fields, each once."""
        return tuple(dict.fromkeys(field.phase for field in self.fields.values()))

    @property
    def phase(self) -> str:
        """The phase of its first field; all fields travel together."""
        return self.phases[0]

    def nbytes(self, samples: int) -> int:
        """Bytes of the message including its padding."""
        return sum([padded(samples * field.row_bytes) for field in self.fields.values()])

    def nbytes_each(self, sizes: np.ndarray) -> np.ndarray:
        """Bytes of the message of each client, `[client]`, given the numbers of samples `sizes`."""
        lines = [-(-sizes * field.row_bytes // ALIGNMENT) for field in self.fields.values()]
        each: np.ndarray = ALIGNMENT * np.sum(lines, axis=0)
        return each

    def by_phase(self, samples: int, travelling: bool) -> dict[str, int]:
        """Bytes by phase of the ledger: those that MPI sends (`travelling`), or of the protocol."""
        totals: dict[str, int] = {}
        for field in self.fields.values():
            count = padded(samples * field.row_bytes)
            if not travelling:
                count = samples * (field.row_bytes if field.protocol is None else field.protocol)
            totals[field.phase] = totals.get(field.phase, 0) + count
        return totals

    def write(
        self, buffer: torch.Tensor, start: int, samples: int, arrays: Mapping[str, torch.Tensor]
    ) -> int:
        """Copies `arrays` into `buffer` `[bytes]` from byte `start`; returns the end of the message."""
        views, stop = self._views(buffer, start, samples)
        for name, view in views.items():
            view.copy_(arrays[name])
        return stop

    def read(self, buffer: torch.Tensor, start: int, samples: int) -> dict[str, torch.Tensor]:
        """Views into `buffer` `[bytes]` of the message that starts at byte `start`."""
        return self._views(buffer, start, samples)[0]

    def _views(
        self, buffer: torch.Tensor, start: int, samples: int
    ) -> tuple[dict[str, torch.Tensor], int]:
        """Views of the fields, and the byte at which the message ends."""
        views = {}
        for name, field in self.fields.items():
            count = samples * field.row_bytes
            # `narrow` costs half of a slice, which matters for small messages.
            flat = buffer.narrow(0, start, count).view(field.dtype)
            views[name] = flat.view(samples, *field.trailing)
            start += padded(count)
        return views, start
