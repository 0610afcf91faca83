"""One run at a time on the same outputs, on one host and on several.

The kernel's lock on the lock file decides between runs of one host, and on most network file systems
between hosts. Some network file systems grant such a lock on every host, or on none. So the file also
names who holds it, and the holder counts a number in it up about once per second, its heartbeat. A run
that gets the kernel's lock on a file that another place named looks for a few seconds whether the number
changes. No clock is compared with another host's.

Before a run replaces one of its files it looks whether the lock file still names it (`require_own`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mpi_ntkdfl.runtime.errors import InputError, SimulationError
from mpi_ntkdfl.runtime.stopping import cleaning
from mpi_ntkdfl.storage.outputs import Outputs, unwritable

_log = logging.getLogger(__name__)

_PATIENCE = 1.0
"""Seconds a starting run waits for the lock: `show` holds it for a moment to see who else does."""

_BEAT = 1.0
"""Seconds between heartbeats."""

_WATCH = 8.0
"""Seconds without a heartbeat after which a holder elsewhere counts as gone."""

_FIRST_BEAT = 10**9
"""Heartbeats count from here, so that the text of a lock keeps its length."""

_LONGEST = 10_000
"""Bytes of a lock that are read; a real one has about 200."""


class InUse(InputError):
    """Another process writes these outputs."""


class Claim(BaseModel):
    """What a lock file says.

    Attributes:
        writer: the program.
        host: of the holder.
        process: of the holder, on its host.
        place: kernel and file system as the holder sees them; where they are equal the kernel's lock
            tells whether the holder still runs.
        token: of this holder only.
        beat: the heartbeat, a number that grows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    writer: Literal["mpi_ntkdfl"] = "mpi_ntkdfl"
    host: str
    process: int
    place: str
    token: str
    beat: int = _FIRST_BEAT

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


class _Lock:
    """A lock that this process holds."""

    def __init__(self, outputs: Outputs, descriptor: int) -> None:
        """Takes the lock file, open and locked as far as the file system does that; claims it."""
        self._outputs, self._descriptor = outputs, descriptor
        self.claim = Claim(
            host=socket.gethostname(),
            process=os.getpid(),
            place=_place(descriptor),
            token=uuid.uuid4().hex[:12],
        )
        with contextlib.suppress(OSError):  # a full disk is reported where it matters
            os.ftruncate(descriptor, 0)
            _write(descriptor, self.claim)
        self._ended = threading.Event()
        # A full disk leaves an empty file, which cannot tell whose it is; the kernel's lock still holds.
        self._told = _read(outputs.lock) == self.claim

    def start(self) -> None:
        """Begins to beat."""
        threading.Thread(target=self._beat, name="lock", daemon=True).start()

    def files(self) -> tuple[Path, ...]:
        """What it protects."""
        return self._outputs.files

    def own(self) -> bool:
        """Whether the lock file still names this holder, looked up anew.

        Raises:
            OSError: if it cannot be read.
        """
        if not self._told:
            return True
        with contextlib.suppress(FileNotFoundError, InputError):
            claim = _read(self._outputs.lock)
            return claim is not None and claim.token == self.claim.token
        return False

    def require(self) -> None:
        """Makes sure that the outputs are still this run's.

        Raises:
            SimulationError: if another run has taken them over.
            OSError: if the lock file cannot be read.
        """
        if not self.own():
            raise SimulationError(
                f"{self._outputs.record} is no longer this run's: its lock {self._outputs.lock} was "
                f"removed, or another run has taken it over ({holder(self._outputs) or 'unknown'}); "
                "this run stops and leaves the files as they are"
            )

    def _beat(self) -> None:
        claim = self.claim
        while not self._ended.wait(_BEAT):
            claim = claim.model_copy(update={"beat": claim.beat + 1})
            # Opened anew each time: network file systems show other hosts what is closed.
            with contextlib.suppress(OSError):
                if not self.own():
                    return
                descriptor = os.open(self._outputs.lock, os.O_WRONLY | os.O_NOFOLLOW)
                try:
                    _write(descriptor, claim)
                finally:
                    os.close(descriptor)

    def remove(self) -> None:
        """Removes the lock file if it is still this holder's."""
        self._ended.set()
        with contextlib.suppress(OSError):
            if self.own():
                self._outputs.lock.unlink(missing_ok=True)

    def release(self) -> None:
        """Gives the lock back."""
        # Removed while it is still held: who waits for it sees that its name is gone or another's.
        self.remove()
        os.close(self._descriptor)


_held: dict[Path, _Lock] = {}
"""By the protected file. Locks belong to the process, as the kernel's locks do."""


def require_own(path: Path) -> None:
    """Makes sure that `path`, a file of a run, is still protected by the lock that this process took.

    Raises:
        SimulationError: if another run has taken the outputs over.
        OSError: if the lock cannot be read.
    """
    if path in _held:
        _held[path].require()


def token(path: Path) -> str:
    """What sets this holder's files apart from those of others; empty if `path` is not locked."""
    return _held[path].claim.token if path in _held else ""


