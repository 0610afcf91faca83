"""Locks: at most one run writes the same outputs, on one host and on several.

The kernel's lock on the lock file decides between runs of one host, and on most network file systems
between hosts. Some network file systems grant such a lock on every host, or on none. The lock file
therefore also names its holder, and the holder increases a number in it about once per second, its
heartbeat. A run that gets the kernel's lock on a file that names a holder on another host or file system
watches for a few seconds whether the number changes. Clocks of different hosts are never compared.

Before a run replaces one of its files, it checks that the lock file still names it (`require_own`).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mpi_ntkdfl.runtime.errors import InputError, SimulationError
from mpi_ntkdfl.runtime.stopping import cleaning
from mpi_ntkdfl.storage import lock_file
from mpi_ntkdfl.storage.outputs import Outputs, unwritable

_log = logging.getLogger(__name__)

_PATIENCE = 1.0
"""Seconds for which a new run waits for the lock, because `show` holds it for a moment to look at it."""

_BEAT = 1.0
"""Seconds between heartbeats."""

_WATCH = 8.0
"""Seconds without a heartbeat after which a holder on another host counts as ended."""


class InUse(InputError):
    """Another process writes these outputs."""


class _Lock:
    """A lock that this process holds."""

    def __init__(self, outputs: Outputs, descriptor: int) -> None:
        """Writes this process's claim into a lock file that is open and locked."""
        self._outputs, self._descriptor = outputs, descriptor
        self.claim = lock_file.Claim(
            host=socket.gethostname(),
            process=os.getpid(),
            place=lock_file.place(descriptor),
            token=uuid.uuid4().hex[:12],
        )
        with contextlib.suppress(
            OSError
        ):  # a full disk is reported when files of the run are written
            os.ftruncate(descriptor, 0)
            lock_file.write(descriptor, self.claim)
        self._ended = threading.Event()
        # On a full disk the file stays empty and names no holder. The kernel's lock protects it anyway.
        self._claimed = lock_file.read(outputs.lock) == self.claim

    def start(self) -> None:
        """Starts the heartbeat."""
        threading.Thread(target=self._beat, name="lock", daemon=True).start()

    def files(self) -> tuple[Path, ...]:
        """The files that it protects."""
        return self._outputs.files

    def own(self) -> bool:
        """Whether the lock file still names this holder; the file is read again.

        Raises:
            OSError: if it cannot be read.
        """
        if not self._claimed:
            return True
        with contextlib.suppress(FileNotFoundError, InputError):
            claim = lock_file.read(self._outputs.lock)
            return claim is not None and claim.token == self.claim.token
        return False

    def require(self) -> None:
        """Checks that the outputs still belong to this run.

        Raises:
            SimulationError: if they do not.
            OSError: if the lock file cannot be read.
        """
        if not self.own():
            raise SimulationError(
                f"{self._outputs.record} no longer belongs to this run: its lock {self._outputs.lock} "
                f"was removed, or another run has taken it over ({holder(self._outputs) or 'unknown'}); "
                "this run stops and leaves the files as they are"
            )

    def _beat(self) -> None:
        claim = self.claim
        while not self._ended.wait(_BEAT):
            claim = replace(claim, beat=claim.beat + 1)
            # The file is opened and closed each time, because network file systems show a change to
            # other hosts only after the file was closed.
            with contextlib.suppress(OSError):
                if not self.own():
                    return
                descriptor = os.open(self._outputs.lock, os.O_WRONLY | os.O_NOFOLLOW)
                try:
                    lock_file.write(descriptor, claim)
                finally:
                    os.close(descriptor)

    def remove(self) -> None:
        """Removes the lock file if it is still this holder's."""
        self._ended.set()
        with contextlib.suppress(OSError):
            if self.own():
                self._outputs.lock.unlink(missing_ok=True)

    def release(self) -> None:
        """Removes the lock file and releases the kernel's lock."""
        # In this order: a process that waits for the kernel's lock then sees that the file is gone.
        self.remove()
        os.close(self._descriptor)


