"""How HDF5 files are written and read, so that neither full disks nor damaged files bring HDF5 down.

HDF5 keeps what it could not write, tries again when the program ends, and crashes over it. So its
writes go through `_Patient`, which takes everything and reports the first failure afterwards. And it
loops over some damages in heaps, so `reading` looks at those first.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import h5py

SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""The first bytes of an HDF5 file."""

_LIBVER = ("v110", "latest")
"""The file format of HDF5 1.10: the oldest in which all metadata carry checksums, so that damage is
noticed where the library could otherwise crash."""


class _Patient(io.FileIO):
    """A file whose writes never fail: the first error is kept, and what follows is dropped."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Writes all of `data`."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while len(left) and self.error is None:
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        """Sets the size."""
        try:
            if self.error is None:
                return super().truncate(size)
        except OSError as error:
            self.error = error
        return size or 0

    def readinto(self, buffer: Any) -> int:
        """Fills `buffer`; what was dropped reads as zeros."""
        whole = memoryview(buffer).cast("B")
        count = super().readinto(whole) or 0
        if self.error is not None:
            whole[count:] = bytes(len(whole) - count)
            return len(whole)
        return count


@contextlib.contextmanager
def writing(path: Path, mode: str) -> Iterator[h5py.File]:
    """Opens an HDF5 file to write; what cannot be written is an error once it is closed.

    Args:
        path: of the file.
        mode: `w` to make it, `r+` to change it.

    Raises:
        OSError: if anything could not be written.
    """
    import h5py

    with _Patient(path, "w+" if mode == "w" else mode) as raw:
        try:
            with h5py.File(raw, mode, libver=_LIBVER) as file:
                yield file
        finally:
            if raw.error is not None:
                raise raw.error


def reading(path: Path) -> h5py.File:
    """Opens an HDF5 file to read, after a look at what makes the library loop or crash if damaged.

    Raises:
        OSError: if the file is missing, or damaged as far as can be told at once.
    """
    import h5py

    with path.open("rb") as raw:
        if not _sound_heaps(raw):
            raise OSError("damaged: a heap of texts is not whole")
    return h5py.File(path, "r", locking=False)


def sane(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset that fits into its file.

    They are not compressed; a damaged shape could ask for any amount of memory.

    Raises:
        ValueError: if it does not fit.
    """
    if file[name].nbytes > file.id.get_filesize():
        raise ValueError(f"{name} is larger than the file")
    return file[name]


_HEAP = b"GCOL\x01\0\0\0"
_HEAP_HEADER = 16
_OBJECT_HEADER = struct.Struct("<HH4sQ")
"""Index (0: what is left of the heap), references, padding, size."""


def _sound_heaps(raw: BinaryIO) -> bool:
    """Whether the chain of objects fits every global heap of a file.

    Attributes that are text lie in global heaps, the only metadata that HDF5 1.10 keeps without a
    checksum. Their format: HDF5 File Format Specification 3.0, III.E.
    """
    if not os.fstat(raw.fileno()).st_size:
        return True  # what else is wrong with it the library says
    with mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(_HEAP)
        while start >= 0:
            end = start + int.from_bytes(data[start + 8 : start + _HEAP_HEADER], "little")
            if end > len(data) or not _sound_objects(data, start + _HEAP_HEADER, end):
                return False
            start = data.find(_HEAP, end)
    return True


def _sound_objects(data: mmap.mmap, here: int, end: int) -> bool:
    seen = set()
    while end - here >= _OBJECT_HEADER.size:
        index, _, padding, size = _OBJECT_HEADER.unpack_from(data, here)
        if any(padding) or index in seen:
            return False
        if index == 0:
            return bool(size == end - here)
        seen.add(index)
        here += _OBJECT_HEADER.size + -(-size // 8) * 8
    return here <= end
