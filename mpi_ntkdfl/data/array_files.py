"""Reader of named arrays from .npz and .h5 files.

Nothing in a file is executed: objects and pickles are refused. A large array that is stored in one piece
is mapped into memory and not read, so that a process needs memory only for what it takes from it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from mpi_ntkdfl.data.idx import MAX_INFLATION
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.hdf5 import reading
from mpi_ntkdfl.runtime.registry import did_you_mean

Arrays = Mapping[str, npt.NDArray[Any]]

LEAST_MAPPED = 2**26
"""Arrays with at least this many bytes are mapped, if the file allows it."""

_LOCAL_HEADER = 30
"""Bytes of the header of a zip member before its name."""


def read(path: Path, names: Collection[str]) -> Arrays:
    """Reads all arrays of a file.

    Args:
        path: an .npz or .h5 file (also .hdf5).
        names: the names that arrays may have.

    Raises:
        InputError: if the file cannot be read, is damaged, has another format, or holds objects or an
            array of another name.
    """
    readers: dict[str, Callable[[Path, Collection[str]], Arrays]] = {
        ".npz": _read_npz,
        ".h5": _read_h5,
        ".hdf5": _read_h5,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path}: the name of a file of arrays must end in .npz or .h5, got "
            f"{path.suffix or 'no end'!r}; write it by numpy.savez or h5py"
        )
    try:
        return reader(path, names)
    except InputError:
        raise
    except Exception as error:  # NumPy and h5py raise almost anything for a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        if "pickle" in reason or "Object arrays" in reason:  # NumPy would advise to allow pickles
            reason = "it holds Python objects, which are refused; store plain numbers or text"
        raise InputError(
            f"{path} is not a readable {path.suffix} file of arrays: {reason}"
        ) from error


def _require_known(path: Path, given: Collection[str], names: Collection[str]) -> None:
    for name in given:
        if name not in names:
            hint = did_you_mean(name, names)
            raise InputError(
                f"{path} has an array {name!r}, which is not used{hint or '; take it out of the file'}; "
                f"the names are {', '.join(names)}"
            )


# ----------------------------------------------------------------------------------------------- npz


def _read_npz(path: Path, names: Collection[str]) -> Arrays:
    if not zipfile.is_zipfile(path):
        raise ValueError(
            "it is no zip archive, or is damaged (an .npy file has one array and no names)"
        )
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    _require_known(path, members, names)
    arrays: dict[str, npt.NDArray[Any]] = {}
    with np.load(path, allow_pickle=False) as file:
        for name, info in members.items():
            mapped = _mapped_member(path, info)
            arrays[name] = file[name] if mapped is None else mapped
            if not isinstance(arrays[name], np.ndarray):  # NumPy returns the bytes of anything else
                raise ValueError(f"{name} is no array")
    return arrays


def _mapped_member(path: Path, info: zipfile.ZipInfo) -> npt.NDArray[Any] | None:
    """A large array that the archive stores without compression; None for others."""
    if info.file_size < LEAST_MAPPED or info.compress_type != zipfile.ZIP_STORED:
        return None
    with path.open("rb") as raw:
        raw.seek(info.header_offset)
        header = raw.read(_LOCAL_HEADER)
        # The last four bytes are the lengths of the name and of the extra field, which follow.
        raw.seek(
            int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), 1
        )
        version = np.lib.format.read_magic(raw)
        if version != (1, 0):
            return None
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(raw)
        offset = raw.tell()
    if dtype.hasobject:
        return None  # NumPy refuses it
    return np.memmap(path, dtype, "r", offset, shape, "F" if by_columns else "C")


# ---------------------------------------------------------------------------------------------- HDF5


def _read_h5(path: Path, names: Collection[str]) -> Arrays:
    with reading(path) as file:
        _require_known(path, list(file), names)
        return {name: _dataset(path, name, file.get(name)) for name in file}


def _dataset(path: Path, name: str, stored: Any) -> npt.NDArray[Any]:
    if not isinstance(stored, h5py.Dataset) or stored.shape is None:
        raise InputError(f"{path}: {name} must be a dataset with values, got {stored!r}")
    if h5py.check_string_dtype(stored.dtype) is not None:
        return np.asarray(stored.asstr()[()], dtype=np.str_)
    if stored.dtype.hasobject:
        raise ValueError(f"Object arrays: {name}")
    if stored.nbytes > MAX_INFLATION * path.stat().st_size:
        raise InputError(
            f"{path}: {name} promises {stored.nbytes} bytes, more than its size allows"
        )
    offset = stored.id.get_offset()  # None for a dataset in chunks
    plain = offset is not None and stored.id.get_create_plist().get_external_count() == 0
    if plain and stored.nbytes >= LEAST_MAPPED and not stored.file.userblock_size:
        return np.memmap(path, stored.dtype, "r", offset, stored.shape)
    return np.asarray(stored[()])
