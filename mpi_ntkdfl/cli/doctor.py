"""What this machine, this launcher and this installation look like to a run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mpi_ntkdfl import __version__
from mpi_ntkdfl.cli.groups import PROGRAM
from mpi_ntkdfl.comm.launcher import launched_size
from mpi_ntkdfl.comm.mpi import MpiWorld
from mpi_ntkdfl.data import sources
from mpi_ntkdfl.runtime import device
from mpi_ntkdfl.runtime.limits import usable_cores

_PACKAGES = ("torch", "mpi4py", "numpy", "h5py", "networkx", "pydantic", "scikit-learn")

_CUDA_AWARE = {
    True: "says it takes CUDA memory (compute.gpu_aware_mpi)",
    False: "says it does not take CUDA memory",
    None: "does not say whether it takes CUDA memory",
}


@dataclass(frozen=True)
class Rank:
    """What one rank sees.

    Attributes:
        gpus: names of the visible GPUs.
        device: what `compute.device: auto` gives it.
        cores: the cores it may run on.
        threads: OMP_NUM_THREADS.
        evolution: instructions of the compiled evolution, or why there is none.
    """

    gpus: tuple[str, ...]
    device: str
    cores: tuple[int, ...]
    threads: str
    evolution: str


def this_rank(local_rank: int) -> Rank:
    """What this rank sees, as number `local_rank` on its node."""
    import torch

    gpus = device.visible_gpus()
    return Rank(
        tuple(torch.cuda.get_device_name(index) for index in range(gpus)),
        _described(str(device.choose("auto", local_rank))),
        usable_cores(),
        os.environ.get("OMP_NUM_THREADS", "unset"),
        _evolution(),
    )


def _evolution() -> str:
    """Which build evolves outputs on CPU here, in float32."""
    import torch

    from mpi_ntkdfl.ntk import compiled

    build = compiled.find(torch.float32)
    return f"none, {build}" if isinstance(build, str) else build.level


def _training() -> str:
    """Which build takes an mlp's local steps on CPU here, in float32."""
    import torch

    from mpi_ntkdfl.model.kinds.mlp import MlpSettings
    from mpi_ntkdfl.model.networks import build

    choice = build(MlpSettings(), (1,), 2).compiled_training(device.HOST, torch.float32)
    return choice.reason if choice.taken else f"none, {choice.reason}"


def _levels() -> str:
    """What multiplies weights by bytes here, where bytes are multiplied as bytes."""
    from mpi_ntkdfl.model.compiled_levels import find

    build = find()
    return f"by torch, {build}" if isinstance(build, str) else "compiled"


