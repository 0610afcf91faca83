"""Code of users: files named by `--plugin`, and entry points of installed packages.

A plugin is a Python file that registers methods, networks, data sets, codecs or metrics when it runs.
Its code runs with all rights of the user, so it is never taken from a configuration file: it is
named on the command line, or somebody has installed it.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import traceback
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.paths import user_path


@dataclass(frozen=True)
class Plugin:
    """Code of a user that was loaded.

    Attributes:
        name: name of the file without its folder, or `package version` for an entry point.
        sha256: hash of the code, in hexadecimal.
    """

    name: str
    sha256: str


_PREFIX = "mpi_ntkdfl_plugin_"
"""Beginning of the module names of plugin files."""

_loaded: dict[str, Plugin] = {}
"""The plugins that this process has loaded, by module name, in order."""


def loaded() -> list[Plugin]:
    """All plugins that this process has loaded, in order."""
    return list(_loaded.values())


def files() -> list[str]:
    """Paths of the plugin files that this process has loaded, to pass on to processes that it starts."""
    modules = (sys.modules[name] for name in _loaded if name.startswith(_PREFIX))
    return [str(Path(str(module.__file__)).absolute()) for module in modules]


def as_json(plugins: Iterable[Plugin]) -> str:
    """Plugins as a record keeps them: a JSON list of name and sha256."""
    return json.dumps([{"name": each.name, "sha256": each.sha256} for each in plugins])


def from_json(text: str) -> list[Plugin]:
    """The plugins that `as_json` wrote.

    Raises:
        Exception: of many kinds, if the text is damaged.
    """
    return [Plugin(str(each["name"]), str(each["sha256"])) for each in json.loads(text)]


def load(paths: Iterable[str | Path]) -> list[Plugin]:
    """Runs the files that the user names; a file that was loaded before does not run again.

    Args:
        paths: paths of Python files.

    Returns:
        One plugin per path, in order.

    Raises:
        InputError: if a file cannot be read or fails; the message names the file and the line.
    """
    return [_load_file(user_path(path, "--plugin")) for path in paths]


def _load_file(path: Path) -> Plugin:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"--plugin: {path} cannot be read: {error.strerror or error}") from error
    digest = hashlib.sha256(content).hexdigest()
    # The module name must be the same on all ranks, because pickled objects of the plugin's classes
    # refer to their class by its name.
    name = f"{_PREFIX}{re.sub(r'[^0-9a-zA-Z]', '_', path.stem)}_{digest[:16]}"
    if name in _loaded:
        return _loaded[name]
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        exec(compile(content, str(path), "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - the user's wish
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(f"--plugin: {failure(error, str(path))}") from error
    _loaded[name] = Plugin(path.name, digest)
    return _loaded[name]


def failure(error: BaseException, file: str | None = None) -> str:
    """An exception of a user's code as one message with the file and the line.

    Args:
        error: the exception.
        file: file of the user's code; the message names the innermost line in it. None for the
            innermost line of all files.
    """
    reason = " ".join(str(error).split())
    message = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    if isinstance(error, InputError):
        message = reason
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: SyntaxError: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if file is None or frame.filename == file]
    if not own:
        return f"{file}: {message}" if file else message
    return f"{own[-1].filename}, line {own[-1].lineno}: {message}"


def load_installed(
    group: str, name: str, entries: Container[str], adopt: Callable[[str, Any], None] | None = None
) -> None:
    """Loads the entry point of an installed package, if there is one of that name.

    Args:
        group: group of entry points, such as `mpi_ntkdfl.networks`.
        name: name of the entry point.
        entries: names of a registry; the entry point may register itself when it is loaded.
        adopt: registers the loaded object, if it has not registered itself.

    Raises:
        InputError: if loading fails, or nothing of that name is registered afterwards.
    """
    from importlib import metadata  # it takes longer to load than the rest of this module

    for entry in metadata.entry_points(group=group, name=name):
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
        where = f"the entry point {name!r} of group {group} in the package {package}"
        try:
            loaded_object = entry.load()
            if name not in entries and adopt is not None:
                adopt(name, loaded_object)
        except (Exception, SystemExit) as error:
            raise InputError(f"{where} fails: {failure(error)}") from error
        if name not in entries:
            raise InputError(f"{where} registers nothing of that name")
        _loaded[f"{group}:{name}"] = Plugin(package, _hash_of_module(entry.module))


def installed_names(group: str) -> set[str]:
    """Names of the entry points of a group."""
    from importlib import metadata

    return {entry.name for entry in metadata.entry_points(group=group)}


def _hash_of_module(name: str) -> str:
    """SHA-256 of a module's source, or of no bytes if it has no source."""
    file = getattr(sys.modules.get(name), "__file__", None)
    content = Path(file).read_bytes() if file and Path(file).is_file() else b""
    return hashlib.sha256(content).hexdigest()
