"""What this machine, this launcher and this installation look like to a run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence

from mpi_ntkdfl import __version__
from mpi_ntkdfl.comm.mpi import MpiWorld, launched_size, local_rank
from mpi_ntkdfl.data import sources

_PACKAGES = ("torch", "mpi4py", "numpy", "h5py", "networkx", "pydantic", "scikit-learn")


def rank_line() -> str:
    """Host, device and threads of this rank."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = sorted({torch.cuda.get_device_name(index) for index in range(gpus)})
    return (
        f"{platform.node()}, pid {os.getpid()}, {gpus} GPUs {' '.join(names)}".rstrip()
        + f", {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}"
        f" cores to run on, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'unset')}"
    )


def report(world: MpiWorld, lines: Sequence[str]) -> str:
    """The whole report, for rank 0 to print.

    Args:
        world: the ranks.
        lines: `rank_line` of every rank.
    """
    import h5py

    versions = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    ranks = [
        f"  rank {rank} (local {local_rank(world.hosts, rank)}): {line}"
        for rank, line in enumerate(lines)
    ]
    data = [
        f"  {entry.name}: {'found' if entry.found else 'not here'}, {entry.where}"
        for entry in sources.catalogue()
    ]
    return "\n".join(
        [
            f"mpi_ntkdfl {__version__}, Python {platform.python_version()}, {platform.platform()}",
            versions,
            f"MPI: {world.library}",
            f"launcher: {launched_size()} processes started, {world.size} ranks see each other",
            *ranks,
            f"HDF5 {h5py.version.hdf5_version}, parallel: {h5py.get_config().mpi} (not needed)",
            "data sets:",
            *data,
        ]
    )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
