"""Settings in words, for legends, tables and summaries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WORDS: dict[tuple[str, object], str] = {
    ("topology.dynamic", True): "dynamic graph",
    ("topology.dynamic", False): "static graph",
    ("model.init", "shared"): "shared start",
    ("model.init", "per-client"): "own starts",
    ("algorithm.averaging", "plain"): "equal weights",
    ("algorithm.averaging", "samples"): "averaging by samples",
    ("algorithm.averaging", "metropolis"): "Metropolis weights",
    ("algorithm.averaging", "none"): "no averaging",
    ("evaluation.clients", True): "clients tested",
    ("evaluation.clients", False): "clients not tested",
    ("topology.kind", "erdos-renyi"): "Erdos-Renyi graph",
}


def said(key: str, value: object) -> str:
    """A setting in words, such as `degree 5`, `static graph` or `5 clients`.

    Args:
        key: dotted, such as `topology.dynamic`.
        value: value of the setting, not None.
    """
    word = value if isinstance(value, str | bool) else None
    if (key, word) in _WORDS:
        return _WORDS[key, word]
    section, _, name = key.rpartition(".")
    name = name.replace("_", " ")
    if isinstance(value, bool):
        return name if value else f"not {name}"
    if key == "topology.kind":
        return f"{value} graph"
    if name in ("kind", "name"):
        return f"{section} {value}"
    if key in ("clients", "rounds"):
        return f"{value} {key}"
    return f"{name} {value}"


def tests_told(config: Mapping[str, Any]) -> list[str]:
    """One line if clients are tested on some of the test samples only (`evaluation.sample`)."""
    sample = config.get("evaluation", {}).get("sample")
    drawn = f"clients tested on {sample} test samples, drawn for every evaluation"
    return [f"{drawn}; std. error: of one client's accuracy"] if sample else []
