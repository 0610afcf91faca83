"""Memory for messages that is used again.

New memory from the system costs one page fault per 4 KB when it is first touched. With MPI libraries
that copy from process to process (CMA) these faults happen inside the copy: 0.3 instead of 0.7 GB/s were
measured with MPICH between two processes. The C library returns blocks above 32 MB to the system
whenever they are freed. So blocks that carried a message are kept for the next message. A block is free
again when no tensor views it any more.
"""

from __future__ import annotations

import weakref

import numpy as np
import torch

from mpi_ntkdfl.model.params import ALIGNMENT

_KEPT = 4
"""Number of free blocks that are kept: one to send and one to receive, for two waves."""

_SMALL = 2**19
"""Bytes up to which the memory of the C library is as good. The library keeps such blocks after it has
freed larger ones, and it allocates in half the time that lending a block takes."""


class _Loan(weakref.ref[np.ndarray]):
    """A weak reference to the array that views a block of memory.

    The block is free when this array does not exist any more.
    """

    __slots__ = ("block",)
    block: np.ndarray


class Buffers:
    """Lends host memory; a block returns by itself when nothing views it any more."""

    def __init__(self) -> None:
        """Starts without a block."""
        # The keys are ids, because arrays and references to them cannot be hashed.
        self._free: dict[int, np.ndarray] = {}
        self._loans: dict[int, _Loan] = {}

    def empty(self, nbytes: int) -> torch.Tensor:
        """Memory `[nbytes]` uint8, not initialised, aligned to a cache line.

        Views of the tensor may outlive the tensor itself.
        """
        most = 4 * (nbytes + ALIGNMENT)
        fitting = [block for block in self._free.values() if nbytes <= len(block) <= most]
        block = min(fitting, key=len) if fitting else _block(nbytes + nbytes // 8)
        self._free.pop(id(block), None)
        # The tensor holds a new array object that views the block. When this array is freed, the block
        # can be lent again. A weak reference to the block itself would not notice that, because
        # `loan.block` keeps the block alive.
        lent = block[:nbytes]
        loan = _Loan(lent, self._take_back)
        loan.block = block
        self._loans[id(loan)] = loan
        return torch.from_numpy(lent)

    def _take_back(self, loan: weakref.ref[np.ndarray]) -> None:
        block = self._loans.pop(id(loan)).block
        self._free[id(block)] = block
        if len(self._free) > _KEPT:
            del self._free[id(min(self._free.values(), key=len))]


def _block(nbytes: int) -> np.ndarray:
    """New memory `[nbytes]` uint8 that starts on a cache line."""
    whole = np.empty(nbytes + ALIGNMENT, dtype=np.uint8)
    start = -whole.ctypes.data % ALIGNMENT
    return whole[start : start + nbytes]


_OF_THIS_RANK = Buffers()


def host_bytes(nbytes: int) -> torch.Tensor:
    """Memory for a message, `[nbytes]` uint8, not initialised, aligned to a cache line."""
    if nbytes <= _SMALL:
        return torch.empty(nbytes, dtype=torch.uint8)
    return _OF_THIS_RANK.empty(nbytes)
