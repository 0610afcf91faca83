"""Strict reader of IDX files, the format of MNIST and its descendants.

An IDX file of bytes begins with the magic number `00 00 08 D`, where `D` is the number of dimensions.
Then come the `D` dimensions as big-endian 32-bit integers, and then the values in C order. Nothing
follows them. Files whose names end in `.gz` are decompressed while they are read.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from mpi_ntkdfl.runtime.errors import InputError

# Deflate encodes at most 258 bytes in 2 bits, so the content of a sound file is at most this many times
# as large as the file.
MAX_INFLATION = 1032

_BLOCK = 1 << 20


def read(path: Path, shape: tuple[int | None, ...]) -> npt.NDArray[np.uint8]:
    """Reads a whole IDX file of unsigned bytes.

    Args:
        path: the file, gzip-compressed if its name ends in `.gz`.
        shape: dimensions that the file must have; None for any number.

    Returns:
        A writable array of the dimensions in the file.

    Raises:
        InputError: if the file cannot be read, is damaged, has other dimensions or another length.
    """
    with _opened(path) as file:
        dims = _read_header(file, path, shape)
        length = math.prod(dims)
        # This is checked before reading, because a damaged dimension may need too much memory.
        if length > MAX_INFLATION * path.stat().st_size:
            raise InputError(f"{path}: promises {_times(dims)} bytes, more than its size allows")
        content = file.read(length + 1)
    if len(content) != length:
        got = "more" if len(content) > length else f"{len(content)} (truncated)"
        raise InputError(
            f"{path}: {_times(dims)} = {length} bytes must follow the IDX header, got {got}; "
            "get the file again"
        )
    return np.frombuffer(bytearray(content), np.uint8).reshape(dims)


def content_hash(path: Path) -> str:
    """SHA-256, in hexadecimal, of the decompressed content of a file.

    Unlike a hash of the `.gz` file itself, it does not depend on the compression.

    Raises:
        InputError: if the file cannot be read or is damaged.
    """
    digest = hashlib.sha256()
    with _opened(path) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def array_hash(array: npt.NDArray[np.uint8]) -> str:
    """The `content_hash` of the file from which `read` returned `array`, without reading it again."""
    digest = hashlib.sha256(bytes([0, 0, 8, array.ndim]))
    digest.update(np.array(array.shape, ">u4").tobytes())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield cast("BinaryIO", file)
    except gzip.BadGzipFile as error:
        raise InputError(f"{path}: not a sound gzip file ({error}); get the file again") from error
    except (EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged gzip file ({error}); get the file again") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_header(file: BinaryIO, path: Path, shape: tuple[int | None, ...]) -> tuple[int, ...]:
    magic = bytes([0, 0, 8, len(shape)])
    header = file.read(4 + 4 * len(shape))
    if header[:4] != magic:
        raise InputError(
            f"{path}: an IDX file of {len(shape)}-dimensional bytes starts with {magic.hex(' ')}, "
            f"got {header[:4].hex(' ') or 'an empty file'}; is it the right file?"
        )
    if len(header) != 4 + 4 * len(shape):
        raise InputError(
            f"{path}: the IDX header has {4 + 4 * len(shape)} bytes, got {len(header)} "
            "(truncated); get the file again"
        )
    dims = tuple(int(dim) for dim in np.frombuffer(header, ">u4", offset=4))
    if any(want is not None and want != got for want, got in zip(shape, dims, strict=True)):
        wanted = _times(tuple("n" if want is None else want for want in shape))
        raise InputError(
            f"{path}: must hold {wanted} bytes, got {_times(dims)}; is it the right file?"
        )
    return dims


def _times(dims: tuple[int | str, ...]) -> str:
    return " x ".join(map(str, dims))
