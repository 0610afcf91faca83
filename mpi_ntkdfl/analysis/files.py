"""Writes files so that a file under its final name is always complete."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.storage.whole import made_whole, temporary


def require_suffix(path: Path, *suffixes: str) -> str:
    """The suffix of `path`, in lower case, without its dot.

    Raises:
        InputError: if it is none of `suffixes`.
    """
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in suffixes:
        possible = ", ".join(f".{each}" for each in suffixes)
        raise InputError(f"the name of an output must end in one of {possible}, got {path}")
    return suffix


def write_table(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a table as CSV.

    Raises:
        InputError: if the file cannot be written.
    """
    import csv

    with replacing(path) as made, made.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`; renames it to `path` if the block succeeds.

    Raises:
        InputError: if the file cannot be written.
    """
    try:
        with made_whole(path, temporary(path)) as made:
            yield made
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InputError(f"cannot write {path}: {reason}; choose another name") from error
