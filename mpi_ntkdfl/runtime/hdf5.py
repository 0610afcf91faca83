"""How HDF5 files are written and read, so that neither full disks nor damaged files crash HDF5.

If HDF5 cannot write some data, it keeps them, tries again when the program ends, and crashes. So its
writes go through `_Patient`, which accepts all data and reports the first failure afterwards. Some
kinds of damage in heaps send HDF5 into an endless loop, so `reading` checks the heaps first.
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
"""The file format of HDF5 1.10. It is the oldest format in which all metadata have checksums, so that
the library notices damage that could otherwise crash it."""


class _Patient(io.FileIO):
    """A file whose writes never fail: it keeps the first error and drops all later data."""

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
        """Fills `buffer`; dropped data read as zeros."""
        whole = memoryview(buffer).cast("B")
        count = super().readinto(whole) or 0
        if self.error is not None:
            whole[count:] = bytes(len(whole) - count)
            return len(whole)
        return count


@contextlib.contextmanager
def writing(path: Path, mode: str) -> Iterator[h5py.File]:
    """Opens an HDF5 file for writing; an error of a write is raised when the file is closed.

    Args:
        path: path of the file.
        mode: `w` to create it, `r+` to change it.

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
    """Opens an HDF5 file for reading, after checking the parts whose damage makes the library fail.

    Raises:
        OSError: if the file is missing, or if it is damaged and this can be seen when it is opened.
    """
    import h5py

    with path.open("rb") as raw:
        if not _sound_heaps(raw):
            raise OSError("damaged: a heap of texts is not whole")
    return h5py.File(path, "r", locking=False)


def sane(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset whose size is at most that of its file.

    Datasets are not compressed, so a larger one is damaged: a damaged shape could ask for any amount of
    memory.

    Raises:
        ValueError: if the dataset is larger than the file.
    """
    if file[name].nbytes > file.id.get_filesize():
        raise ValueError(f"{name} is larger than the file")
    return file[name]


_HEAP = b"GCOL\x01\0\0\0"
_HEAP_HEADER = 16
_OBJECT_HEADER = struct.Struct("<HH4sQ")
"""Index (0 for the free rest of the heap), references, padding, size."""


def _sound_heaps(raw: BinaryIO) -> bool:
    """Whether in every global heap of a file the chain of objects fits the heap.

    Text attributes are stored in global heaps. These are the only metadata that HDF5 1.10 keeps without
    a checksum. The HDF5 File Format Specification 3.0, III.E, describes their format.
    """
    if not os.fstat(raw.fileno()).st_size:
        return True  # the library itself refuses an empty file
    with mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(_HEAP)
        while start >= 0:
            end = start + int.from_bytes(data[start + 8 : start + _HEAP_HEADER], "little")
            if end > len(data) or not _sound_objects(data, start + _HEAP_HEADER, end):
                return False
            start = data.find(_HEAP, end)
    return True


def _sound_objects(data: mmap.mmap, position: int, end: int) -> bool:
    seen = set()
    while end - position >= _OBJECT_HEADER.size:
        index, _, padding, size = _OBJECT_HEADER.unpack_from(data, position)
        if any(padding) or index in seen:
            return False
        if index == 0:
            return bool(size == end - position)
        seen.add(index)
        position += _OBJECT_HEADER.size + -(-size // 8) * 8
    return position <= end