_held: dict[Path, _Lock] = {}
"""The locks that this process holds, by protected file."""


def require_own(path: Path) -> None:
    """Checks that the lock that this process took still protects `path`, a file of a run.

    Raises:
        SimulationError: if it does not, because another run has taken the outputs over.
        OSError: if the lock cannot be read.
    """
    if path in _held:
        _held[path].require()


def token(path: Path) -> str:
    """The token of this process's lock on `path`, for names of files; empty if `path` is not locked."""
    return _held[path].claim.token if path in _held else ""


@contextlib.contextmanager
def locked(outputs: Outputs) -> Iterator[bool]:
    """Holds the lock of `outputs`. If the process is killed, the kernel releases it.

    Yields whether the holder before was killed, which is so if its lock file still existed.

    On a file system without locks there is a warning, and only heartbeats keep runs apart. Missing
    folders are made, and removed again if nothing was written to them.

    Raises:
        InUse: if another run holds the lock.
        InputError: if the folder cannot be written to, or if another file has the lock's name.
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
    """The process that writes these outputs, as `process 123 on host`, or None if there is none.

    This takes some seconds if the lock names another host. A file that is not a lock of a run counts as
    none.
    """
    try:
        descriptor = lock_file.open_lock(outputs.lock, os.O_RDONLY)
    except (OSError, InputError):
        return None
    claim = None
    try:
        claim = lock_file.read(outputs.lock)
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return str(claim) if claim else "unknown"
    except InputError:
        return None
    except OSError:  # the file system has no locks, or the file was removed
        return str(claim) if claim and _beats(outputs.lock, claim) else None
    else:
        decided = claim is None or claim.place == lock_file.place(descriptor)
        return str(claim) if claim and not decided and _beats(outputs.lock, claim) else None
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------ pieces


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes a folder and its missing parents; at the end removes those of them that are empty."""
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
    """Opens the lock file and takes the lock.

    Returns:
        The file's descriptor; whether the file had existed before.

    Raises:
        InUse: if another run holds the lock.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        left = outputs.lock.exists()
        descriptor = lock_file.open_lock(outputs.lock, os.O_RDWR | os.O_CREAT)
        try:
            kernel = _flock(descriptor, outputs)
            if kernel and not _still_named(descriptor, outputs.lock):
                os.close(descriptor)  # its holder has just removed the file
                continue
            claim = lock_file.read(outputs.lock)
            decided = kernel and claim is not None and claim.place == lock_file.place(descriptor)
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
    """Takes the kernel's lock; returns False if the file system has no locks.

    Raises:
        BlockingIOError: if another process has it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        _log.warning(
            "%s cannot be locked (%s): do not start two runs with this output",
            outputs.record,
            reason,
        )
        return False
    return True


def _goes_on(outputs: Outputs, claim: lock_file.Claim) -> bool:
    """Whether a holder still runs about which the kernel's lock says nothing; takes some seconds."""
    _log.warning(
        "%s was locked by %s: waiting up to %.0f s to see whether that run still goes on",
        outputs.record,
        claim,
        _WATCH,
    )
    return _beats(outputs.lock, claim)


def _in_use(outputs: Outputs, who: lock_file.Claim | str | None) -> InUse:
    return InUse(
        f"another run is writing {outputs.record} ({who or 'unknown'}); wait for its end, or choose "
        "another -o"
    )


def _beats(path: Path, claim: lock_file.Claim) -> bool:
    """Whether the lock file changes within some seconds; False if it is removed."""
    deadline = time.monotonic() + _WATCH
    while time.monotonic() < deadline:
        time.sleep(_BEAT / 4)
        try:
            now = lock_file.read(path)
        except (FileNotFoundError, InputError):
            return False
        if now is not None and now != claim:
            return True
    return False


def _still_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False