def _described(name: str) -> str:
    """Adds the GPUs that the batch system lets this rank see, because numbers count within them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"{name} of {visible}" if name != str(device.HOST) and visible else name


def report(world: MpiWorld, ranks: Sequence[Rank]) -> str:
    """The whole report, for rank 0 to print.

    Args:
        world: the ranks.
        ranks: what each of them sees.
    """
    import h5py

    from mpi_ntkdfl.model.byte_products import measured

    versions = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    entries = sources.catalogue()
    data = [
        f"  {entry.name}: {'found' if entry.found else 'not here'}, {entry.where}"
        for entry in entries
    ]
    missing = [entry.name for entry in entries if not entry.found]
    return "\n".join(
        [
            f"mpi_ntkdfl {__version__}, Python {platform.python_version()}, {platform.platform()}",
            versions,
            f"MPI: {world.library}, {_CUDA_AWARE[world.cuda_aware]}",
            f"launcher: {_launcher()}; {launched_size()} processes started, {world.size} ranks see "
            "each other",
            *(node_line(host, world.hosts, ranks) for host in dict.fromkeys(world.hosts)),
            f"products of bytes on rank 0: {measured()}; weights times bytes: {_levels()}",
            f"compiled local training on rank 0: {_training()}",
            f"HDF5 {h5py.version.hdf5_version}, parallel: {h5py.get_config().mpi} (not needed)",
            "data sets:",
            *data,
            "",
            *verdict(launched_size(), world.hosts, ranks, missing),
        ]
    )


def verdict(
    started: int, hosts: Sequence[str], ranks: Sequence[Rank], missing: Sequence[str]
) -> list[str]:
    """Whether runs will work here, what slows them down, and the next step; one line each.

    Args:
        started: number of processes that the launcher started.
        hosts: the node of every rank.
        ranks: what every rank sees.
        missing: data sets that are not on this machine.
    """
    if started != len(ranks):
        return [
            f"verdict: NOT READY: {started} processes were started, but only {len(ranks)} of them see "
            "each other, so the launcher and the MPI of mpi4py do not belong together",
            "next: start the ranks with the mpirun beside this Python, or install mpi4py for the MPI "
            "of the launcher",
        ]
    slow = []
    by_host = {host: [r for r, h in zip(ranks, hosts, strict=True) if h == host] for host in hosts}
    for host, own in by_host.items():
        cores = {core for rank in own for core in rank.cores}
        if len(cores) < len(own):
            slow.append(f"{host} has {len(cores)} cores for {len(own)} ranks")
    if any(rank.evolution.startswith("none") for rank in ranks):
        slow.append("the compiled evolution is missing, so NTK methods take longer on CPUs")
    lines = [f"verdict: runs work here{', but ' + '; '.join(slow) if slow else ''}"]
    if missing:
        lines.append(f"  data sets that are not here: {', '.join(missing)}")
    crowded = any(each.endswith("ranks") for each in slow)
    room = len({core for rank in ranks for core in rank.cores})
    count = room if crowded else max(len(ranks), min(4, room))
    lines.append(f"next: mpirun -n {count} {PROGRAM} run quickstart -o first.h5")
    return lines


def node_line(host: str, hosts: Sequence[str], ranks: Sequence[Rank]) -> str:
    """One node in one line: its ranks, their cores and threads, and which rank has which GPU.

    Args:
        host: the node.
        hosts: the node of every rank.
        ranks: what every rank sees.
    """
    numbers = [number for number, name in enumerate(hosts) if name == host]
    on_node = [ranks[number] for number in numbers]
    cores = {core for rank in on_node for core in rank.cores}
    parts = [
        f"  {host}: {len(on_node)} ranks ({_runs(numbers)})",
        f"{_span(len(rank.cores) for rank in on_node)} cores per rank, {len(cores)} in all"
        + (
            ", more ranks than cores: keep compute.threads at 1"
            if len(on_node) > len(cores)
            else ""
        ),
        f"OMP_NUM_THREADS {', '.join(dict.fromkeys(rank.threads for rank in on_node))}",
        f"compiled evolution: {', '.join(dict.fromkeys(rank.evolution for rank in on_node))}",
    ]
    names = sorted({name for rank in on_node for name in rank.gpus})
    if names:
        mapped = (f"{n} -> {ranks[n].device}" for n in numbers)
        seen = _span(len(rank.gpus) for rank in on_node)
        parts.append(f"{seen} GPUs per rank ({', '.join(names)}): {', '.join(mapped)}")
    else:
        parts.append("no GPU")
    return "; ".join(parts)


def _launcher() -> str:
    """The batch system's step, if there is one."""
    job, step = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_STEP_ID")
    return f"Slurm job {job}, step {step}" if job and step else f"Slurm job {job}" if job else "own"


def _runs(numbers: Sequence[int]) -> str:
    """Ascending numbers in the form `0-3, 8`."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def _span(counts: Iterable[int]) -> str:
    """The least and the greatest of `counts` in the form `2` or `1 to 2`."""
    distinct = sorted(set(counts))
    return str(distinct[0]) if len(distinct) == 1 else f"{distinct[0]} to {distinct[-1]}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
