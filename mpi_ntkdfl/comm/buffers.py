"""Memory for messages that is used again.

Memory fresh from the system costs a page fault for every 4 KB on first touch, and MPI libraries that
copy from process to process (CMA) fault inside the copy: measured, 0.3 instead of 0.7 GB/s with MPICH
between two processes. The C library hands blocks above 32 MB back to the system whenever they are
freed. So blocks that carried a message are kept for the next one. A block is free again once no tensor
looks into it any more, whoever holds the last view.
"""

from __future__ import annotations

import weakref

import numpy as np
import torch

from mpi_ntkdfl.model.params import ALIGNMENT

_KEPT = 4
"""Free blocks that are kept: what one wave sends and receives, and the next."""

_SMALL = 2**19
"""Bytes up to which the C library's memory is as good: it keeps such blocks once it has seen larger ones,
and answers in half the time that lending takes."""


class _Loan(weakref.ref[np.ndarray]):
    """A block of memory, and the array that looks into it; the block is free once that is gone."""

    __slots__ = ("block",)
    block: np.ndarray


class Buffers:
    """Lends host memory; what was lent comes back by itself."""

    def __init__(self) -> None:
        """Starts without a block."""
        # By id, because arrays and references to them cannot be hashed.
        self._free: dict[int, np.ndarray] = {}
        self._loans: dict[int, _Loan] = {}

    def empty(self, nbytes: int) -> torch.Tensor:
        """`[nbytes]` uint8, not initialised, on a cache line. Its views may outlive it."""
        most = 4 * (nbytes + ALIGNMENT)
        fitting = [block for block in self._free.values() if nbytes <= len(block) <= most]
        block = min(fitting, key=len) if fitting else _block(nbytes + nbytes // 8)
        self._free.pop(id(block), None)
        # An array object of its own, held by the tensor, so that its end, not the block's, is noticed.
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
    """Fresh memory `[nbytes]` uint8 that starts on a cache line."""
    whole = np.empty(nbytes + ALIGNMENT, dtype=np.uint8)
    start = -whole.ctypes.data % ALIGNMENT
    return whole[start : start + nbytes]


_OF_THIS_RANK = Buffers()


def host_bytes(nbytes: int) -> torch.Tensor:
    """Memory for a message, `[nbytes]` uint8, not initialised, on a cache line."""
    if nbytes <= _SMALL:
        return torch.empty(nbytes, dtype=torch.uint8)
    return _OF_THIS_RANK.empty(nbytes)
