"""Files that are never half written.

A file that a reader may open is made under a temporary name, flushed to disk, and renamed. What a kill
leaves behind is the file before or the file after, and a temporary one that the next run removes.
Readers keep the file they opened, so neither waits for the other, and HDF5's own locks, which some
network file systems lack, are not needed.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from mpi_ntkdfl.runtime.errors import SimulationError
from mpi_ntkdfl.storage import lock
from mpi_ntkdfl.storage.outputs import Outputs, unwritable

_TEMPORARY = ".mpi_ntkdfl-tmp"


def temporary(path: Path, part: str = "") -> Path:
    """The name under which this process makes `path`.

    Args:
        path: path of the file.
        part: tells several temporary files of `path` apart.

    Two runs that take each other's lock for left behind have different names. No user's file has such
    a name.
    """
    maker = lock.token(path) or f"process-{os.getpid()}"
    return path.with_name(f".{path.name}.{maker}{part}{_TEMPORARY}")


def remove(outputs: Outputs) -> None:
    """Removes record, checkpoints and timeline.

    The oldest first: what a kill leaves of it is still a run that can go on, or start again.

    Raises:
        SimulationError: if another run has taken the outputs over.
    """
    for file in reversed(outputs.files):
        lock.require_own(file)
        file.unlink(missing_ok=True)
    if outputs.trace.is_file() and outputs.trace.read_bytes()[:1] == b"[":
        outputs.trace.unlink()  # a timeline; another file of that name is not a run's


def remove_leftovers(outputs: Outputs) -> None:
    """Removes the temporary files of runs that were killed; the lock is held."""
    for file in outputs.files:
        for left in file.parent.glob(f".{_literal(file.name)}.*{_TEMPORARY}"):
            _clear(left)


def _literal(name: str) -> str:
    """`name` for `glob`, where some characters stand for others."""
    return "".join(f"[{each}]" if each in "*?[" else each for each in name)


@contextlib.contextmanager
def replacing(
    path: Path,
    former: Path | None = None,
    begin: Path | None = None,
    before_rename: Callable[[], None] = lambda: None,
) -> Iterator[Path]:
    """Yields a temporary path at which to write a file of a run, which then replaces `path`.

    Args:
        path: what to replace.
        former: where the file that it replaces is kept, if anywhere.
        begin: a file that moves to the temporary path; None for an empty file.
        before_rename: called before `path` is replaced, if the outputs still belong to this run.

    Raises:
        SimulationError: if the file cannot be written, or another run has taken the outputs over.
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
    """Yields `made` to write to; afterwards flushes it to disk and renames it to `path`.

    If anything fails `made` is removed and `path` is as before.

    Args:
        path: what to replace.
        made: a name in the same folder.
        former: where the file that `path` was is kept, if anywhere.
        sure: called before `path` is replaced; raises if it must not be.
        begin: a file that moves to `made`; None for an empty file.

    Raises:
        OSError: if the file cannot be written.
    """
    _clear(made)
    if begin is not None:
        begin.replace(made)
    else:
        # Nobody's link is followed: a name that is taken meanwhile is an error.
        os.close(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield made
        with made.open("rb+") as handle:
            os.fsync(handle.fileno())
        sure()
        if former is not None and path.exists():
            _keep(path, former)
        made.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            made.unlink(missing_ok=True)
        raise


def _clear(made: Path) -> None:
    """Removes what a killed process left under a temporary name; only a file can be that."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISREG(made.lstat().st_mode):
            made.unlink()


def _keep(path: Path, former: Path) -> None:
    """Makes the file `path` known as `former` too, replacing what that was."""
    link = temporary(former)
    _clear(link)
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
