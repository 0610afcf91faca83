"""Whether MPI accepts buffers in the memory of a GPU: what the library says, and what a trial shows.

A library without CUDA support crashes if it gets such a buffer. So the library is asked first, and a
trial message is sent before anything is computed.
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
"""Bytes of a trial message: more than libraries send together with the envelope of a message."""


def says_cuda_aware(mpi: Any) -> bool | None:
    """Whether the MPI library says that it accepts CUDA memory; None if it says nothing about it.

    Open MPI and MPICH have the function `MPIX_Query_cuda_support`. MPI 4.1 has the info key
    `mpi_memory_alloc_kinds`, but a library may list there only the kinds that the user asked for.

    Args:
        mpi: the module `mpi4py.MPI`, initialised.
    """
    # The extension module was linked with the MPI library, so this also finds the library's symbols.
    query = getattr(ctypes.CDLL(mpi.__file__), "MPIX_Query_cuda_support", None)
    if query is not None:
        query.restype = ctypes.c_int
        return bool(query())
    info = mpi.COMM_WORLD.Get_info()
    kinds = info.Get("mpi_memory_alloc_kinds") or ""
    info.Free()
    return True if "cuda" in kinds.replace(":", ",").split(",") else None


def require_cuda_aware(world: World, device: torch.device) -> None:
    """Checks whether MPI accepts memory of `device`, as far as the library says so.

    Raises:
        InputError: if `device` is not a GPU, or the library does not say that it accepts CUDA memory.
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
    """Sends trial messages to the two neighbours in a ring of all ranks; all ranks take part.

    The buffers are on the device, and the call is the one that sends all other messages as well.

    Raises:
        InputError: on every rank, if the bytes that arrived on any rank are not those that were sent.
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
                    f"compute.gpu_aware_mpi: {world.library} says that it accepts CUDA memory, but a "
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
        device: device of this rank.
        gpu_aware: whether MPI shall get buffers in the memory of the GPU.

    Raises:
        InputError: on every rank, if `gpu_aware` is set and MPI on any rank does not support it.
    """
    if gpu_aware:
        world.agree(lambda: require_cuda_aware(world, device))
    way = staging(device, gpu_aware)
    if gpu_aware:
        try_out(world, way)
    return way
