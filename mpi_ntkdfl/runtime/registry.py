"""Tables of named entries that a user may extend: methods, networks, data sets, codecs, metrics."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from mpi_ntkdfl.runtime.errors import InputError

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Entries of one kind by name, in the order in which they were registered.

    A registry is the only list of its kind: code that needs all entries iterates over it.
    """

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, T] | None = None,
        group: str | None = None,
        own: str = "one of your own needs --plugin FILE.py",
    ) -> None:
        """Starts with the entries that come with the package.

        Args:
            kind: what an entry is, for messages, such as `method`.
            entries: entries by name.
            group: group of the entry points with which other installed packages offer entries, such as
                `mpi_ntkdfl.methods`. An entry point is loaded when its name is first asked for.
            own: how a user gives an entry that does not come with the package, for messages. `{name}`
                stands for the name that was asked for.
        """
        self.kind, self.group, self._own = kind, group, own
        self._entries = dict(entries or {})
        self.adopt: Callable[[str, Any], None] | None = None
        """Function of a name and an object that registers the object of an entry point; None if entry
        points register themselves when they are loaded."""

    def register(self, name: str, entry: T) -> None:
        """Adds an entry.

        Raises:
            InputError: if the name is taken by another entry, or is not made of lower-case letters,
                digits and dashes.
        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
            raise InputError(
                f"the name of a {self.kind} consists of lower-case letters, digits and dashes, "
                f"got {name!r}"
            )
        if self._entries.get(name, entry) is not entry:
            raise InputError(f"there is a {self.kind} {name!r} already; choose another name")
        self._entries[name] = entry

    def find(self, name: str) -> T:
        """The entry of that name.

        Raises:
            InputError: if there is none.
        """
        if name not in self:
            raise InputError(self.unknown(name))
        return self._entries[name]

    def unknown(self, name: object) -> str:
        """The message for a name that is not in the table.

        It names the closest entry, lists all entries, and says how a user adds one.
        """
        from mpi_ntkdfl.runtime import plugins  # programs that only read records need none

        offered = plugins.installed_names(self.group) if self.group else ()
        names = {*self._entries, *offered}
        return f"{unknown(self.kind, name, names)}; {self._own.replace('{name}', str(name))}"

    def __getitem__(self, name: str) -> T:
        if name not in self._entries and self.group is not None:
            from mpi_ntkdfl.runtime import plugins

            plugins.load_installed(self.group, name, self._entries, self.adopt)
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def unknown(kind: str, name: object, names: Iterable[str]) -> str:
    """The message for a name that does not exist: the closest name, if any, and all names."""
    names = sorted(names)
    hint = did_you_mean(name, names)
    return f"unknown {kind} {name!r}{hint}{'' if hint else ';'} there are: {', '.join(names)}"


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """The end of a message about a misspelt name: `; did you mean 'ring'?`, or nothing."""
    import difflib  # a misspelt name is rare

    names = list(names)
    word, lower = str(name).lower(), {each.lower(): each for each in names}
    closest = [lower[each] for each in difflib.get_close_matches(word, list(lower), n=1)]
    begun = [each for each in names if len(word) > 2 and each.lower().startswith(word)]
    closest = sorted(begun, key=len)[:1] or closest
    return f"; did you mean {closest[0]!r}?" if closest else ""


def neither(source: str, kind: str, names: Iterable[str], error: Exception) -> str:
    """The message for a word that is neither a name of the package nor a readable YAML file.

    Args:
        source: the word.
        kind: what the names are, such as `preset`.
        names: names of that kind.
        error: why the word cannot be read as a file.
    """
    names, source = list(names), source[:80]
    reason = getattr(error, "strerror", None) or str(error)
    return (
        f"{source!r} is neither a {kind} nor a readable YAML file ({reason})"
        f"{did_you_mean(source, names) or ';'} there are: {', '.join(names)}"
    )
