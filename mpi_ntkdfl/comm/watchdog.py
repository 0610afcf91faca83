"""A watchdog: no rank waits forever for a rank that is stopped, dead or silent.

In every rank a thread sends small packets, called beats, by UDP to a thread of rank 0, which answers
them. A rank sends at most a few bytes per second. Neither MPI nor the main thread takes part. So a rank
that computes, reads or waits for long still sends beats, but a stopped process or a lost node does not.
Rank 0 ends the job when a rank is silent for `patience` seconds; the other ranks end when rank 0 is
silent. A beat also says for how long its rank has made no progress. If no rank has made progress for
`patience` seconds, the job ends as well.

All times are differences on the clock of one host. A host that was suspended as a whole starts to count
anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from mpi_ntkdfl.comm.launcher import end_launcher_later
from mpi_ntkdfl.runtime.stopping import SILENT, STARTED, UNFINISHED, end_now

_PACKET = struct.Struct("<16sBHIqd?")
"""Token, kind, index of the address, rank, round, seconds without progress, whether the rank waits."""

_BEAT, _ANSWER, _END = range(3)

_TOKEN = 16
_HELLO = 5.0
"""Seconds in which a rank must reach rank 0 at the start; otherwise it is not watched."""

_SHORT = 30.0
"""Seconds of silence after which the job ends once `output.time_limit` is over."""

_LAUNCHER_ENDS = 10.0
"""Seconds in which the launcher should notice that all ranks that it can reach have ended."""

_SIOCGIFADDR = 0x8915
_COMM = str(Path(__file__).parent)

_steps = 0


def mark() -> None:
    """Notes that the main thread has started another message; costs some ten nanoseconds."""
    global _steps
    _steps += 1


@dataclass(frozen=True)
class Meeting:
    """Where rank 0 listens.

    Attributes:
        token: random bytes of this job; packets without them are dropped.
        host: name of rank 0's host.
        addresses: IPv4 addresses of that host.
        port: port of the socket.
    """

    token: bytes
    host: str
    addresses: tuple[str, ...]
    port: int

    def candidates(self) -> list[tuple[str, int]]:
        """Addresses at which another host may reach rank 0, the most likely ones first."""
        resolved: list[str] = []
        with contextlib.suppress(OSError):
            resolved = [
                str(each[4][0]) for each in socket.getaddrinfo(self.host, None, socket.AF_INET)
            ]
        addresses = list(dict.fromkeys([*self.addresses, *resolved]))
        addresses.sort(key=lambda address: address.startswith("127."))  # a loopback comes last
        return [(address, self.port) for address in addresses]


class Watched(Protocol):
    """The attributes of a world that the watchdog uses."""

    rank: int
    hosts: tuple[str, ...]
    round: int


class _Progress:
    """Measures for how long the main thread has made no progress: neither moved on nor computed."""

    def __init__(self) -> None:
        self._position: object = None
        self._since = self._looked = time.monotonic()
        self._computed = 0.0
        self._clock = time.pthread_getcpuclockid(threading.main_thread().ident or 0)

    def look(self, done: int) -> tuple[float, bool]:
        """Seconds without progress, and whether the main thread waits in a call of this folder."""
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        waits = frame is not None and frame.f_code.co_filename.startswith(_COMM)
        place = (frame.f_code, frame.f_lasti) if frame is not None else ()
        position = (*place, _steps, done)
        now = time.monotonic()
        computed = time.clock_gettime(self._clock)
        busy = computed - self._computed > 0.01 * (now - self._looked)
        # Waiting in MPI also takes processor time, so there only the position counts.
        if position != self._position or (busy and not waits) or _debugged(frame):
            self._since = now
        self._position, self._computed, self._looked = position, computed, now
        return now - self._since, waits


def _debugged(frame: FrameType | None) -> bool:
    """Whether the main thread is in Python's debugger."""
    while frame is not None:
        if frame.f_globals.get("__name__") == "pdb":
            return True
        frame = frame.f_back
    return False


