"""The content of a lock file: its holder and the holder's heartbeat. `lock` explains locks."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from mpi_ntkdfl.runtime.errors import InputError

_FIRST_BEAT = 10**9
"""The first heartbeat. It has ten digits, so that the text of a lock file keeps its length."""

_LONGEST = 10_000
"""Number of bytes of a lock file that are read at most; a real one has about 200."""


@dataclass(frozen=True)
class Claim:
    """The content of a lock file.

    Attributes:
        host: the holder's host.
        process: the holder's process number on its host.
        place: kernel and file system as the holder sees them. For a process that sees the same ones,
            the kernel's lock says whether the holder still runs.
        token: a text that no other holder has.
        beat: the heartbeat, a number that grows.
        writer: the program.
    """

    host: str
    process: int
    place: str
    token: str
    beat: int = _FIRST_BEAT
    writer: str = "mpi_ntkdfl"

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"

    def to_json(self) -> str:
        """The claim as a lock file stores it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: bytes) -> Claim:
        """Reads what `to_json` wrote.

        Raises:
            ValueError, TypeError, RecursionError: if the text is something else.
        """
        claim = cls(**json.loads(text.decode()))
        kinds = {"int": int, "str": str}
        right = all(type(getattr(claim, f.name)) is kinds[str(f.type)] for f in fields(cls))
        if not right or claim.writer != cls.writer:
            raise ValueError("not a claim of this program")
        return claim


def open_lock(path: Path, flags: int) -> int:
    """Opens a lock file; links are not followed.

    Raises:
        InputError: if the name belongs to something that is not a lock file of a run.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):
            raise _not_ours(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_ours(path)
    return descriptor


def read(path: Path) -> Claim | None:
    """Reads a lock file; returns None for an empty one, which a full disk can leave.

    Raises:
        InputError: if it is not a lock file of a run.
        OSError: if it cannot be read.
    """
    descriptor = open_lock(path, os.O_RDONLY)
    try:
        content = os.read(descriptor, _LONGEST)
    finally:
        os.close(descriptor)
    if not content.strip(b"\0"):
        return None
    try:
        return Claim.from_json(content)
    except (ValueError, TypeError, RecursionError) as error:
        raise _not_ours(path) from error


def _not_ours(path: Path) -> InputError:
    return InputError(f"{path} is not a lock file that a run made; remove it, or choose another -o")


def write(descriptor: int, claim: Claim) -> None:
    """Writes a claim to an open lock file."""
    os.pwrite(descriptor, claim.to_json().encode(), 0)


def place(descriptor: int) -> str:
    """Host, kernel and file system of an open file. If equal, the kernel's lock can be relied on."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = "unknown"
    return f"{socket.gethostname()} {boot} {os.fstat(descriptor).st_dev}"
