"""How HDF5 files are written: in a format that notices damage, and never to a disk that says no.

HDF5 keeps what it could not write, tries again when the program ends, and crashes over it. So its
writes go through `_Patient`, which takes everything and reports the first failure afterwards.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

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
    with _Patient(path, "w+" if mode == "w" else mode) as raw:
        try:
            with h5py.File(raw, mode, libver=_LIBVER) as file:
                yield file
        finally:
            if raw.error is not None:
                raise raw.error


def put_text(attributes: h5py.AttributeManager, key: str, text: str | Sequence[str]) -> None:
    """Sets an attribute to a text, or a list of texts, of fixed length.

    HDF5 keeps texts of variable length in heaps without checksums, and loops over damaged ones.
    """
    value = np.char.encode(np.asarray(text, dtype=str), "utf-8")
    kind = h5py.string_dtype("utf-8", max(1, value.dtype.itemsize))
    attributes.create(key, value.astype(kind), dtype=kind)


def plain(value: Any) -> str:
    """An attribute's value as text."""
    return value.decode() if isinstance(value, bytes) else str(value)