@dataclass
class _Peer:
    """What rank 0 knows about another rank."""

    heard: float
    address: tuple[str, int] | None = None
    round: int = 0
    idle: float = 0.0
    waits: bool = False


class Watchdog:
    """The thread of one rank; `Leader` and `Follower` define what it does."""

    def __init__(self, world: Watched, patience: float, limit: float | None) -> None:
        """Opens a socket; `start` starts the thread.

        Args:
            world: the ranks.
            patience: seconds of silence that end the job; may be infinite.
            limit: seconds from the program's start after which `_SHORT` seconds of silence are enough;
                None for never.
        """
        self._world, self._patience = world, patience
        self._over = math.inf if limit is None else STARTED + limit
        ranks = len(world.hosts)
        self.interval = max(min(patience / 20, 10.0), ranks / 1000, 0.05)
        self._progress = _Progress()
        self._ended = threading.Event()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def start(self) -> None:
        """Starts the thread."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def close(self) -> None:
        """Ends the thread."""
        self._ended.set()

    def _watch(self) -> None:
        looked = time.monotonic()
        with self.socket:
            while not self._ended.is_set():
                self._talk(looked + self.interval)
                now = time.monotonic()
                if now - looked > 4 * self.interval + 1:  # this process itself was stopped
                    self._forgive(now)
                looked = now
                over = now > self._over
                self._judge(now, min(_SHORT, self._patience) if over else self._patience, over)

    def _talk(self, until: float) -> None:
        raise NotImplementedError

    def _forgive(self, now: float) -> None:
        raise NotImplementedError

    def _judge(self, now: float, patience: float, over: bool) -> None:
        raise NotImplementedError

    def _receive(self, until: float) -> tuple[tuple[Any, ...], tuple[str, int]] | None:
        """The next packet of this job and its sender; None if none came in time."""
        while (left := until - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                data, sender = self.socket.recvfrom(_PACKET.size)
            except OSError:  # no packet in time, or a host answered that it does not listen
                if until - time.monotonic() > 0:
                    time.sleep(min(0.01, self.interval))
                continue
            if data[:_TOKEN] == self.token and len(data) == _PACKET.size:
                return _PACKET.unpack_from(data), sender
        return None

    token = b""

    def greet(self) -> bool:
        """Checks whether rank 0 answers."""
        return True

    def _named(self, rank: int) -> str:
        return f"rank {rank} on {self._world.hosts[rank]}"


class Leader(Watchdog):
    """The watchdog of rank 0: it receives the beats of all ranks and decides whether the job ends."""

    def __init__(self, world: Watched, patience: float, limit: float | None) -> None:
        """Opens the socket; see `Watchdog`."""
        super().__init__(world, patience, limit)
        self.socket.bind(("", 0))
        self.token = secrets.token_bytes(_TOKEN)
        now = time.monotonic()
        self._peers = {rank: _Peer(now) for rank in range(1, len(world.hosts))}
        self._watched: set[int] = set()

    def meeting(self) -> Meeting:
        """Token and addresses that the followers need."""
        port = self.socket.getsockname()[1]
        return Meeting(self.token, socket.gethostname(), tuple(_own_addresses()), port)

    def watch_over(self, ranks: Iterable[int]) -> None:
        """From now on watches these ranks, which have reached rank 0."""
        self._forgive(time.monotonic())
        self._watched = set(ranks)

    def _talk(self, until: float) -> None:
        while (packet := self._receive(until)) is not None:
            (_, kind, number, rank, done, idle, waits), sender = packet
            if kind == _BEAT and rank in self._peers:
                self._peers[rank] = _Peer(time.monotonic(), sender, done, idle, bool(waits))
                self._send(_ANSWER, number, sender)

    def _send(self, kind: int, number: int, receiver: tuple[str, int]) -> None:
        packet = _PACKET.pack(self.token, kind, number, 0, self._world.round, 0.0, False)
        with contextlib.suppress(OSError):
            self.socket.sendto(packet, receiver)

    def _forgive(self, now: float) -> None:
        for peer in self._peers.values():
            peer.heard, peer.idle = now, 0.0

    def _judge(self, now: float, patience: float, over: bool) -> None:
        idle, waits = self._progress.look(self._world.round)
        peers = {rank: self._peers[rank] for rank in sorted(self._watched)}
        silent = [rank for rank, peer in peers.items() if now - peer.heard > patience]
        stuck = len(peers) == len(self._peers) and all(
            seconds > patience for seconds in (idle, *(peer.idle for peer in peers.values()))
        )
        if not silent and not stuck:
            return
        if silent:
            names = ", ".join(self._named(rank) for rank in silent[:5])
            more = f" and {len(silent) - 5} others" if len(silent) > 5 else ""
            what = f"nothing was heard of {names}{more} for {patience:.0f} s"
        else:
            still = [rank for rank, peer in peers.items() if not peer.waits]
            still = [*([] if waits else [0]), *still]
            names = ", ".join(self._named(rank) for rank in still[:5])
            why = f"; {names} neither computes nor waits for others" if still else ""
            what = f"no rank has made progress for {patience:.0f} s{why}"
        code = UNFINISHED if over else SILENT
        for _ in range(3):
            for peer in peers.values():
                if peer.address is not None:
                    self._send(_END, code, peer.address)
            time.sleep(0.05)
        end_launcher_later(_LAUNCHER_ENDS)
        end_now(code, _ending(what, self._world.round, over))


class Follower(Watchdog):
    """The watchdog of every other rank: it sends beats to rank 0 and checks that rank 0 answers."""

    def __init__(
        self, world: Watched, patience: float, limit: float | None, meeting: Meeting
    ) -> None:
        """See `Watchdog`; `meeting` comes from rank 0."""
        super().__init__(world, patience, limit)
        self.token = meeting.token
        self._candidates = meeting.candidates()
        self._number: int | None = None
        self._heard = time.monotonic()

    def greet(self) -> bool:
        """Looks for an address at which rank 0 answers; returns whether there is one."""
        deadline = time.monotonic() + _HELLO
        while self._number is None and time.monotonic() < deadline:
            for number in range(len(self._candidates)):
                self._beat(number)
            packet = self._receive(time.monotonic() + 0.2)
            if packet is not None and packet[0][1] == _ANSWER:
                self._number = int(packet[0][2])
        return self._number is not None

    def _beat(self, number: int) -> None:
        idle, waits = self._progress.look(self._world.round)
        packet = _PACKET.pack(
            self.token, _BEAT, number, self._world.rank, self._world.round, idle, waits
        )
        with contextlib.suppress(OSError):
            self.socket.sendto(packet, self._candidates[number])

    def _talk(self, until: float) -> None:
        assert self._number is not None
        self._beat(self._number)
        while (packet := self._receive(until)) is not None:
            _, kind, number, *_ = packet[0]
            if kind == _END:
                end_now(int(number), "")
            self._heard = time.monotonic()

    def _forgive(self, now: float) -> None:
        self._heard = now

    def _judge(self, now: float, patience: float, over: bool) -> None:
        # Rank 0 gets the time to decide first.
        if now - self._heard > patience + 2 * self.interval:
            what = f"nothing was heard of {self._named(0)} for {patience:.0f} s"
            time.sleep(min(1.0, 0.02 * self._world.rank))
            end_now(UNFINISHED if over else SILENT, _ending(what, self._world.round, over))


def _ending(what: str, done: int, over: bool) -> str:
    limit = "output.time_limit is over and " if over else ""
    return (
        f"error: {limit}{what}, in round {done}; all ranks end, and --resume goes on from the last "
        "checkpoint (compute.timeout sets how long ranks wait)"
    )


def _own_addresses() -> list[str]:
    """IPv4 addresses of this host's network interfaces."""
    addresses = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):  # the interface has no address
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
                addresses.append(socket.inet_ntoa(answer[20:24]))
    return addresses
