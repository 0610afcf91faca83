"""The parts of a large checkpoint: files in the folder `RUN.ckpt.parts`, written at the same time.

The ranks are divided into groups of consecutive ranks. The first rank of each group collects the rows of
the group's clients and writes them to one file, the part of the group. When all parts are on the disk,
rank 0 replaces `RUN.ckpt.h5`, which names the parts with their clients and digests. That rename is the
commit: a part that no checkpoint names does not count, and is removed later. No name is used twice, so a
part is never written over.

A part has the datasets of a checkpoint (`/params`, `/state/NAME`) for its own clients and no attributes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from pathlib import Path

import h5py

from mpi_ntkdfl.runtime.errors import SimulationError
from mpi_ntkdfl.runtime.hdf5 import reading, sane, writing
from mpi_ntkdfl.storage import lock
from mpi_ntkdfl.storage.outputs import Outputs, parts_of, unwritable
from mpi_ntkdfl.storage.rows import Rows, add_to, store
from mpi_ntkdfl.storage.whole import flush_file, flush_folder

_NAME = re.compile(r"[0-9]+-[0-9a-f]{8}-[0-9]+\.h5")
"""Names of parts: rounds done, random digits of the checkpoint, number of the part."""


@dataclass(frozen=True)
class Part:
    """A part of a checkpoint.

    Attributes:
        name: of its file in the folder of parts.
        start: its first client.
        stop: the client after its last one.
        size: bytes of the file.
        sha256: digest of its arrays.
    """

    name: str
    start: int
    stop: int
    size: int
    sha256: str

    def __post_init__(self) -> None:
        """Checks the name, which leads to no other folder.

        Raises:
            ValueError: if it is not the name of a part.
        """
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is not the name of a part")


def as_json(parts: Sequence[Part]) -> str:
    """The parts as text, for `from_json`."""
    return json.dumps([astuple(part) for part in parts])


def from_json(text: str) -> list[Part]:
    """The parts that `as_json` has written.

    Raises:
        Exception: of many kinds, if the text is damaged.
    """
    return [Part(*each) for each in json.loads(text)]


# ------------------------------------------------------------------------------------------- writing


def begin(outputs: Outputs, done: int) -> str:
    """Makes the folder of parts; returns the beginning of the names of a new checkpoint's parts.

    Raises:
        SimulationError: if the folder cannot be made, or if another run has taken the outputs over.
    """
    try:
        lock.require_own(outputs.checkpoint)
        with contextlib.suppress(FileExistsError):
            outputs.parts.mkdir()
            flush_folder(outputs.parts.parent)
    except OSError as error:
        raise SimulationError(unwritable(outputs.parts, error)) from error
    return f"{done}-{secrets.token_hex(4)}"


def write(outputs: Outputs, name: str, clients: range, arrays: Mapping[str, Rows]) -> Part | None:
    """Writes a part and flushes it to the disk.

    Returns:
        The part; None if the folder of parts does not exist on this host.

    Raises:
        SimulationError: if it cannot be written.
    """
    path, digest = outputs.parts / name, hashlib.sha256()
    if not path.parent.is_dir():
        for _, rows in sorted(arrays.items()):
            deque(rows.blocks, maxlen=0)  # the other ranks of the group send them anyway
        return None
    try:
        with _removed_if_it_fails(path):
            with writing(path, "w") as file:
                store(file, arrays, digest)
            flush_file(path)
        size = path.stat().st_size
    except OSError as error:
        raise SimulationError(
            f"{unwritable(path, error)}; --resume goes on from the last checkpoint"
        ) from error
    return Part(name, clients.start, clients.stop, size, digest.hexdigest())


@contextlib.contextmanager
def _removed_if_it_fails(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise


def settled(outputs: Outputs, parts: Sequence[Part | None]) -> bool:
    """Flushes the folder of parts; returns whether all parts are in it, as seen from this host.

    Raises:
        SimulationError: if it cannot be flushed.
    """
    try:
        flush_folder(outputs.parts)
        return all(
            part is not None and (outputs.parts / part.name).stat().st_size == part.size
            for part in parts
        )
    except FileNotFoundError:
        return False
    except OSError as error:
        raise SimulationError(unwritable(outputs.parts, error)) from error


def clear(outputs: Outputs, wanted: Callable[[Path], Collection[str]]) -> None:
    """Removes the parts that no checkpoint names, and the folder if it is empty then.

    Args:
        outputs: the files of the run.
        wanted: function that returns the names of the parts of a checkpoint. If it raises an exception,
            no part is removed, because a damaged checkpoint does not say what belongs to it.

    Raises:
        SimulationError: if another run has taken the outputs over.
    """
    if outputs.parts.is_symlink() or not outputs.parts.is_dir():
        return
    kept: set[str] = set()
    for checkpoint in (outputs.checkpoint, outputs.former_checkpoint):
        if checkpoint.exists():
            try:
                kept.update(wanted(checkpoint))
            except Exception:  # for a damaged file h5py can raise almost any exception
                return
    lock.require_own(outputs.checkpoint)
    with contextlib.suppress(OSError):
        for each in outputs.parts.iterdir():
            if _NAME.fullmatch(each.name) and each.name not in kept:
                each.unlink()
        outputs.parts.rmdir()


# ------------------------------------------------------------------------------------------- reading


def show_together(
    file: h5py.File, folder: str, name: str, rows: Rows, parts: Sequence[Part]
) -> None:
    """Makes a virtual dataset that shows the rows of all parts; its `rows` have no blocks.

    Args:
        file: the checkpoint.
        folder: name of the folder of parts beside the checkpoint.
        name: of the array.
        rows: shape and type.
        parts: in the order of clients.
    """
    layout = h5py.VirtualLayout(rows.shape, rows.dtype)
    source = folder.replace("%", "%%")  # HDF5 takes % for the beginning of a placeholder
    for part in parts if 0 not in rows.shape else ():
        shape = (part.stop - part.start, *rows.shape[1:])
        layout[part.start : part.stop] = h5py.VirtualSource(
            f"{source}/{part.name}", name, shape, rows.dtype
        )
    file.create_virtual_dataset(name, layout)


def opened(checkpoint: Path, parts: Sequence[Part], held: contextlib.ExitStack) -> list[h5py.File]:
    """Opens the parts of a checkpoint. An open part stays readable if a run removes it.

    Args:
        checkpoint: path of the checkpoint.
        parts: of the checkpoint.
        held: closes the files.

    Raises:
        ValueError: if a part is missing, or if clients are missing between the parts.
    """
    bounds = [(part.start, part.stop) for part in parts]
    if bounds[0][0] != 0 or any(one[1] != next[0] for one, next in pairwise(bounds)):
        raise ValueError("its parts leave clients out")
    folder, files = parts_of(checkpoint), []
    for part in parts:
        try:
            files.append(held.enter_context(reading(folder / part.name)))
        except FileNotFoundError as error:
            raise ValueError(
                f"its part {folder / part.name} is missing; a checkpoint, its record and the folder "
                f"{folder.name} belong together and must be moved and copied together"
            ) from error
        except Exception as error:  # for a damaged file h5py can raise almost any exception
            raise ValueError(f"its part {folder / part.name} is not readable: {error}") from error
    return files


def verify(checkpoint: Path, part: Part, file: h5py.File, names: Sequence[str]) -> None:
    """Checks the digest of a part.

    Raises:
        ValueError: if it is wrong.
    """
    digest = hashlib.sha256()
    for name in names:
        if len(sane(file, name)) != part.stop - part.start:
            raise ValueError(f"its part {parts_of(checkpoint) / part.name} has other clients")
    add_to(digest, file, sorted(names))
    if digest.hexdigest() != part.sha256:
        raise ValueError(
            f"the content of its part {parts_of(checkpoint) / part.name} does not match its checksum"
        )
