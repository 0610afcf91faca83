"""A file of a run that grows by small pieces, at the cost of the pieces and not of the whole file.

A small file is copied, changed and renamed. For a large file this would cost as much as the file, each
time. So a large file has a twin: the file that it replaced last, which has all pieces except the last
one. The next append adds to the twin, under its hidden name, the pieces that it lacks. Then the twin
replaces the file, and the former file becomes the twin. So a kill at any moment damages the twin only,
which nobody reads.

Readers keep the file that they opened. An open file must not change, and Linux tells whether a file is
open (by a lease), so such a twin is left alone, and the append makes a copy. File systems without leases,
such as NFS, do not tell it. There, a reader that keeps a file open over two appends may see the new rows,
or an error where a checksum does not fit.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py

from mpi_ntkdfl.runtime.hdf5 import writing
from mpi_ntkdfl.storage.whole import replacing, temporary

IN_PLACE_FROM = 4 * 2**20
"""Bytes from which a file has a twin. A copy of a smaller one takes about a millisecond."""

Change = Callable[[h5py.File], None]


@dataclass(frozen=True)
class _Twin:
    """The file that another one replaced.

    Attributes:
        path: its hidden name.
        state: what tells whether somebody changed it.
        lacks: the change that it lacks.
    """

    path: Path
    state: tuple[int, ...]
    lacks: Change

    def may_change(self) -> bool:
        """Whether it is as it was, has no other name, and nobody reads it."""
        try:
            return _state(self.path) == self.state and not _is_open(self.path)
        except OSError:
            return False


class Growing:
    """An HDF5 file to which changes are appended; at any moment it is whole."""

    def __init__(self, path: Path) -> None:
        """Names the file, which exists when the first change comes."""
        self.path = path
        self._twin: _Twin | None = None

    def append(self, change: Change) -> None:
        """Applies a change. It is applied to two files, one after the other, so it must only add.

        Raises:
            SimulationError: if the file cannot be written; it is as before then.
        """
        twin, self._twin = self._twin, None
        if twin is not None and not twin.may_change():
            twin.path.unlink(missing_ok=True)
            twin = None
        begin = None if twin is None else twin.path
        with replacing(self.path, begin=begin, before_rename=self._keep) as made:
            if twin is None:
                shutil.copyfile(self.path, made)
            with writing(made, "r+") as file:
                if twin is not None:
                    twin.lacks(file)
                change(file)
        with contextlib.suppress(OSError):  # no file has the hidden name: there is no twin
            self._twin = _Twin(self._hidden, _state(self._hidden), change)

    @property
    def _hidden(self) -> Path:
        """The twin's name."""
        return temporary(self.path, "twin")

    def _keep(self) -> None:
        """Gives the file, which is about to be replaced, its hidden name, if it is large."""
        self._hidden.unlink(missing_ok=True)
        if self.path.stat().st_size >= IN_PLACE_FROM:
            with contextlib.suppress(OSError):  # a file system without hard links has no twins
                os.link(self.path, self._hidden)

    def close(self) -> None:
        """Removes the twin."""
        if self._twin is not None:
            with contextlib.suppress(OSError):
                self._twin.path.unlink(missing_ok=True)
            self._twin = None


def _state(path: Path) -> tuple[int, ...]:
    """Inode, size, time of the last change, number of names.

    Raises:
        OSError: if it is no file of one name.
    """
    told = path.lstat()
    if not stat.S_ISREG(told.st_mode) or told.st_nlink != 1:
        raise OSError(f"{path} is not a file that has one name")
    return told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns


def _is_open(path: Path) -> bool:
    """Whether a process has the file open, as far as this can be told."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Who opens the file while the lease lasts sends this process a signal; this one is ignored.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except (OSError, AttributeError) as error:  # other systems than Linux have no leases
        return isinstance(error, OSError) and error.errno == errno.EAGAIN
    finally:
        os.close(descriptor)
    return False