@contextlib.contextmanager
def locked(outputs: Outputs) -> Iterator[bool]:
    """Holds the lock of `outputs`; the kernel gives it back however the process ends.

    Yields whether the holder before was killed: its lock was still there.

    On a file system without locks the run goes on with a warning, and heartbeats keep runs apart.
    Missing folders are made, and removed again if nothing was written to them.

    Raises:
        InUse: if another run holds it.
        InputError: if the folder cannot be written to, or the lock's name is taken by something else.
    """
    with contextlib.ExitStack() as folder:
        try:
            folder.enter_context(_made(outputs.record.parent))
            descriptor, left = _acquire(outputs)
            taken = _Lock(outputs, descriptor)
        except OSError as error:
            raise InputError(unwritable(outputs.record, error)) from error
        _held.update(dict.fromkeys(taken.files(), taken))
        folder.enter_context(cleaning(taken.remove))
        try:
            taken.start()
            yield left
        finally:
            for file in taken.files():
                _held.pop(file, None)
            taken.release()


def holder(outputs: Outputs) -> str | None:
    """Who is writing these outputs, as `process 123 on host`, or None if nobody is.

    Takes some seconds if the lock names another host. What is no lock of a run names nobody.
    """
    try:
        descriptor = _open(outputs.lock, os.O_RDONLY)
    except (OSError, InputError):
        return None
    claim = None
    try:
        claim = _read(outputs.lock)
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return str(claim) if claim else "unknown"
    except InputError:
        return None
    except OSError:  # no locks here, or the file is gone
        return str(claim) if claim and _beats(outputs.lock, claim) else None
    else:
        decided = claim is None or claim.place == _place(descriptor)
        return str(claim) if claim and not decided and _beats(outputs.lock, claim) else None
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------ pieces


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes a folder and those above it; removes those again in which nothing stayed."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]

    def remove() -> None:
        with contextlib.suppress(OSError):
            for each in missing:
                each.rmdir()

    try:
        with cleaning(remove):
            if missing:
                folder.mkdir(parents=True, exist_ok=True)
            yield
    finally:
        remove()


def _acquire(outputs: Outputs) -> tuple[int, bool]:
    """Opens the lock file and gets it to oneself; its descriptor, and whether one was left there."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        left = outputs.lock.exists()
        descriptor = _open(outputs.lock, os.O_RDWR | os.O_CREAT)
        try:
            kernel = _flock(descriptor, outputs)
            if kernel and not _still_named(descriptor, outputs.lock):
                os.close(descriptor)  # its holder removed it meanwhile
                continue
            claim = _read(outputs.lock)
            decided = kernel and claim is not None and claim.place == _place(descriptor)
            if claim is not None and not decided and _goes_on(outputs, claim):
                raise _in_use(outputs, claim)
        except (BlockingIOError, FileNotFoundError):
            os.close(descriptor)
            if time.monotonic() > deadline:
                raise _in_use(outputs, holder(outputs)) from None
            time.sleep(0.05)
        except BaseException:
            os.close(descriptor)
            raise
        else:
            return descriptor, left


def _flock(descriptor: int, outputs: Outputs) -> bool:
    """Takes the kernel's lock; False where the file system has none.

    Raises:
        BlockingIOError: if another process has it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        _log.warning("%s cannot be locked (%s): two runs must not share it", outputs.record, reason)
        return False
    return True


def _goes_on(outputs: Outputs, claim: Claim) -> bool:
    """Whether the holder whose kernel's lock is free, or cannot be asked for, still runs."""
    _log.warning(
        "%s was locked by %s: looking for %.0f s whether that run still goes on",
        outputs.record,
        claim,
        _WATCH,
    )
    return _beats(outputs.lock, claim)


def _in_use(outputs: Outputs, who: Claim | str | None) -> InUse:
    return InUse(
        f"another run is writing {outputs.record} ({who or 'unknown'}); wait for its end, or choose "
        "another -o"
    )


def _beats(path: Path, claim: Claim) -> bool:
    """Whether the lock file changes within some seconds; False if it is removed."""
    deadline = time.monotonic() + _WATCH
    while time.monotonic() < deadline:
        time.sleep(_BEAT / 4)
        try:
            now = _read(path)
        except (FileNotFoundError, InputError):
            return False
        if now is not None and now != claim:
            return True
    return False


def _open(path: Path, flags: int) -> int:
    """Opens a lock file; never through a link.

    Raises:
        InputError: if the name is taken by something that no run made.
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


def _read(path: Path) -> Claim | None:
    """What a lock file says, read anew; None for an empty one, as a full disk leaves it.

    Raises:
        InputError: if it is no lock of a run.
        OSError: if it cannot be read.
    """
    descriptor = _open(path, os.O_RDONLY)
    try:
        content = os.read(descriptor, _LONGEST)
    finally:
        os.close(descriptor)
    if not content.strip(b"\0"):
        return None
    try:
        return Claim.model_validate_json(content)
    except ValidationError as error:
        raise _not_ours(path) from error


def _not_ours(path: Path) -> InputError:
    return InputError(f"{path} is no lock that a run made; remove it, or choose another -o")


def _write(descriptor: int, claim: Claim) -> None:
    os.pwrite(descriptor, claim.model_dump_json().encode(), 0)


def _place(descriptor: int) -> str:
    """Host, kernel and file system of an open file; equal where the kernel's lock tells enough."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = "unknown"
    return f"{socket.gethostname()} {boot} {os.fstat(descriptor).st_dev}"


def _still_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False
