"""Where commands write files: `--overwrite` replaces existing files, but never files of runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.hdf5 import SIGNATURE
from mpi_ntkdfl.runtime.paths import user_path

_TOLD = "mpi_ntkdfl.overwrite"


def _remember(context: click.Context, _: click.Parameter, told: bool) -> None:
    context.meta[_TOLD] = told


OVERWRITE = click.option(
    "--overwrite",
    is_flag=True,
    is_eager=True,  # known before a target is looked at
    expose_value=False,
    callback=_remember,
    help="Replace an existing file, unless it is a record or a checkpoint.",
)


class _Target(click.ParamType[Path]):
    """A file to write; a symbolic link stands for the file that it names."""

    name = "path"

    def __init__(self, *suffixes: str) -> None:
        """Takes the suffixes that the file may have; none for any."""
        self._suffixes = suffixes

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> Path:
        """Checks a target before anything is computed.

        Raises:
            InputError: if it exists and must not be replaced, or is not a usable path, or has another
                suffix.
        """
        if isinstance(value, Path):
            return value
        from mpi_ntkdfl.analysis.files import require_suffix

        path = user_path(value, "the output")
        if path.is_symlink():
            path = Path(os.path.realpath(path))
        told = context is not None and context.meta.get(_TOLD, False)
        try:
            _refuse(path, told)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from error
        if self._suffixes:
            require_suffix(path, *self._suffixes)
        return path


def _refuse(path: Path, told: bool) -> None:
    if not path.is_file():
        return
    with path.open("rb") as file:
        if file.read(len(SIGNATURE)) == SIGNATURE:
            raise InputError(
                f"{path} is an HDF5 file, perhaps a record or a checkpoint, and is never replaced; "
                "choose another name"
            )
    if not told:
        raise InputError(f"{path} exists; choose another name, or give --overwrite to replace it")


TARGET = _Target()


def figure(
    text: str, required: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option `-o` of a command that draws; `text` is its help."""
    return click.option(
        *("-o", "--output", "figure"),
        metavar="FIGURE.(pdf|png|svg)",
        required=required,
        type=_Target("pdf", "png", "svg"),
        help=text,
    )
