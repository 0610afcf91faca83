"""YAML as people write it: one reader and one writer for configurations, presets and studies.

PyYAML follows YAML 1.1. Some of its rules surprise people, so the reader here differs in these:

- `1e-3` is a number (1.1 demands a dot and a sign).
- `010` is ten, not the octal eight; `08` is eight, not text.
- `1:30` is text, not ninety (1.1 has numbers of base 60).
- The key `on` is the text "on", not true.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from mpi_ntkdfl.runtime.errors import InputError

_INT = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"
_BOOL = "tag:yaml.org,2002:bool"

_NUMBERS = {
    _INT: re.compile(r"^[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)$"),
    _FLOAT: re.compile(
        r"^([-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?"
        r"|[0-9][0-9_]*[eE][-+]?[0-9]+)|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
}


class _Loader(yaml.SafeLoader):
    """SafeLoader with the numbers above that refuses aliases, keys given twice and huge integers."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # A few lines of aliases of aliases can stand for more than any memory holds.
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not supported", mark)
        return super().compose_node(parent, index)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node)).replace("_", "")
        digits = text.lstrip("+-")
        base = {"0b": 2, "0x": 16}.get(digits[:2], 10)
        number = int(text, base)
        # Hexadecimal digits beyond a few thousand make integers that Python refuses to print.
        if abs(number) >= 2**63:
            raise yaml.constructor.ConstructorError(
                None, None, "an integer must be below 2^63", node.start_mark
            )
        return number

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value:
            if key.tag == _BOOL:
                key.tag = "tag:yaml.org,2002:str"
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if isinstance(key, list | dict):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be plain text", node.start_mark
                )
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which any reader, this one or one of YAML 1.1, takes for a number."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in rules if tag not in _NUMBERS]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _end in (_Loader, _Dumper):
    for _tag, _form in _NUMBERS.items():
        _end.add_implicit_resolver(_tag, _form, list("-+.0123456789"))

_Loader.add_constructor(_INT, _Loader.construct_integer)


def read_yaml(text: str, what: str) -> Any:
    """Parses YAML without running anything in it.

    Args:
        text: the YAML.
        what: names it in the message.

    Raises:
        InputError: if `text` is no valid YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except Exception as error:  # PyYAML lets others escape, such as KeyError from `!!bool x`
        problem = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{what} is not valid YAML: {problem}") from error


def write_yaml(settings: Any) -> str:
    """Plain settings as YAML that `read_yaml` reads back, in the order of their keys."""
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=False)
