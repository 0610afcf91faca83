"""Which classes of settings each section of a configuration can have."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from mpi_ntkdfl.config import sections
from mpi_ntkdfl.config.environment import EnvironmentSettings
from mpi_ntkdfl.config.sections import DatasetSettings, MethodSettings, ModelSettings
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.registry import Registry

_TABLES = {
    "dataset": "mpi_ntkdfl.data.sources:DATASETS",
    "model": "mpi_ntkdfl.model.networks:NETWORKS",
    "algorithm": "mpi_ntkdfl.algorithms:METHODS",
}
"""The tables of data sets, networks and methods, by their addresses. Each entry has a class `Settings`.

The package `config` lies below the packages that define these tables, so it imports none of them. A
table is imported when a configuration names something in it.
"""

_BASES: dict[str, type[BaseModel]] = {
    "dataset": DatasetSettings,
    "model": ModelSettings,
    "algorithm": MethodSettings,
    "evaluation": sections.EvaluationSettings,
    "output": sections.OutputSettings,
    "compute": sections.ComputeSettings,
    "environment": EnvironmentSettings,
}
_UNIONS: dict[str, Any] = {"partition": sections.Partition, "topology": sections.Topology}


def named(section: str, name: object) -> type[BaseModel]:
    """The class of settings of a data set, a network or a method.

    Args:
        section: `dataset`, `model` or `algorithm`.
        name: the name of the data set, network or method.

    Raises:
        InputError: if the name is unknown; the message lists the known names.
    """
    table = _table(section)
    if not isinstance(name, str):
        raise InputError(table.unknown(name))
    settings: type[BaseModel] = table.find(name).Settings
    return settings


def first(section: str) -> str:
    """The name of the first entry in a section's table, which is the default of a configuration."""
    return next(iter(_table(section)))


def classes(section: str, name: object = None) -> Iterator[type[BaseModel]]:
    """The classes of settings that a section can have.

    For a section `algorithm` without a name only the base class is given, because the table of methods
    imports torch.

    Args:
        section: a key of a configuration.
        name: a `name` or `kind`; then only the class of that name or kind is given.
    """
    if section in _UNIONS:
        union = get_args(get_args(_UNIONS[section])[0])
        for each in union:
            if name is None or name in get_args(each.model_fields["kind"].annotation):
                yield each
        return
    if section in _TABLES and isinstance(name, str) and name in _table(section):
        yield named(section, name)
        return
    if section in ("dataset", "model"):
        yield from {entry.Settings: None for entry in _table(section).values()}
    if section in _BASES:
        yield _BASES[section]


def default(section: str, name: object, setting: str) -> Any:
    """The default of a setting, as YAML reads it; None if it has none or is unknown.

    Args:
        section: a key of a configuration.
        name: the `name` or `kind` of the section, if it has one.
        setting: a key of the section.
    """
    if section in _TABLES and name not in _table(section):
        return None
    for each in classes(section, name):
        if setting in each.model_fields and not each.model_fields[setting].is_required():
            value = each.model_fields[setting].get_default(call_default_factory=True)
            return list(value) if isinstance(value, tuple) else value
    return None


def sections_in(annotation: object) -> Iterator[type[BaseModel]]:
    """The classes of settings that an annotation names, in a union or by itself."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from sections_in(part)


def _table(section: str) -> Registry[Any]:
    table: Registry[Any] = pkgutil.resolve_name(_TABLES[section])
    return table
