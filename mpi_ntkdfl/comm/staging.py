"""How messages get from where a rank computes to where MPI takes them, and back.

On a CPU they are written and read where MPI finds them. On a GPU all messages of an exchange are written
into one buffer there, which crosses to pinned host memory in one copy, and what arrives crosses back in
one; both on a stream of their own, so that arriving messages need not wait for kernels under way. An MPI
that knows CUDA takes buffers of the GPU as they are.

A copy that the host does not wait for reads and writes memory later. Memory allocated on a stream is safe
for whatever that stream does; where another one touches it, either the host waits before it lets go of
it, or the allocator is told (`record_stream`). Pinned memory needs neither: torch notes its copies.
"""

from __future__ import annotations

from typing import Protocol

import torch

from mpi_ntkdfl.comm.buffers import host_bytes
from mpi_ntkdfl.runtime.device import on_gpu


class Staging(Protocol):
    """A rank's way of handing messages to MPI. All buffers are `[bytes]` uint8.

    An exchange calls `space`, writes the messages there, and calls `depart`, `room`, `settle` in this
    order before MPI starts; and `arrive` once MPI is done.
    """

    def space(self, nbytes: int) -> torch.Tensor:
        """Memory to write messages to, not initialised, on the device."""
        ...

    def depart(self, written: torch.Tensor) -> torch.Tensor:
        """Starts moving what was `written`; returns what MPI will be handed."""
        ...

    def room(self, nbytes: int) -> torch.Tensor:
        """Memory for MPI to receive into, not initialised."""
        ...

    def settle(self) -> None:
        """Waits until MPI may touch what `depart` and `room` returned."""
        ...

    def arrive(self, received: torch.Tensor) -> torch.Tensor:
        """What MPI `received`, on the device; whatever the device is asked from now on sees it."""
        ...


class DirectStaging:
    """On a CPU: no copy at all."""

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
        """Nothing to wait for."""

    def arrive(self, received: torch.Tensor) -> torch.Tensor:
        """The same memory."""
        return received


class CopyStream(Protocol):
    """Copies between host and device beside what the device computes."""

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Host memory that the device reaches without the host's help, `[nbytes]` uint8."""
        ...

    def to_host(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Starts a copy, after all that the device was asked before."""
        ...

    def wait(self) -> None:
        """Blocks the host until all copies are done."""
        ...

    def to_device(self, source: torch.Tensor) -> torch.Tensor:
        """Starts a copy; whatever the device is asked from now on waits for it, the host does not."""
        ...


class CudaCopyStream:
    """Copies on a CUDA stream of their own. See `CopyStream`."""

    def __init__(self, device: torch.device) -> None:
        """Opens a stream on `device`."""
        self._device, self._copies = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Page-locked memory, which torch keeps and lends again."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def to_host(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """After the kernels that write `source`."""
        self._copies.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copies):
            target.copy_(source, non_blocking=True)
        source.record_stream(self._copies)

    def wait(self) -> None:
        """An event's wait, so that later copies would not delay it."""
        self._copies.record_event().synchronize()

    def to_device(self, source: torch.Tensor) -> torch.Tensor:
        """Into memory of the copying stream: that of the computing one would wait for its kernels."""
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
        """Pinned memory, on its way to being filled."""
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
        """A copy on the device, under way."""
        return self._copies.to_device(received)


class GpuAwareStaging:
    """On a GPU with an MPI that takes its memory: no copy at all."""

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
        """Memory of the device; kernels under way may still use what lay there before."""
        return self.space(nbytes)

    def settle(self) -> None:
        """Waits for all kernels: MPI knows nothing of torch's streams."""
        torch.cuda.current_stream(self._device).synchronize()

    def arrive(self, received: torch.Tensor) -> torch.Tensor:
        """The same memory."""
        return received


def staging(device: torch.device, gpu_aware: bool) -> Staging:
    """The way for a rank that computes on `device`; `gpu_aware`: if MPI takes a GPU's memory."""
    if not on_gpu(device):
        return DirectStaging()
    return GpuAwareStaging(device) if gpu_aware else StagedStaging(device, CudaCopyStream(device))
