"""The reference of settings as Markdown, from the classes of settings themselves.

The text behind a field is its description; a field that a subclass declares again keeps the description
of its base. Types, bounds and defaults come from the JSON schema of the class.
"""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.config import Config, kinds
from mpi_ntkdfl.data.registered import RegisteredSettings
from mpi_ntkdfl.data.sources import DATASETS
from mpi_ntkdfl.federation.codecs import CODECS
from mpi_ntkdfl.model.networks import NETWORKS
from mpi_ntkdfl.runtime.settings import declared_effect

SELECTORS = ("name", "kind")
"""Settings that choose among the classes of a section."""


def settings_classes() -> dict[str, dict[str, type[BaseModel]]]:
    """Every class of settings, by section and by its kind or name; "" for sections without kinds."""
    by_name = {
        "dataset": {name: source.Settings for name, source in DATASETS.items()}
        | {"MINE": RegisteredSettings},
        "model": {name: network.Settings for name, network in NETWORKS.items()},
        "algorithm": {name: method.Settings for name, method in METHODS.items()},
    }
    classes: dict[str, dict[str, type[BaseModel]]] = {"": {"": Config}}
    for section in Config.model_fields:
        if section in by_name:
            classes[section] = by_name[section]
        else:
            each = {_kind(one): one for one in kinds.classes(section)}
            classes |= {section: each} if each else {}
    return classes | {"codec": {name: codec.Settings for name, codec in CODECS.items()}}


def _kind(settings: type[BaseModel]) -> str:
    field = settings.model_fields.get("kind")
    return get_args(field.annotation)[0] if field else ""


def descriptions(settings: type[BaseModel]) -> dict[str, str]:
    """What the texts behind the fields of a class and of its bases say, by field."""
    texts: dict[str, str] = {}
    for each in reversed(settings.__mro__):
        if issubclass(each, BaseModel) and each.__module__.partition(".")[0] != "pydantic":
            texts |= _own_descriptions(each)
    return {key: texts[key] for key in settings.model_fields if key in texts}


def _own_descriptions(settings: type[BaseModel]) -> dict[str, str]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(settings))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def markdown(level: int = 2) -> Iterator[str]:
    """The lines of the reference: one heading per section, one below it per kind, one entry per key.

    Args:
        level: of the headings of sections.
    """
    for section, classes in settings_classes().items():
        yield f"{'#' * level} {f'`{section}`' if section else 'Top level'}\n"
        if section in Config.model_fields:
            yield descriptions(Config)[section] + "\n"
        if section == "codec":
            yield "The sections of `algorithm.codec`: how messages are written.\n"
        for settings in dict.fromkeys(classes.values()):
            names = [_code(name) for name, each in classes.items() if each is settings and name]
            if names:
                yield f"{'#' * (level + 1)} `{section}`: {', '.join(names)}\n"
            yield inspect.cleandoc(settings.__doc__ or "").partition("\n\nAttributes:")[0] + "\n"
            yield from _entries(section, settings)


def _entries(section: str, settings: type[BaseModel]) -> Iterator[str]:
    schema, texts = settings.model_json_schema(), descriptions(settings)
    for key, field in settings.model_fields.items():
        if key in SELECTORS or (not section and key not in _plain_keys(schema)):
            continue
        value = schema["properties"][key]
        default = "must be given" if field.is_required() else f"default {_code(field.default)}"
        yield f"`{f'{section}.' if section else ''}{key}`"
        yield f": {' '.join(texts[key].split())}"
        yield ""
        yield f"  *{_words(value, schema)}; {default}; affects: {declared_effect(field)}*\n"


def _plain_keys(schema: Mapping[str, Any]) -> set[str]:
    """The keys of a schema that are no sections."""
    return {
        key
        for key, value in schema["properties"].items()
        if "$ref" not in value and "discriminator" not in value
    }


def _code(value: object) -> str:
    value = list(value) if isinstance(value, tuple) else value
    value = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    text = (
        yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
    )
    return f"`{text}`"


def _number(value: float) -> str:
    power = round(math.log2(value)) if value > 0 else 0
    if value > 1e15 and value == 2**power:
        return f"2^{power}"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _words(value: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """The type of a value with its bounds, in words."""
    if "$ref" in value or "oneOf" in value:
        return "a section"
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_words(each, schema) for each in value["anyOf"]))
    if "const" in value:
        return _code(value["const"])
    if "enum" in value:
        return " or ".join(_code(each) for each in value["enum"])
    bounds = [
        f"{word} {_number(value[key])}"
        for key, word in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        )
        if key in value
    ]
    name = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "true or false",
        "array": "list",
        "object": "mapping",
        "null": "null",
    }[value["type"]]
    return " ".join([name, ", ".join(bounds)]).strip()
