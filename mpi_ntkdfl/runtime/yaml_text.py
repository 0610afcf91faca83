"""The reader and the writer of YAML for configurations, presets and studies.

PyYAML follows YAML 1.1. Some of its rules surprise people, so this reader differs from it as follows:

- `1e-3` is a number (YAML 1.1 requires a dot and a sign).
- `010` is ten, not the octal eight; `08` is eight, not text.
- `1:30` is text, not ninety (YAML 1.1 has numbers of base 60).
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
    """A SafeLoader with the numbers above. It refuses aliases, repeated keys and huge integers."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # A few lines with aliases of aliases can expand to more data than any memory holds.
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not supported", mark)
        return super().compose_node(parent, index)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node)).replace("_", "")
        digits = text.lstrip("+-")
        base = {"0b": 2, "0x": 16}.get(digits[:2], 10)
        number = int(text, base)
        # Python refuses to print integers with more than a few thousand digits.
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
    """A SafeDumper that quotes any text that this reader or one of YAML 1.1 would take for a number."""


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
        what: name of the text in the message.

    Raises:
        InputError: if `text` is not valid YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except Exception as error:  # also errors of Python, such as KeyError for `!!bool x`
        problem = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{what} is not valid YAML: {problem}") from error


def write_yaml(settings: Any) -> str:
    """Plain settings as YAML text that `read_yaml` reads back; keys stay in their order."""
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=False)
