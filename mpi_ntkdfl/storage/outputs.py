"""The files of a run on disk: their names, and what must not be replaced."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.hdf5 import SIGNATURE, reading

_LONGEST_NAME = 255
"""Bytes that Linux allows in the name of a file."""

_SUFFIXES = 40
"""Bytes that the names of a run's checkpoints, locks and temporary files have more than its record's."""

_CHECKPOINTS = (".ckpt.h5", ".ckpt-1.h5")


@dataclass(frozen=True)
class Outputs:
    """The files of the run whose record is `record`.

    Attributes:
        record: `RUN.h5`.
    """

    record: Path

    @classmethod
    def at(cls, path: Path) -> Outputs:
        """The files of the run whose record is at `path`.

        A symbolic link stands for the file that it names: the record is that file, and the
        checkpoints lie beside that file.
        """
        is_link = os.path.islink(path)  # noqa: PTH114 - says no to names that are too long
        return cls(Path(os.path.realpath(path)) if is_link else path)

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint, `RUN.ckpt.h5`."""
        return self._beside(_CHECKPOINTS[0])

    @property
    def former_checkpoint(self) -> Path:
        """The checkpoint before that one."""
        return self._beside(_CHECKPOINTS[1])

    @property
    def trace(self) -> Path:
        """The timeline, with `output.trace`: `RUN.trace.json`."""
        return self._beside(".trace.json")

    @property
    def lock(self) -> Path:
        """Held while a run writes; tells who does. The name cannot be that of a user's file."""
        return self.record.parent / f".{self._name}.mpi_ntkdfl-lock"

    @property
    def files(self) -> tuple[Path, Path, Path]:
        """Record and checkpoints, the oldest last."""
        return self.record, self.checkpoint, self.former_checkpoint

    @property
    def _name(self) -> str:
        return self.record.name.removesuffix(".h5")

    def _beside(self, suffix: str) -> Path:
        return self.record.parent / (self._name + suffix)

    def existing(self) -> list[Path]:
        """What is there of record and checkpoints, broken links included.

        Raises:
            OSError: if that cannot be told, for example because the name is too long.
        """
        return [file for file in self.files if _is_there(file)]


def _is_there(file: Path) -> bool:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        file.lstat()
        return True
    return False


def choose(wanted: Path | None, name: str, resume: bool) -> Outputs:
    """Where a run writes: as wanted, else by its name.

    Without a wish it is the first free one of `NAME.h5`, `NAME-2.h5`, ..., or, to resume, the last
    one taken.
    """
    if wanted is not None:
        return Outputs.at(wanted)
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
        replace: existing files of a run may be replaced or continued.

    Raises:
        InputError: saying which, and the way out.
    """
    for suffix in _CHECKPOINTS:
        if outputs.record.name.endswith(suffix):
            record = outputs.record.name.removesuffix(suffix) + ".h5"
            raise InputError(
                f"{outputs.record} has the name of a checkpoint: give the record's name, such as "
                f"{record}"
            )
    room = _LONGEST_NAME - len(os.fsencode(outputs.record.name))
    if room < _SUFFIXES:
        raise InputError(
            f"-o: the name of a record may have {_LONGEST_NAME - _SUFFIXES} bytes, because a run makes "
            f"files whose names are longer, got {_LONGEST_NAME - room}; choose a shorter name"
        )
    try:
        for file in outputs.existing():
            if not replace and file.is_file():
                raise InputError(
                    f"{file} exists; choose another -o, give --resume to go on with it, or "
                    "--overwrite to replace it"
                )
            if reason := foreign(file):
                raise InputError(
                    f"{file} {reason}, so a run does not replace it; move it away, or choose "
                    "another -o"
                )
        with tempfile.TemporaryFile(dir=outputs.record.parent):
            pass
    except OSError as error:
        raise InputError(unwritable(outputs.record, error)) from error


def foreign(file: Path) -> str:
    """Why a file that exists is none that a run made, as the end of a sentence; empty if it is one.

    Damaged and empty files count as made by a run as long as they begin as HDF5 files do.

    Raises:
        OSError: if it cannot be read.
    """
    if file.is_symlink():
        return "is a symbolic link"
    if not file.is_file():
        return "is no file"
    with file.open("rb") as raw:
        begin = raw.read(len(SIGNATURE))
    if not begin:
        return ""
    if begin != SIGNATURE:
        return "is no HDF5 file"
    try:
        with reading(file) as opened:
            ours = {"schema", "config"} <= set(opened.attrs)
    except Exception:  # over a damaged file h5py raises almost anything
        return ""
    return "" if ours else "is an HDF5 file of something else"


def unwritable(path: Path, error: OSError) -> str:
    """The message for an output file that cannot be written."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return f"cannot write {path}: {reason}; {way_out(error)}"


def way_out(error: OSError) -> str:
    """What to do about a file that cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "free some space or choose another -o" if full else "choose another -o"
