"""Whether MPI takes the memory of a GPU: what the library says, and whether it does.

A library without CUDA support that is handed such memory crashes, so it is asked first and tried
before anything is computed.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from mpi_ntkdfl.comm.staging import Staging, staging
from mpi_ntkdfl.comm.world import World
from mpi_ntkdfl.runtime.device import on_gpu
from mpi_ntkdfl.runtime.errors import InputError

_TRIAL = 2**20
"""Bytes of the trial's messages: more than libraries send along with a message's envelope."""


def says_cuda_aware(mpi: Any) -> bool | None:
    """Whether the MPI library says that it takes CUDA memory; None if it says nothing about it.

    Open MPI and MPICH answer `MPIX_Query_cuda_support`. MPI 4.1 has the info key
    `mpi_memory_alloc_kinds`, but a library may keep quiet there about what nobody asked for.

    Args:
        mpi: the module `mpi4py.MPI`, initialised.
    """
    # Symbols of libraries that the extension module was linked with are found through it.
    query = getattr(ctypes.CDLL(mpi.__file__), "MPIX_Query_cuda_support", None)
    if query is not None:
        query.restype = ctypes.c_int
        return bool(query())
    info = mpi.COMM_WORLD.Get_info()
    kinds = info.Get("mpi_memory_alloc_kinds") or ""
    info.Free()
    return True if "cuda" in kinds.replace(":", ",").split(",") else None


def require_cuda_aware(world: World, device: torch.device) -> None:
    """Checks that MPI can be handed memory of `device`, as far as that can be asked.

    Raises:
        InputError: if `device` is no GPU, or the library does not say that it takes CUDA memory.
    """
    if not on_gpu(device):
        raise InputError(
            "compute.gpu_aware_mpi hands MPI memory of a CUDA device, but this rank computes on "
            f"{device}: use compute.gpu_aware_mpi=false, or compute.device=cuda where there is one"
        )
    if not world.cuda_aware:
        says = "does not say so" if world.cuda_aware is None else "says it is not"
        raise InputError(
            "compute.gpu_aware_mpi needs an MPI library built with CUDA support; "
            f"{world.library} {says}: use false (host staging), "
            "or load a CUDA-aware MPI module"
        )


def try_out(world: World, way: Staging) -> None:
    """Sends buffers of the device round, by the very call that messages take; all ranks take part.

    Raises:
        InputError: on every rank, if other bytes arrived on any.
    """
    others = sorted({(world.rank + step) % world.size for step in (-1, 1)} - {world.rank})
    send = torch.cat([way.space(0), *(_pattern(world.rank, other, way) for other in others)])
    sizes = (_TRIAL,) * len(others)
    channel = world.channel(others)
    leaving, room = way.depart(send), way.room(sum(sizes))
    way.settle()
    received = way.arrive(channel.start(leaving, sizes, sizes, room).wait())
    channel.close()

    def compare() -> None:
        for part, other in zip(received.view(-1, _TRIAL), others, strict=True):
            if not torch.equal(part, _pattern(other, world.rank, way)):
                raise InputError(
                    f"compute.gpu_aware_mpi: {world.library} says that it takes CUDA memory, but a "
                    f"trial message from rank {other} arrived changed: use false (host staging)"
                )

    world.agree(compare)


def _pattern(source: int, target: int, way: Staging) -> torch.Tensor:
    """A trial message `[bytes]` uint8, different for each pair of neighbours."""
    numbers = torch.arange(_TRIAL, device=way.space(0).device)
    return (numbers * (source + 1) + target).remainder_(251).to(torch.uint8)


def agreed_staging(world: World, device: torch.device, gpu_aware: bool) -> Staging:
    """How messages of this rank travel; all ranks take part.

    Args:
        world: the ranks.
        device: of this rank.
        gpu_aware: whether MPI is to take memory of the GPU.

    Raises:
        InputError: on every rank, if it is to and cannot on any.
    """
    if gpu_aware:
        world.agree(lambda: require_cuda_aware(world, device))
    way = staging(device, gpu_aware)
    if gpu_aware:
        try_out(world, way)
    return way
