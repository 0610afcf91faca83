"""How messages move between the memory in which a rank computes and the memory that MPI reads and writes.

On a CPU both are the same memory. On a GPU all messages of an exchange are written into one buffer on the
GPU, and one copy moves this buffer to pinned host memory. One copy moves received messages back. Both
copies run on a separate stream, so that received messages need not wait for kernels that still run. An
MPI library with CUDA support gets the buffers on the GPU themselves.

If the host does not wait for a copy, the copy reads and writes memory later. Memory that was allocated on
a stream is safe to use on that stream. If another stream uses it, either the host waits before it frees
the memory, or the allocator is told (`record_stream`). Pinned memory needs neither, because torch keeps
track of the copies from and to it.
"""

from __future__ import annotations

from typing import Protocol

import torch

from mpi_ntkdfl.comm.buffers import host_bytes
from mpi_ntkdfl.runtime.device import on_gpu


class Staging(Protocol):
    """How a rank passes messages to MPI and takes them from it. All buffers are `[bytes]` uint8.

    An exchange calls `space` and writes the messages there. Then it calls `depart`, `room` and `settle`,
    in this order, and starts MPI. When MPI is done it calls `arrive`.
    """

    def space(self, nbytes: int) -> torch.Tensor:
        """Memory on the device to write messages to, not initialised."""

    def depart(self, written: torch.Tensor) -> torch.Tensor:
        """Starts to move the `written` messages; returns the buffer that MPI sends."""

    def room(self, nbytes: int) -> torch.Tensor:
        """Memory for MPI to receive into, not initialised."""

    def settle(self) -> None:
        """Waits until MPI may use the buffers that `depart` and `room` returned."""

    def arrive(self, received: torch.Tensor) -> torch.Tensor:
        """The bytes that MPI `received`, on the device, ready for operations that start from now on."""


class DirectStaging:
    """On a CPU: nothing is copied."""

    def space(self, nbytes: int) -> torch.Tensor:
        """Host memory."""
        return host_bytes(nbytes)

    def depart(self, written: torch.Tensor) -> torch.Tensor:
        """The same memory."""
        return written

    def room(self, nbytes: int) -> torch.Tensor:
        """Host memory."""
        return host_bytes(nbytes)

    def settle(self) -> None:
        """There is nothing to wait for."""

    def arrive(self, received: torch.Tensor) -> torch.Tensor:
        """The same memory."""
        return received


class CopyStream(Protocol):
    """Copies between host and device while the device computes."""

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Host memory that the device accesses without the host, `[nbytes]` uint8."""

    def to_host(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Starts a copy that runs after all earlier operations of the device."""

    def wait(self) -> None:
        """Blocks the host until all copies are done."""

    def to_device(self, source: torch.Tensor) -> torch.Tensor:
        """Starts a copy; later operations of the device wait for it, but the host does not."""


class CudaCopyStream:
    """Copies on a separate CUDA stream. See `CopyStream`."""

    def __init__(self, device: torch.device) -> None:
        """Opens a stream on `device`."""
        self._device, self._copies = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Page-locked memory; torch keeps it and uses it again."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def to_host(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Starts a copy that runs after the kernels that write `source`."""
        self._copies.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copies):
            target.copy_(source, non_blocking=True)
        source.record_stream(self._copies)

    def wait(self) -> None:
        """Waits for an event and not for the stream, so that later copies do not delay it."""
        self._copies.record_event().synchronize()

    def to_device(self, source: torch.Tensor) -> torch.Tensor:
        """Starts a copy into memory of the copying stream.

        Memory of the computing stream would be available only after the kernels of that stream.
        """
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._copies):
            target = torch.empty(source.shape, dtype=source.dtype, device=self._device)
            target.copy_(source, non_blocking=True)
        computing.wait_stream(self._copies)
        target.record_stream(computing)
        return target


class StagedStaging:
    """On a GPU: one copy to pinned host memory, and one back."""

    def __init__(self, device: torch.device, copies: CopyStream) -> None:
        """Stages messages of `device` through `copies`."""
        self._device, self._copies = device, copies

    def space(self, nbytes: int) -> torch.Tensor:
        """Memory of the device."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)

    def depart(self, written: torch.Tensor) -> torch.Tensor:
        """Pinned memory, which a started copy fills."""
        target = self._copies.pinned(len(written))
        self._copies.to_host(written, target)
        return target

    def room(self, nbytes: int) -> torch.Tensor:
        """Pinned memory."""
        return self._copies.pinned(nbytes)

    def settle(self) -> None:
        """Waits for the copy."""
        self._copies.wait()

    def arrive(self, received: torch.Tensor) -> torch.Tensor:
        """Memory on the device, which a started copy fills."""
        return self._copies.to_device(received)


class GpuAwareStaging:
    """On a GPU with an MPI that accepts its memory: nothing is copied."""

    def __init__(self, device: torch.device) -> None:
        """Messages stay on `device`."""
        self._device = device

    def space(self, nbytes: int) -> torch.Tensor:
        """Memory of the device."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)

    def depart(self, written: torch.Tensor) -> torch.Tensor:
        """The same memory."""
        return written

    def room(self, nbytes: int) -> torch.Tensor:
        """Memory of the device; kernels that still run may use the old content."""
        return self.space(nbytes)

    def settle(self) -> None:
        """Waits for all kernels, because MPI does not know torch's streams."""
        torch.cuda.current_stream(self._device).synchronize()

    def arrive(self, received: torch.Tensor) -> torch.Tensor:
        """The same memory."""
        return received


def staging(device: torch.device, gpu_aware: bool) -> Staging:
    """The staging of a rank that computes on `device`; `gpu_aware` says whether MPI takes GPU memory."""
    if not on_gpu(device):
        return DirectStaging()
    return GpuAwareStaging(device) if gpu_aware else StagedStaging(device, CudaCopyStream(device))
