"""The files of a run: their names, and which existing files must not be replaced."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass
from pathlib import Path

from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.hdf5 import SIGNATURE, reading

_LONGEST_NAME = 255
"""The largest number of bytes in a file's name on Linux."""

_SUFFIXES = 40
"""By how many bytes names of a run's checkpoints, locks and temporary files exceed the record's name."""

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

        If `path` is a symbolic link, the record is the file to which it points, and the other files are
        in the folder of that file.
        """
        is_link = os.path.islink(path)  # noqa: PTH114 - returns False for names that are too long
        return cls(Path(os.path.realpath(path)) if is_link else path)

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint, `RUN.ckpt.h5`."""
        return self._beside(_CHECKPOINTS[0])

    @property
    def former_checkpoint(self) -> Path:
        """The second newest checkpoint, `RUN.ckpt-1.h5`."""
        return self._beside(_CHECKPOINTS[1])

    @property
    def parts(self) -> Path:
        """The folder of the parts of large checkpoints, `RUN.ckpt.parts`."""
        return parts_of(self.checkpoint)

    @property
    def trace(self) -> Path:
        """The timeline `RUN.trace.json`, which exists if `output.trace` is on."""
        return self._beside(".trace.json")

    @property
    def lock(self) -> Path:
        """The lock file, which exists while a run writes and names that run."""
        return self.record.parent / f".{self._name}.mpi_ntkdfl-lock"

    @property
    def files(self) -> tuple[Path, Path, Path]:
        """The record and both checkpoints, the older checkpoint last."""
        return self.record, self.checkpoint, self.former_checkpoint

    @property
    def _name(self) -> str:
        return self.record.name.removesuffix(".h5")

    def _beside(self, suffix: str) -> Path:
        return self.record.parent / (self._name + suffix)

    def existing(self) -> list[Path]:
        """Those of record and checkpoints that exist. Broken links count as existing.

        Raises:
            OSError: if the system cannot say, for example because the name is too long.
        """
        return [file for file in self.files if _exists(file)]


def parts_of(checkpoint: Path) -> Path:
    """The folder of the parts of the checkpoint at that path; both checkpoints of a run have the same."""
    name = checkpoint.name
    for suffix in _CHECKPOINTS:
        name = name.removesuffix(suffix)
    return checkpoint.with_name(f"{name}.ckpt.parts")


def _exists(file: Path) -> bool:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        file.lstat()
        return True
    return False


def choose(wanted: Path | None, name: str, resume: bool) -> Outputs:
    """Chooses the files of a run.

    Args:
        wanted: path of the record that the user asked for, or None.
        name: name of the run. Without `wanted` the record is the first of `NAME.h5`, `NAME-2.h5`, ...
            that does not exist.
        resume: whether to resume; then it is the last of these that exists.
    """
    if wanted is not None:
        return Outputs.at(wanted)
    number, last = 1, Outputs(Path(f"{name}.h5"))
    free = last
    while free.existing():
        last, number = free, number + 1
        free = Outputs(Path(f"{name}-{number}.h5"))
    return last if resume else free


def refuse(outputs: Outputs, replace: bool) -> None:
    """Checks, before anything is computed, that a run may write its files and can do so.

    Args:
        outputs: the files of the run; their folder exists.
        replace: whether existing files of a run may be replaced or continued.

    Raises:
        InputError: if not; the message names the file and the way out.
    """
    import tempfile  # whoever reads a record makes no file

    for suffix in _CHECKPOINTS:
        if outputs.record.name.endswith(suffix):
            record = outputs.record.name.removesuffix(suffix) + ".h5"
            raise InputError(
                f"{outputs.record} is the name of a checkpoint; give the name of a record, such as "
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
        if _exists(outputs.parts) and (outputs.parts.is_symlink() or not outputs.parts.is_dir()):
            raise InputError(
                f"{outputs.parts} is not a folder, but a run makes a folder of that name for large "
                "checkpoints; move it away, or choose another -o"
            )
        with tempfile.TemporaryFile(dir=outputs.record.parent):
            pass
    except OSError as error:
        raise InputError(unwritable(outputs.record, error)) from error


def foreign(file: Path) -> str:
    """Why an existing file was not made by a run, as the end of a sentence; empty if a run made it.

    Empty files, and damaged files that begin like an HDF5 file, count as made by a run.

    Raises:
        OSError: if the file cannot be read.
    """
    if file.is_symlink():
        return "is a symbolic link"
    if not file.is_file():
        return "is not a regular file"
    with file.open("rb") as raw:
        begin = raw.read(len(SIGNATURE))
    if not begin:
        return ""
    if begin != SIGNATURE:
        return "is not an HDF5 file"
    try:
        with reading(file) as opened:
            ours = {"schema", "config"} <= set(opened.attrs)
    except Exception:  # for a damaged file h5py can raise almost any exception
        return ""
    return "" if ours else "is an HDF5 file that no run made"


def unwritable(path: Path, error: OSError) -> str:
    """The message for an output file that cannot be written."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return f"cannot write {path}: {reason}; {way_out(error)}"


def way_out(error: OSError) -> str:
    """What the user can do about a file that cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "free some space or choose another -o" if full else "choose another -o"
