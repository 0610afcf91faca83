"""Logging under MPI: rank 0 logs everything; other ranks log only errors, with their rank in front."""

from __future__ import annotations

import logging
import sys


def set_up(rank: int, quiet: bool) -> None:
    """Sends the package's log to standard error.

    Args:
        rank: rank of this process.
        quiet: whether rank 0 logs only warnings and errors.
    """
    handler = logging.StreamHandler(sys.stderr)
    prefix = f"rank {rank}: " if rank else ""
    handler.setFormatter(logging.Formatter(f"{prefix}%(message)s"))
    logger = logging.getLogger("mpi_ntkdfl")
    logger.handlers = [handler]
    # Ranks other than 0 derive the same graphs and would repeat rank 0's warnings.
    logger.setLevel(logging.ERROR if rank else logging.WARNING if quiet else logging.INFO)
