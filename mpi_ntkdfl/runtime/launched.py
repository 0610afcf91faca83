"""What the launcher's environment says of this process, known before MPI starts."""

from __future__ import annotations

import os
from collections.abc import Sequence

_SIZE = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "PMIX_SIZE")
_RANK = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID")


def _from_environment(names: Sequence[str], default: int) -> int:
    for name in names:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return default


def launched_rank() -> int:
    """The rank the launcher gave this process; 0 without a launcher."""
    return _from_environment(_RANK, 0)


def launched_size() -> int:
    """How many processes the launcher says it started; 1 without a launcher."""
    return _from_environment(_SIZE, 1)


def under_launcher() -> bool:
    """Whether a launcher started this process, even as the only one."""
    return any(name in os.environ for name in _SIZE)
