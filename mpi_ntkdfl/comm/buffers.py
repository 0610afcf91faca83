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


class Buffers:
    """Lends host memory; what was lent comes back by itself."""

    def __init__(self) -> None:
        """Starts without a block."""
        self._free: list[np.ndarray] = []

    def empty(self, nbytes: int) -> torch.Tensor:
        """`[nbytes]` uint8, not initialised, on a cache line. Its views may outlive it."""
        least = nbytes + ALIGNMENT  # a block need not begin on a cache line
        fitting = [block for block in self._free if least <= block.nbytes <= 4 * least]
        if fitting:
            block = min(fitting, key=lambda each: each.nbytes)
            self._free = [each for each in self._free if each is not block]
        else:
            block = np.empty(nbytes + nbytes // 8 + ALIGNMENT, dtype=np.uint8)
        start = -block.ctypes.data % ALIGNMENT
        # An array object of its own, so that its end, not the block's, is noticed.
        lent = np.frombuffer(block.data, np.uint8, nbytes, start)
        weakref.finalize(lent, self._take_back, block).atexit = False
        return torch.from_numpy(lent)

    def _take_back(self, block: np.ndarray) -> None:
        self._free.append(block)
        if len(self._free) > _KEPT:
            smallest = min(self._free, key=lambda each: each.nbytes)
            self._free = [each for each in self._free if each is not smallest]


_OF_THIS_RANK = Buffers()


def host_bytes(nbytes: int) -> torch.Tensor:
    """Memory for a message, `[nbytes]` uint8, not initialised."""
    return _OF_THIS_RANK.empty(nbytes)
