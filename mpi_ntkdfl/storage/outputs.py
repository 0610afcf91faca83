"""The files of a run on disk: their names, writing them whole, and one run at a time.

A file that a reader may open is never half written: it is made under a temporary name, flushed to
disk, and renamed. What a kill leaves behind is the file before or the file after, and a temporary one
that the next run removes. Readers keep the file they opened, so neither waits for the other, and
HDF5's own locks, which some network file systems lack, are not needed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mpi_ntkdfl.runtime.errors import InputError, SimulationError

_log = logging.getLogger(__name__)

_PATIENCE = 1.0
"""Seconds a starting run waits for the lock: `show` holds it for a moment to see who else does."""


class InUse(InputError):
    """Another process writes these outputs."""


@dataclass(frozen=True)
class Outputs:
    """The files of the run whose record is `record`.

    Attributes:
        record: `RUN.h5`.
    """

    record: Path

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint, `RUN.ckpt.h5`."""
        return self._beside(".ckpt.h5")

    @property
    def former_checkpoint(self) -> Path:
        """The checkpoint before that one."""
        return self._beside(".ckpt-1.h5")

    @property
    def trace(self) -> Path:
        """The timeline, with `output.trace`: `RUN.trace.json`."""
        return self._beside(".trace.json")

    @property
    def lock(self) -> Path:
        """Held while a run writes; tells who does."""
        return self._beside(".lock")

    def _beside(self, suffix: str) -> Path:
        return self.record.parent / (self.record.name.removesuffix(".h5") + suffix)

    def existing(self) -> list[Path]:
        """What is there of record and checkpoints."""
        files = (self.record, self.checkpoint, self.former_checkpoint)
        return [file for file in files if file.exists()]

    def remove(self) -> None:
        """Removes all of it, and temporary files of a run that was killed.

        The oldest first: what a kill leaves of it is still a run that can go on, or start again.
        """
        for file in (self.former_checkpoint, self.checkpoint, self.record):
            file.unlink(missing_ok=True)
            temporary(file).unlink(missing_ok=True)
        self.trace.unlink(missing_ok=True)


def choose(wanted: Path | None, name: str, resume: bool) -> Outputs:
    """Where a run writes: as wanted, else by its name.

    Without a wish it is the first free one of `NAME.h5`, `NAME-2.h5`, ..., or, to resume, the last
    one taken.
    """
    if wanted is not None:
        return Outputs(wanted)
    number, found = 1, Outputs(Path(f"{name}.h5"))
    following = found
    while following.existing():
        found, number = following, number + 1
        following = Outputs(Path(f"{name}-{number}.h5"))
    return found if resume else following


def refuse(outputs: Outputs, replace: bool) -> None:
    """Refuses outputs that exist, or that could not be written, before anything is computed.

    Args:
        outputs: of the run; their folder exists.
        replace: existing files may be replaced or continued, as long as they are files.

    Raises:
        InputError: saying which, and the way out.
    """
    try:
        for file in outputs.existing():
            if not (replace and file.is_file()):
                raise InputError(
                    f"{file} exists; choose another -o, give --resume to go on with it, or "
                    "--overwrite to replace it"
                )
        with tempfile.TemporaryFile(dir=outputs.record.parent):
            pass
    except OSError as error:
        raise InputError(unwritable(outputs.record, error)) from error


def unwritable(path: Path, error: OSError) -> str:
    """The message for an output file that cannot be written."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    way_out = "free some space or choose another -o" if full else "choose another -o"
    return f"cannot write {path}: {reason}; {way_out}"


# ------------------------------------------------------------------------------------ whole files


def temporary(path: Path) -> Path:
    """The name under which `path` is made."""
    return path.with_name(path.name + ".tmp")


@contextlib.contextmanager
def replacing(path: Path, former: Path | None = None) -> Iterator[Path]:
    """Yields a temporary path at which to write a file of a run, which then replaces `path`.

    Args:
        path: what to replace.
        former: where the file that it replaces is kept, if anywhere.

    Raises:
        SimulationError: if the file cannot be written.
    """
    try:
        with made_whole(path, temporary(path), former) as made:
            yield made
    except OSError as error:
        raise SimulationError(
            f"{unwritable(path, error)}; --resume goes on from the last checkpoint"
        ) from error


@contextlib.contextmanager
def made_whole(path: Path, made: Path, former: Path | None = None) -> Iterator[Path]:
    """Yields `made` to write to; afterwards flushes it to disk and renames it to `path`.

    If anything fails `made` is removed and `path` is as before.

    Args:
        path: what to replace.
        made: a name in the same folder.
        former: where the file that `path` was is kept, if anywhere.

    Raises:
        OSError: if the file cannot be written.
    """
    try:
        made.unlink(missing_ok=True)
        yield made
        with made.open("rb+") as handle:
            os.fsync(handle.fileno())
        if former is not None and path.exists():
            _keep(path, former)
        made.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            made.unlink(missing_ok=True)
        raise


def _keep(path: Path, former: Path) -> None:
    """Makes the file `path` known as `former` too, replacing what that was."""
    link = temporary(former)
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links: until the rename only `former` is there
        path.replace(former)
    else:
        link.replace(former)
        # Renaming does nothing if both names are one file already, as after a kill right here.
        link.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Flushes names in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------- one run at a time


@contextlib.contextmanager
def locked(outputs: Outputs) -> Iterator[None]:
    """Holds the lock of `outputs`; the kernel gives it back however the process ends.

    On a file system without locks the run goes on with a warning. Missing folders are made, and
    removed again if nothing was written to them.

    Raises:
        InUse: if another run holds it.
        InputError: if the folder cannot be written to.
    """
    with contextlib.ExitStack() as folder:
        try:
            folder.enter_context(_made(outputs.record.parent))
            descriptor = _acquire(outputs)
        except OSError as error:
            raise InputError(unwritable(outputs.record, error)) from error
        try:
            yield
        finally:
            # Removed while it is still held: who waits for it sees that its name is gone or another's.
            with contextlib.suppress(OSError):
                outputs.lock.unlink(missing_ok=True)
            os.close(descriptor)


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes a folder and those above it; removes those again in which nothing stayed."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):
            for each in missing:
                each.rmdir()


def _acquire(outputs: Outputs) -> int:
    """Opens and locks the lock file; returns its descriptor."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        descriptor = os.open(outputs.lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() > deadline:
                raise InUse(
                    f"another run is writing {outputs.record} ({holder(outputs) or 'unknown'}); wait "
                    "for its end, or choose another -o"
                ) from None
            time.sleep(0.05)
            continue
        except OSError as error:
            _log.warning(
                "%s cannot be locked (%s): two runs must not share it", *_why(outputs, error)
            )
            return descriptor
        if _still_named(descriptor, outputs.lock):
            break
        os.close(descriptor)  # its holder removed it meanwhile
    text = json.dumps({"host": socket.gethostname(), "process": os.getpid()})
    with contextlib.suppress(OSError):  # a full disk is reported where it matters
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode())
    return descriptor


def _why(outputs: Outputs, error: OSError) -> tuple[Path, str]:
    return outputs.record, os.strerror(error.errno) if error.errno else str(error)


def _still_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def holder(outputs: Outputs) -> str | None:
    """Who is writing these outputs, as `process 123 on host`, or None if nobody is."""
    try:
        with outputs.lock.open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                said = json.loads(file.read() or "{}")
                return f"process {said.get('process')} on {said.get('host')}"
    except (OSError, ValueError):
        return None
    return None
