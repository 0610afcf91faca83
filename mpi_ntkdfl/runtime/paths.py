"""Turns a path that a user wrote into a path that the program can use, or into a message."""

from __future__ import annotations

import os
from pathlib import Path

from mpi_ntkdfl.runtime.errors import InputError

_LONGEST_NAME = 255
_LONGEST_PATH = 4095
"""Bytes that Linux allows in the name of a file or folder, and in a whole path."""


def user_path(written: str | Path, what: str) -> Path:
    """Turns what a user wrote into a path: a leading `~` or `~name` becomes that home folder.

    The function does not check whether a file exists at that path. It refuses a device, since a device
    such as `/dev/zero` has no end.

    Args:
        written: the path as it came from a configuration or the command line. Text is better than a
            `Path`, because `Path` turns `./~name` into `~name`.
        what: what the path is for, as the user calls it, such as `topology.path` or `-o`. The message
            begins with it.

    Returns:
        The path; relative paths stay relative to the working folder.

    Raises:
        InputError: if the path is empty, holds a NUL character or characters that no file name can
            have, is too long, begins with `~` where there is no such home folder, or is a device.
    """
    text = str(written) if isinstance(written, Path) else written
    if not text.strip():
        raise InputError(f"{what}: a path is needed, got an empty text")
    if "\0" in text:
        raise InputError(f"{what}: a path cannot hold a NUL character, got {text!r}")
    path = _expanded(text, what)
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what}: {error.object[error.start]!r} cannot stand in the name of a file, got {text!r}"
        ) from error
    longest = max(encoded.split(b"/"), key=len)
    if len(longest) > _LONGEST_NAME:
        raise InputError(
            f"{what}: the name of a file or folder may have {_LONGEST_NAME} bytes, got one of "
            f"{len(longest)} that begins with {os.fsdecode(longest[:40])!r}; choose a shorter name"
        )
    if len(encoded) > _LONGEST_PATH:
        raise InputError(
            f"{what}: a path may have {_LONGEST_PATH} bytes, got {len(encoded)}; choose a shorter one"
        )
    if path.is_char_device() or path.is_block_device():
        raise InputError(f"{what}: {text} is a device; a file is needed")
    return path


def _expanded(text: str, what: str) -> Path:
    expanded = os.path.expanduser(text)  # noqa: PTH111 - pathlib would expand ./~name as well
    if not expanded.startswith("~"):
        return Path(expanded)
    first = text.partition("/")[0]
    if first == "~":
        raise InputError(
            f"{what}: {text!r} needs a home folder, but this user has none: set the environment "
            "variable HOME, or write the whole path"
        )
    raise InputError(
        f"{what}: {text!r} begins with the home folder of the user {first[1:]!r}, but there is no "
        f"such user: write the whole path, or ./{first} for a name that begins with ~"
    )
