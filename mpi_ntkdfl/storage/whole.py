"""Replaces files so that no reader ever sees a half written one.

A file is made under a temporary name, flushed to disk, and renamed. If the process is killed, the old or
the new file is there and complete, and perhaps a temporary file, which the next run removes. A reader
keeps the file that it has opened, so readers and writers never wait for each other. HDF5's own locks,
which some network file systems do not support, are not needed.
"""

from __future__ import annotations

import contextlib
import glob
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from mpi_ntkdfl.runtime.errors import SimulationError
from mpi_ntkdfl.storage import lock
from mpi_ntkdfl.storage.outputs import Outputs, unwritable

_TEMPORARY = ".mpi_ntkdfl-tmp"


def temporary(path: Path, part: str = "") -> Path:
    """The temporary name under which this process makes `path`. No user's file has such a name.

    The name differs between processes, even if two runs write the same outputs by mistake.

    Args:
        path: path of the file.
        part: tells several temporary files of `path` apart.
    """
    maker = lock.token(path) or f"process-{os.getpid()}"
    return path.with_name(f".{path.name}.{maker}{part}{_TEMPORARY}")


def remove(outputs: Outputs) -> None:
    """Removes record, checkpoints and timeline of a run.

    The oldest file is removed first, so that after a kill the run can still be resumed or started again.

    Raises:
        SimulationError: if another run has taken the outputs over.
    """
    for file in reversed(outputs.files):
        lock.require_own(file)
        file.unlink(missing_ok=True)
    if outputs.trace.is_file() and outputs.trace.read_bytes()[:1] == b"[":
        outputs.trace.unlink()  # it begins like a timeline; other files of that name are kept


def remove_leftovers(outputs: Outputs) -> None:
    """Removes temporary files of runs that were killed. The caller must hold the lock."""
    for file in outputs.files:
        for left in file.parent.glob(f".{glob.escape(file.name)}.*{_TEMPORARY}"):
            _clear(left)


@contextlib.contextmanager
def replacing(
    path: Path,
    former: Path | None = None,
    begin: Path | None = None,
    before_rename: Callable[[], None] = lambda: None,
) -> Iterator[Path]:
    """Yields a temporary path at which to write a file of a run, which then replaces `path`.

    Args:
        path: the file to replace.
        former: path at which the replaced file is kept, or None.
        begin: a file that is moved to the temporary path; None for an empty file.
        before_rename: function that is called before `path` is replaced, if the outputs still belong to
            this run.

    Raises:
        SimulationError: if the file cannot be written, or if another run has taken the outputs over.
    """

    def sure() -> None:
        lock.require_own(path)

    def sure_and_called() -> None:
        sure()
        before_rename()

    try:
        sure()
        with made_whole(path, temporary(path), former, sure_and_called, begin) as made:
            yield made
    except OSError as error:
        raise SimulationError(
            f"{unwritable(path, error)}; --resume goes on from the last checkpoint"
        ) from error


@contextlib.contextmanager
def made_whole(
    path: Path,
    made: Path,
    former: Path | None = None,
    sure: Callable[[], None] = lambda: None,
    begin: Path | None = None,
) -> Iterator[Path]:
    """Yields the file `made` to write to; afterwards flushes it to disk and renames it to `path`.

    If anything fails, `made` is removed and `path` is unchanged.

    Args:
        path: the file to replace.
        made: a temporary name in the same folder.
        former: path at which the replaced file is kept, or None.
        sure: function that is called before `path` is replaced, and raises if it must not be.
        begin: a file that is moved to `made`; None for an empty file.

    Raises:
        OSError: if the file cannot be written.
    """
    _clear(made)
    if begin is not None:
        begin.replace(made)
    else:
        # O_EXCL follows no link; it is an error if the name exists by now.
        os.close(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield made
        flush_file(made)
        sure()
        if former is not None and path.exists():
            _keep(path, former)
        made.replace(path)
        flush_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            made.unlink(missing_ok=True)
        raise


def _clear(made: Path) -> None:
    """Removes the file that a killed process left under a temporary name; anything else is kept."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISREG(made.lstat().st_mode):
            made.unlink()


def _keep(path: Path, former: Path) -> None:
    """Gives the file `path` the second name `former`, which replaces an older file of that name."""
    link = temporary(former)
    _clear(link)
    try:
        os.link(path, link)
    except OSError:  # without hard links only `former` exists until the new file is renamed
        path.replace(former)
    else:
        link.replace(former)
        # A rename does nothing if both names are already one file, as after a kill at this place.
        link.unlink(missing_ok=True)


def flush_file(path: Path) -> None:
    """Flushes the content of a file to disk."""
    with path.open("rb+") as handle:
        os.fsync(handle.fileno())


def flush_folder(folder: Path) -> None:
    """Flushes the names of files in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
