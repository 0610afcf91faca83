"""Reads a graph from a file: an edge list or GraphML."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpi_ntkdfl.runtime.errors import InputError

if TYPE_CHECKING:
    import networkx

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _File:
    """What a file holds.

    Attributes:
        nodes: nodes that it lists, each with its place for messages.
        edges: both ends of every edge, with its place.
        data: whether edges have weights or other attributes.
    """

    nodes: list[tuple[str, str]]
    edges: list[tuple[str, str, str]]
    data: bool


def read_graph(path: str, clients: int) -> tuple[list[tuple[int, int]], tuple[str, ...]]:
    """Reads the edges of a graph of the clients 0 to M-1.

    A file whose name ends in .graphml or .xml must hold GraphML without a DOCTYPE. A directed GraphML
    graph must have every edge in both directions. Any other file is an edge list with one undirected
    edge "i j" per line, where "#" starts a comment; networkx's `write_edgelist` writes such files.
    Repeated edges count once. Clients that the file does not name have no neighbours. If the nodes are
    names and not numbers, clients are numbered in the alphabetical order of the names. Weights and other
    attributes of edges are ignored in both formats, and a warning says so.

    Returns:
        Pairs of clients; the clients' names `[M]`, empty if the file has numbers.

    Raises:
        InputError: if the file cannot be read, is malformed, or has a self-loop or a node that is
            not one of the clients.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"topology.path must name a readable UTF-8 file, got {path!r} ({reason}); "
            "give an edge list or a .graphml file"
        ) from error
    _refuse_other_formats(text, path)
    is_graphml = path.lower().endswith((".graphml", ".xml"))
    file = _graphml(text, path) if is_graphml else _edge_list(text, path)
    number, names = _numbered(file, path, clients)
    pairs = []
    for a, b, where in file.edges:
        if a == b:
            raise InputError(
                f"{where}: an edge must join two different clients, got {a} twice; remove it, "
                "every client averages itself in anyway"
            )
        pairs.append((number[a], number[b]))
    if file.data:
        _log.warning(
            "%s: weights and other attributes of edges are ignored; algorithm.averaging says with which "
            "weights clients average",
            path,
        )
    return pairs, names


_OTHERS = {
    "GML": r"\s*((#|Creator|Version)[^\n]*\n\s*)*graph\s*\[",
    "Pajek": r"\s*(%[^\n]*\n\s*)*\*(Vertices|Network)\b",
    "DOT": r"\s*(strict\s+)?(di)?graph\b[^\[\n]*\{",
    "JSON": r"\s*[{\[]",
}
"""Patterns of the beginning of files in formats that are not supported."""


def _refuse_other_formats(text: str, path: str) -> None:
    """Refuses a file in a format that is not supported, before its words are taken for edges."""
    for name, begin in _OTHERS.items():
        if re.match(begin, text[:4096], re.IGNORECASE):
            raise InputError(
                f"{path} is a {name} file; only edge lists (one pair of clients per line) and GraphML "
                "(.graphml, .xml) can be read: convert it, for example with networkx.write_graphml"
            )


_DATA = re.compile(r"\{[^{}]*\}|[-+]?[\d.]+([eE][-+]?\d+)?")
"""What networkx writes after the two ends of an edge: a dictionary or a weight."""


def _edge_list(text: str, path: str) -> _File:
    edges, data = [], False
    for number, line in enumerate(text.split("\n"), start=1):
        words = line.partition("#")[0].split(maxsplit=2)
        where = f"{path}, line {number}"
        if len(words) < 2 and not words:
            continue
        more = words[2].strip() if len(words) > 2 else ""
        if len(words) < 2 or (more and not _DATA.fullmatch(more)):
            raise InputError(
                f'{where}: an edge must be two clients "i j", at most with a weight after them, '
                f"got {line.strip()[:60]!r}; give one edge per line"
            )
        edges.append((words[0], words[1], where))
        data |= more not in ("", "{}")
    return _File([], edges, data)


def _graphml(text: str, path: str) -> _File:
    parsed = _parse_graphml(text, path)
    nodes = [(name, f"{path}, node {name[:40]!r}") for name in parsed.nodes()]
    edges = [(a, b, f"{path}, edge {a!r} to {b!r}") for a, b in parsed.edges()]
    if parsed.is_directed():
        directed = {(a, b) for a, b, _ in edges}
        for a, b, _ in edges:
            if (b, a) not in directed:
                raise InputError(
                    f"{path}: a directed graph must have every edge both ways, got {a} to {b} "
                    'without its reverse; add it or set edgedefault="undirected"'
                )
    return _File(nodes, edges, any(more for *_, more in parsed.edges(data=True)))


def _parse_graphml(text: str, path: str) -> networkx.Graph[Any]:
    import networkx as nx

    # Entities can expand to gigabytes or read other files, and GraphML does not need them.
    if re.search(r"<!\s*(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise InputError(
            f"{path}: GraphML must not declare a DOCTYPE or ENTITY, got one; remove the declaration"
        )
    # networkx would read only the first of several graphs, and only the outermost of nested graphs.
    graphs = len(re.findall(r"<(?:[\w.-]+:)?graph[\s/>]", text))
    if graphs != 1:
        raise InputError(f"{path} must hold one GraphML graph, got {graphs}; keep one of them")
    # For malformed documents networkx raises whatever its code meets first.
    failures = (nx.NetworkXError, SyntaxError, LookupError, ValueError, TypeError, AttributeError)
    try:
        return nx.parse_graphml(text)
    except failures as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path} must be valid GraphML, got: {problem}; mend it or give an edge list"
        ) from error


def _numbered(file: _File, path: str, clients: int) -> tuple[dict[str, int], tuple[str, ...]]:
    """The client of every node, and the clients' names if the nodes have names instead of numbers.

    Names are numbered in alphabetical order, so that the order in the file does not matter.
    """
    where = dict(file.nodes)
    for a, b, place in file.edges:
        where.setdefault(a, place)
        where.setdefault(b, place)
    if not where or any(re.fullmatch(r"[-+]?\d.*", word) for word in where):
        return {word: _client(word, clients, place) for word, place in where.items()}, ()
    if len(where) != clients:
        raise InputError(
            f"{path} names {len(where)} nodes, and there are {clients} clients: set clients to "
            f"{len(where)}, or number the nodes from 0 if some clients have no neighbours"
        )
    names = tuple(sorted(where))
    return {name: number for number, name in enumerate(names)}, names


def _client(word: str, clients: int, where: str) -> int:
    # Each client has only one spelling; otherwise "01" could be a second node 1 in GraphML.
    if not re.fullmatch(r"0|[1-9][0-9]{0,17}", word) or int(word) >= clients:
        raise InputError(
            f"{where}: a node must be an integer from 0 to {clients - 1}, got {word[:40]!r}; "
            "renumber the nodes or set clients to their number"
        )
    return int(word)
