"""Where layers of settings come from: presets of this folder, YAML files, and `--set` options."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from typing import Any

from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.paths import user_path
from mpi_ntkdfl.runtime.registry import did_you_mean, neither, unknown
from mpi_ntkdfl.runtime.yaml_text import read_yaml


def names() -> list[str]:
    """Names of the presets that come with the package, in alphabetical order."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def text(name: str) -> str:
    """The YAML text of a preset.

    Raises:
        InputError: if there is no such preset.
    """
    if name not in names():
        raise InputError(unknown("preset", name, names()))
    return resources.files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def read_source(source: str) -> list[dict[str, Any]]:
    """Reads a preset by name, or a YAML file by path, and the presets on which it builds.

    Returns:
        Layers for `config.parse` as plain mappings; the preset that the key `base` names comes first.

    Raises:
        InputError: if there is no such preset or file, if it cannot be read or is not a mapping, or if
            its base is not a preset or leads back to itself.
    """
    layers = [_read_mapping(source)]
    seen = [source]
    while "base" in layers[0]:
        base = layers[0].pop("base")
        if base not in names():
            raise InputError(
                f"{seen[-1]}: base must be a preset ({', '.join(names())}), got {base!r}"
                f"{did_you_mean(base, names())}"
            )
        if base in seen:
            raise InputError(f"{source}: base leads in a circle: {' -> '.join([*seen, base])}")
        seen.append(base)
        layers.insert(0, _read_mapping(base))
    return layers


def _read_mapping(source: str) -> dict[str, Any]:
    raw = read_yaml(text(source) if source in names() else _read_file(source), source)
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise InputError(f"{source} must hold a mapping of settings, got {type(raw).__name__}")
    return raw


def _read_file(source: str) -> str:
    try:
        return user_path(source, "the configuration").read_text(encoding="utf-8")
    except (OSError, ValueError, InputError) as error:
        raise InputError(neither(source, "preset", names(), error)) from error


def read_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """Turns `["a.b=c", ...]` into `{"a": {"b": c}}`, values read as YAML.

    Raises:
        InputError: for an assignment without `=` or key, or one whose nesting contradicts another one.
    """
    layer: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            raise InputError(f"--set needs section.key=value, got {assignment!r}")
        inner = layer
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise InputError(f"--set {key} contradicts an earlier --set {part}=...")
        inner[path[-1]] = read_yaml(value, f"the value of --set {key}")
    return layer
