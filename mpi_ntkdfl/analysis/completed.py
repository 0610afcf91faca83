"""Settings that records of earlier versions lack, filled in where runs are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def completed(runs: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """The settings of runs, with those that only records of later versions hold.

    Where a record lacks a setting that another one has in a section of the same kind, its run had today's
    default.

    Args:
        runs: for each run its settings by dotted key, such as `algorithm.lr`.
    """
    known: dict[tuple[str, str], dict[str, None]] = {}
    for settings in runs:
        for section, kind in _kinds(settings).items():
            keys = [key for key in settings if key.rpartition(".")[0] == section]
            known.setdefault((section, kind), {}).update(dict.fromkeys(keys))
    return [
        {
            **settings,
            **{
                key: _default(section, kind, key)
                for section, kind in _kinds(settings).items()
                for key in known[section, kind]
                if not any(f"{own}.".startswith(f"{key}.") for own in settings)
            },
        }
        for settings in runs
    ]


def _kinds(settings: Mapping[str, object]) -> dict[str, str]:
    """The sections of a configuration, with their kinds or names; an empty text if they have none."""
    sections = dict.fromkeys(key.partition(".")[0] for key in settings if "." in key)
    return {
        each: str(settings.get(f"{each}.kind") or settings.get(f"{each}.name") or "")
        for each in sections
    }


def _default(section: str, kind: str, key: str) -> object:
    """The default of a setting. Call it only if runs differ, because it loads the classes of settings."""
    from mpi_ntkdfl.config import kinds

    value: object = kinds.default(section, kind or None, key.partition(".")[2])
    return value
