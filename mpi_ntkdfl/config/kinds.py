"""Which classes of settings a section can have, and where the tables of named things are."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from mpi_ntkdfl.config import sections
from mpi_ntkdfl.config.environment import EnvironmentSettings
from mpi_ntkdfl.config.sections import DatasetSettings, MethodSettings, ModelSettings
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.registry import Registry, unknown

_TABLES = {
    "dataset": "mpi_ntkdfl.data.sources:DATASETS",
    "model": "mpi_ntkdfl.model.networks:NETWORKS",
    "algorithm": "mpi_ntkdfl.algorithms:METHODS",
}
"""Addresses of the tables of named things; an entry has its class of settings as `Settings`.

Configurations are below all rooms and import none of them. So a table is looked up by its address when
a configuration names something in it, as an installed plugin is.
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
    """The settings of something named.

    Args:
        section: `dataset`, `model` or `algorithm`.
        name: of the data set, the network or the method.

    Raises:
        InputError: if there is nothing of that name; the message lists what there is.
    """
    table = _table(section)
    if not isinstance(name, str):
        raise InputError(unknown(table.kind, name, table))
    settings: type[BaseModel] = table.find(name).Settings
    return settings


def first(section: str) -> str:
    """The name of the first entry in the table of a section: what a configuration has by default."""
    return next(iter(_table(section)))


def classes(section: str, name: object = None) -> Iterator[type[BaseModel]]:
    """The classes of settings that a section can have, as far as they are known without torch.

    Args:
        section: a key of a configuration.
        name: of the section's `name` or `kind`; with it only the class that belongs to it.
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


def sections_in(annotation: object) -> Iterator[type[BaseModel]]:
    """The classes of settings that an annotation names, in a union or by itself."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from sections_in(part)


def _table(section: str) -> Registry[Any]:
    table: Registry[Any] = pkgutil.resolve_name(_TABLES[section])
    return table
